"""The book's figures.

``show(fig, alt=..., caption=...)`` embeds a matplotlib figure that follows the page's theme.
``table`` lays out figures in rows. Every other function returns an interactive figure: plain HTML
and JavaScript over numbers computed in Python, which works without a server or a network (see
``qlab.viz.interactive``).
"""

from qlab.viz.bits import bit_flipper
from qlab.viz.calibration import Calibrated, calibration_ranges
from qlab.viz.clip_theory import clip_theory
from qlab.viz.clipping import histogram_clip
from qlab.viz.curve import quant_curve
from qlab.viz.decision import decision_map
from qlab.viz.heatmap import error_map
from qlab.viz.levels import codebook_levels
from qlab.viz.memory import memory_calculator
from qlab.viz.roofline import roofline
from qlab.viz.ruler import ruler
from qlab.viz.staircase import staircase
from qlab.viz.stories import side_by_side
from qlab.viz.style import COLORS, show, use_style
from qlab.viz.surprise import surprise
from qlab.viz.tables import table

__all__ = [
    "COLORS",
    "Calibrated",
    "bit_flipper",
    "calibration_ranges",
    "clip_theory",
    "codebook_levels",
    "decision_map",
    "error_map",
    "histogram_clip",
    "memory_calculator",
    "quant_curve",
    "roofline",
    "ruler",
    "show",
    "side_by_side",
    "staircase",
    "surprise",
    "table",
    "use_style",
]
