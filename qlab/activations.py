"""Activation quantization: how the input of a linear layer becomes codes, and what it multiplies.

With both weights and inputs as integers a linear layer is a product of integer matrices,

    y = s_x s_w Σ_k (x_k - z_x)(w_k - z_w)  =  s_x s_w [Σ x_k w_k - z_x Σ w_k - z_w Σ (x_k - z_x)]

whose sums a processor keeps in 32-bit integers. Source: Jacob et al. 2018, arXiv 1712.05877,
sections 2.2 and 2.3.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlab.calibrate import ActivationStats, Observer, capture, get_observer
from qlab.core import IntFormat, QTensor, Scheme, from_params, quantize
from qlab.core._array import to_float32
from qlab.errors import QlabError

# Below this magnitude every integer is a float32.
_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True, eq=False)
class ActivationQuant:
    """How the input of a layer is quantized.

    Attributes:
        scheme: of the input, such as ``int8-token`` or ``int8-asym-tensor``.
        scale: float32 (1, 1), fixed beforehand (static); None where each input brings its own
            range (dynamic).
        zero_point: int32 (1, 1), if static and asymmetric.

    Chapter: Static, dynamic, mixed: the families of methods.
    """

    scheme: Scheme
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None

    @property
    def static(self) -> bool:
        """Whether the range is fixed before the model runs."""
        return self.scale is not None

    def quantize(self, x: torch.Tensor) -> QTensor:
        """Codes of ``x`` (tokens, in_features), any floating dtype; computed in float32.

        Raises: QlabError with the position of the first NaN or infinity, or for groups that do not
            divide in_features.
        """
        if self.scale is None:
            return quantize(x, self.scheme)
        return from_params(
            to_float32(x),
            self.scale,
            self.zero_point,
            self.scheme,
            dtype=str(x.dtype).removeprefix("torch."),
        )

    def __str__(self) -> str:
        return f"{self.scheme} ({'static' if self.static else 'dynamic'})"


def integer_linear(x: QTensor, weight: QTensor) -> torch.Tensor:
    """y = X̂ Ŵᵀ (tokens, out_features), float32, by the product of the codes.

    Within a stretch of inputs where every scale is constant, the sums of products of codes are
    exact integers. They are computed as a float matrix product whose every partial sum fits the
    significand (24 bits of float32, or else 53 of float64): the integers that an int32 accumulator
    would hold, on any device. Then each sum is multiplied by both scales, and the stretches of a
    row are added in float32.

    Args:
        x: (tokens, in_features), one range a tensor, a token or a group.
        weight: (out_features, in_features), any granularity.

    Raises: QlabError if a format's codes are not integers (``integer_codes`` tells).

    Chapter: Static, dynamic, mixed: the families of methods.
    """
    if not (integer_codes(x.scheme) and integer_codes(weight.scheme)):
        raise QlabError(
            f"'{x.scheme}' times '{weight.scheme}': only integer codes can be multiplied as they "
            "are; dequantize both and multiply"
        )
    if weight.zero_point is not None and weight.zero_point.is_floating_point():
        return x.dequantize().float() @ weight.dequantize().float().T  # HQQ: no integers to add
    features = x.shape[1]
    x_codes, w_codes = _centred(x), _centred(weight)
    stretch = math.gcd(_inside(x), _inside(weight), features)
    largest = _largest(x) * _largest(weight) * stretch
    dtype = torch.float32 if largest <= _EXACT_IN_FLOAT32 else torch.float64
    x_codes, w_codes = x_codes.to(dtype), w_codes.to(dtype)
    y = torch.zeros(x.shape[0], weight.shape[0], device=x_codes.device)
    for start in range(0, features, stretch):
        sums = x_codes[:, start : start + stretch] @ w_codes[:, start : start + stretch].T
        y += sums.float() * (_scales(x, start)[:, None] * _scales(weight, start)[None, :])
    return y


def integer_codes(scheme: Scheme) -> bool:
    """Whether the codes of a scheme are integers that can be multiplied as they are."""
    return isinstance(scheme.format, IntFormat)


def activation_scheme(activations: str | Scheme) -> Scheme:
    """The scheme of activations, checked.

    Raises: QlabError for a granularity that a product of integers cannot factor out.
    """
    scheme = Scheme.parse(activations)
    kind = scheme.granularity.kind
    if kind not in ("tensor", "token", "group"):
        word = str(activations)
        raise QlabError(
            f"activations '{word}': their range is shared by a tensor, a token or a group of one "
            f"token; write '{scheme.format.name}-token' or '{scheme.format.name}-asym-tensor'"
        )
    return scheme


def fit_activations(
    model: torch.nn.Module,
    scheme: Scheme,
    observer: str | Callable[[], Observer] | None = None,
    calibration: ActivationStats | Sequence[torch.Tensor] | None = None,
    *,
    skip: tuple[str, ...] = ("lm_head",),
    progress: bool = False,
) -> tuple[Callable[[str], ActivationQuant], str]:
    """What gives each layer, by its name, its ActivationQuant; and the name of the observer.

    Args:
        model: the model whose layers run on calibration data, if any is needed.
        scheme: of the activations.
        observer: see ``quantize_model``.
        calibration: token ids, int64 (1, length) each, or what ``capture`` made of them; then
            ``observer`` may be any name that was given there.

    Raises: QlabError if a static range is asked for without data, or for a token or group.
    """
    per_tensor = scheme.granularity.kind == "tensor"
    if observer is None:
        observer = "minmax" if per_tensor else "dynamic"
    name = observer if isinstance(observer, str) else observer().name
    captured = isinstance(calibration, ActivationStats) and any(
        name in layer.observers for layer in calibration.values()
    )
    if isinstance(observer, str) and not captured and not get_observer(observer).static:
        return (lambda layer: ActivationQuant(scheme)), name
    if not per_tensor:
        raise QlabError(
            f"activations '{scheme}' with observer '{name}': a token or a group comes and goes, so "
            "its range cannot be fixed beforehand; use observer='dynamic', or granularity 'tensor'"
        )
    if isinstance(calibration, ActivationStats):
        stats = calibration
    elif calibration:
        makers = [name] if isinstance(observer, str) else {name: observer}
        stats = capture(model, calibration, makers, skip=skip, progress=progress)
    else:
        raise QlabError(
            f"activations '{scheme}' with observer '{name}' are static, which needs data: pass "
            "calibration=story.calibration(), or observer='dynamic'"
        )

    def fitted(layer: str) -> ActivationQuant:
        observers = stats[layer].observers
        if name not in observers:
            raise QlabError(
                f"observer '{name}' was not captured: there are {', '.join(observers) or 'none'}"
            )
        scale, zero = observers[name].params(scheme)
        return ActivationQuant(scheme, _matrix(scale), None if zero is None else _matrix(zero))

    return fitted, name


def _matrix(value: torch.Tensor) -> torch.Tensor:
    """One number of any shape as (1, 1), a copy."""
    return value.reshape(1, 1).clone()


def _centred(q: QTensor) -> torch.Tensor:
    """codes - zero_point, float32 (exact: at most 255 in magnitude), without padding."""
    rows, columns = q.shape
    codes: torch.Tensor = q.codes.float()[:rows, :columns]
    if q.zero_point is None:
        return codes
    high, wide = q.scheme.granularity.block_shape(q.shape)
    zero = q.zero_point.float().repeat_interleave(high, 0).repeat_interleave(wide, 1)
    return codes - zero[:rows, :columns]


def _inside(q: QTensor) -> int:
    """Inputs that share a scale."""
    inside: int = q.scheme.granularity.block_shape(q.shape)[1]
    return inside


def _scales(q: QTensor, start: int) -> torch.Tensor:
    """The scale of each row at the input ``start``, float32 (rows,)."""
    high, wide = q.scheme.granularity.block_shape(q.shape)
    column: torch.Tensor = q.scale.float()[:, start // wide]
    return column.repeat_interleave(high)[: q.shape[0]]


def _largest(q: QTensor) -> int:
    """Largest magnitude of code - zero_point."""
    fmt: Any = q.scheme.format
    if q.zero_point is None:
        return int(max(-fmt.qmin, fmt.qmax))
    return int(fmt.qmax - fmt.qmin)
