"""The book's figures: what they compute, and that they stay whole in a page."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab import viz
from qlab.viz.clipping import BINS, error_parts
from qlab.viz.interactive import figure
from qlab.viz.memory import MODELS, WIDTHS


def payload(picture):
    """What an interactive figure's script reads."""
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


# --- static figures -----------------------------------------------------------------------------


def drawing(title="a"):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ax.plot([1, 2], [3, 4], label=title)
    ax.set(xlabel="bits", ylabel="error", title=title)
    ax.legend()
    return fig


def test_a_static_figure_needs_an_alternative_text():
    with pytest.raises(ValueError, match="alternative text"):
        viz.show(drawing(), alt=" ")


def test_a_static_figure_is_the_same_each_time_and_follows_the_theme():
    first = viz.show(drawing(), alt="A line that rises.", caption="A line.").markup
    assert first == viz.show(drawing(), alt="A line that rises.", caption="A line.").markup
    assert 'aria-label="A line that rises."' in first and "A line." in first
    assert "currentColor" in first
    assert "#010203" not in first and "#000000" not in first
    assert "<metadata" not in first


def test_ids_of_two_figures_do_not_meet():
    one, two = (viz.show(drawing(), alt=f"Line {i}.").markup for i in (1, 2))
    ids = [set(re.findall(r'id="([^"]+)"', m)) for m in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for markup, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup)) <= {
            (a, b) for a in (*known, "") for b in (*known, "")
        }


# --- the frame of interactive figures -----------------------------------------------------------


def test_data_with_a_closing_tag_does_not_end_the_script():
    data = {"text": "</script><script>alert(1)</script>", "x": [1, 2.5, None, "é"]}
    picture = figure("curve", data, alt="a", caption="<b>", fallback="<p>f</p>")
    assert payload(picture) == data
    assert "&lt;b&gt;" in picture.markup
    assert "alert(1)</script>" not in picture.markup


def test_nan_is_no_data():
    with pytest.raises(ValueError, match="JSON"):
        figure("curve", {"x": math.nan}, alt="a", caption="c", fallback="f")


def test_no_script_reaches_for_a_network():
    for picture in (viz.memory_calculator(), viz.surprise(["a"], [1.0])):
        urls = re.findall(r"https?://[^\s\"'<)]+", picture.markup)
        assert set(urls) <= {"http://www.w3.org/2000/svg"}


# --- clipping -----------------------------------------------------------------------------------


@given(
    st.integers(2, 8),
    st.floats(0.05, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_the_two_parts_are_the_error_of_the_quantizer(bits, share, seed):
    """Rounding plus clipping, over bin centers, is the mean squared error of qlab's own codes."""
    rng = np.random.default_rng(seed)
    centers = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    counts = rng.integers(0, 50, BINS)
    counts[0] += 1
    rounding, clipping = error_parts(counts, 1.0, share, bits)
    qmax = 2 ** (bits - 1) - 1
    restored = np.clip(np.round(centers / (share / qmax)), -qmax, qmax) * (share / qmax)
    whole = ((centers - restored) ** 2 * counts).sum() / counts.sum()
    assert rounding + clipping == pytest.approx(whole, rel=1e-9)
    # Inside the range no error is larger than half a step.
    assert rounding <= (share / qmax / 2) ** 2 * (1 + 1e-9)
    assert clipping == 0 or share < 1


def test_a_wide_range_clips_nothing_and_a_narrow_one_rounds_little():
    counts = np.ones(BINS)
    assert error_parts(counts, 2.0, 2.0, 4)[1] == 0
    wide, narrow = error_parts(counts, 2.0, 2.0, 4), error_parts(counts, 2.0, 0.5, 4)
    assert narrow[0] < wide[0] and narrow[1] > wide[1]


@pytest.mark.parametrize("bad", [[1.0], [2.0, 2.0], [1.0, math.nan], [0.0, math.inf]])
def test_clipping_refuses_what_has_no_histogram(bad):
    with pytest.raises(qlab.QlabError, match="two different finite values"):
        viz.histogram_clip(np.array(bad))


def test_clipping_takes_torch_and_numpy():
    import torch

    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    assert viz.histogram_clip(x).markup == viz.histogram_clip(torch.from_numpy(x)).markup
    assert sum(payload(viz.histogram_clip(x))["counts"]) == x.size


# --- the others ---------------------------------------------------------------------------------


def test_the_calculator_knows_its_models():
    data = payload(viz.memory_calculator())
    assert [m[0] for m in data["models"]] == [m[0] for m in MODELS]
    sizes = [m[1] for m in MODELS]
    assert sizes == sorted(sizes) and sizes[0] < 0.2 and sizes[-1] > 600
    widths = [bits for _, bits in WIDTHS]
    assert widths == sorted(widths, reverse=True)
    # A Q4_0 block holds 32 codes of 4 bits and one scale of 16.
    assert dict(WIDTHS)["int4, a 16-bit scale for 32 (Q4_0)"] == 4 + 16 / 32
    # A Q6_K super-block: 256 codes of 6 bits, 16 scales of 8 bits, one of 16.
    assert dict(WIDTHS)["int6, k-quant (Q6_K)"] == 6 + (16 * 8 + 16) / 256


def test_the_curve_leaves_out_what_was_not_measured():
    rows = [
        {"name": "a", "group": "g", "bits": 4, "perplexity": 9.0, "kl": None, "extra": 1},
        {"name": "b", "group": "g", "bits": 8, "perplexity": 8.0, "kl": 0.1},
    ]
    data = payload(viz.quant_curve(rows, {"perplexity": "perplexity", "kl": "KL (nats)"}))
    assert data["rows"][0]["kl"] is None and "extra" not in data["rows"][0]
    assert data["measures"] == [["perplexity", "perplexity"], ["kl", "KL (nats)"]]


def test_side_by_side_wants_a_continuation_for_each_opening():
    with pytest.raises(ValueError, match="'b' has 1 continuations for 2"):
        viz.side_by_side(["x", "y"], {"a": ["1", "2"], "b": ["1"]})


def test_surprise_wants_a_loss_for_each_piece():
    with pytest.raises(ValueError, match="2 pieces, 1 losses"):
        viz.surprise(["a", "b"], [1.0])
    data = payload(viz.surprise(["a", " b"], [0.5, 2.0], [["a"], ["c", "d"]]))
    assert data == {"pieces": ["a", " b"], "losses": [0.5, 2.0], "guesses": [["a"], ["c", "d"]]}


def test_a_table_is_html_and_text():
    shown = viz.table(("name", "bits"), [("a & b", 4), ("long name", 16)], "Sizes.")
    assert "a &amp; b" in shown._repr_html_() and "<caption>Sizes.</caption>" in shown._repr_html_()
    assert repr(shown).splitlines() == [
        "Sizes.",
        "name       bits",
        "a & b         4",
        "long name    16",
    ]
    with pytest.raises(ValueError, match="1 cells for 2"):
        viz.table(("name", "bits"), [("a",)])
