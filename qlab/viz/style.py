"""The look of static figures: one drawing that is readable on a light and on a dark page."""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import Any

# Okabe and Ito's palette, told apart with any color vision; black is left out, since it would
# vanish on a dark page. The order puts the most different colors first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Drawn in this color, then replaced by the color of the page's text.
_INK = "#010203"


class Picture:
    """A figure as HTML, with its alternative text. What ``show`` returns."""

    def __init__(self, markup: str, alt: str) -> None:
        self.markup, self.alt = markup, alt

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def use_style() -> None:
    """Set matplotlib's defaults for the book: palette, sizes, no frame at the top and right."""
    import matplotlib

    matplotlib.rcParams.update(_settings())


def show(fig: Any, alt: str, caption: str | None = None) -> Picture:
    """Embed a matplotlib figure as SVG and close it.

    Args:
        fig: a matplotlib figure.
        alt: what the figure shows, for readers who cannot see it.
        caption: one sentence below the figure.

    The drawing is the same on every run: ids are salted with the text, no date is written. Text,
    axes and ticks take the color of the page.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    if not alt.strip():
        raise ValueError("a figure needs an alternative text: say what it shows")
    salt = hashlib.sha256(alt.encode()).hexdigest()[:12]
    _recolor(fig)
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        out = io.StringIO()
        fig.savefig(
            out, format="svg", metadata={"Date": None}, transparent=True, bbox_inches="tight"
        )
    plt.close(fig)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Ids of glyphs and clips must differ between two figures of a page.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>q{salt[:6]}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"font-family: [^;\"]*|font: ([\d.]+px) [^;\"]*",
        lambda m: f"font-size: {m[1]}" if m[1] else "font-family: inherit",
        svg,
    )
    label = html.escape(alt, quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    svg = re.sub(
        r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"',
        # On a phone a wide figure keeps three fifths of its size, so that its text can be read.
        lambda m: (
            f'{m[1]} style="width:{m[2]}pt;max-width:100%;'
            f'min-width:{0.6 * float(m[2]):.0f}pt;height:auto"'
        ),
        svg,
        count=1,
    )
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    style = "font-family:var(--q-sans,sans-serif);margin:1em 0"
    scroll = f'<div style="overflow-x:auto">{svg}</div>'
    return Picture(f'<figure class="qlab-picture" style="{style}">{scroll}{below}</figure>', alt)


def _settings() -> dict[str, Any]:
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.2,
        "figure.constrained_layout.use": True,
        "font.size": 10.5,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }


def _recolor(fig: Any) -> None:
    """Give everything that is drawn in matplotlib's black the page's ink."""
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    for artist in fig.findobj():
        if isinstance(artist, (Text, Line2D)):
            color = artist.get_color()
            if isinstance(color, str) and color != "none" and to_hex(color) == "#000000":
                artist.set_color(_INK)
            if isinstance(artist, Line2D):
                edge = artist.get_markeredgecolor()
                if isinstance(edge, str) and edge in ("k", "black"):
                    artist.set_markeredgecolor(_INK)
        elif isinstance(artist, Spine):
            artist.set_edgecolor(_INK)
        elif isinstance(artist, Patch) and to_hex(artist.get_edgecolor()) == "#000000":
            artist.set_edgecolor(_INK)
    for axes in fig.axes:
        axes.tick_params(color=_INK, labelcolor=_INK, which="both")
