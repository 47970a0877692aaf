"""Measuring a model: perplexity, divergence, overlap, size, speed."""

from qlab.evaluate.divergence import Divergence, divergence
from qlab.evaluate.overlap import Overlap, overlap
from qlab.evaluate.perplexity import TextScore, perplexity, score_texts
from qlab.evaluate.size import Size, model_size
from qlab.evaluate.speed import tokens_per_second

__all__ = [
    "Divergence",
    "Overlap",
    "Size",
    "TextScore",
    "divergence",
    "model_size",
    "overlap",
    "perplexity",
    "score_texts",
    "tokens_per_second",
]
