"""The book's figures.

``show(fig, alt=..., caption=...)`` embeds a matplotlib figure that follows the page's theme.
``table`` lays out figures in rows. Every other function returns an interactive figure: plain HTML
and JavaScript over numbers computed in Python, which works without a server or a network (see
``qlab.viz.interactive``).
"""

from qlab.viz.clipping import histogram_clip
from qlab.viz.curve import quant_curve
from qlab.viz.memory import memory_calculator
from qlab.viz.roofline import roofline
from qlab.viz.stories import side_by_side
from qlab.viz.style import COLORS, show, use_style
from qlab.viz.surprise import surprise
from qlab.viz.tables import table

__all__ = [
    "COLORS",
    "histogram_clip",
    "memory_calculator",
    "quant_curve",
    "roofline",
    "show",
    "side_by_side",
    "surprise",
    "table",
    "use_style",
]
