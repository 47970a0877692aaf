"""MSE: round to nearest with the scale that has the least squared error, not the widest range.

Clipping the largest weights of a block makes the steps for all others finer. The search for the
best compromise is exact (``qlab.calibrate.search_clip``), and needs no data.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.calibrate.clip import search_clip, search_range
from qlab.core import QTensor, Scheme, from_params, quantize
from qlab.core import granularity as gran
from qlab.core._array import Array, dtype_name, namespace, to_float32
from qlab.core.qtensor import block_range, whole_blocks
from qlab.core.scales import fit
from qlab.methods.registry import register


@dataclass(frozen=True)
class MseOptions:
    """pad: fill the tensor with zeros to whole blocks where the group size does not divide it."""

    pad: bool = False


@register(
    "mse",
    options=MseOptions,
    source="Choukroun et al. 2019, arXiv 1902.06822, section 3; Nagel et al. 2021, arXiv "
    "2106.08295, section 3.1",
    chapter="mathematics",
)
def mse(weight: Array, stats: Any, scheme: Scheme, options: MseOptions | None = None) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) with the scales of least squared error.

    Symmetric schemes: no scale does better. Asymmetric ones: no pair of scale and zero point, up
    to 5 bits (``search_range`` says what holds beyond). Where scales are stored in fewer bits than
    float32, the better of what the search found and what min-max gives, block by block.
    """
    x = whole_blocks(to_float32(weight, "weight"), scheme, (options or MseOptions()).pad)
    shape, dtype = tuple(int(s) for s in weight.shape), dtype_name(weight)
    if not scheme.symmetric:
        scale, zero_point = search_range(x, scheme)
        return from_params(x, scale, zero_point, scheme, shape=shape, dtype=dtype)
    scale = search_clip(x, scheme)
    # A scale that all blocks share (nvfp4) stays as min-max has it: no block can choose it alone.
    shared = quantize(x, scheme).tensor_scale if scheme.has_tensor_scale else None
    if scheme.scale_word != "sfp32":
        scale = best_stored(x, scale, scheme, shared)
    return from_params(x, scale, None, scheme, shape=shape, dtype=dtype, tensor_scale=shared)


def best_stored(x: Array, scale: Array, scheme: Scheme, shared: Array | None) -> Array:
    """Of the found scale, half of it (powers of two round up) and min-max: the best when stored."""
    xp = namespace(x)
    block = scheme.granularity.block_shape(tuple(x.shape))
    best, least = scale, None
    for candidate in (scale, scale / 2, fit(*block_range(x, block), scheme)[0]):
        q = from_params(x, candidate, None, scheme, tensor_scale=shared)
        error = q.dequantize() - x
        blocks, axes = gran.to_blocks(xp.astype(error, xp.float64) ** 2, block)
        error = xp.sum(blocks, axis=axes)
        if least is None:
            least = error
            continue
        better = error < least
        best, least = xp.where(better, candidate, best), xp.where(better, error, least)
    return best
