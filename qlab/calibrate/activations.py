"""ActivationStats: what flows into each linear layer, summarized while calibration data runs.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from qlab.bars import bar
from qlab.calibrate.histogram import Histogram
from qlab.calibrate.layers import linear_layers
from qlab.calibrate.observer import Observer
from qlab.calibrate.registry import get_observer
from qlab.core._array import to_float32
from qlab.errors import QlabError


class LayerStats:
    """A summary of the inputs of one linear layer. Its size does not depend on how many there were.

    Attributes:
        name: the layer's name in the model.
        tokens: how many input vectors were seen.
        histogram: of all input values.
        observers: name -> Observer, those asked for in ``capture``.
    """

    def __init__(
        self, name: str, observers: Mapping[str, Observer] | None = None, bins: int = 1 << 12
    ) -> None:
        self.name = name
        self.tokens = 0
        self.histogram = Histogram(bins)
        self.observers = dict(observers or {})
        self._absmax: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None

    def update(self, x: torch.Tensor) -> None:
        """Take in inputs (..., in_features) of any floating dtype, on any device.

        Raises: QlabError with the position of the first NaN or infinity.
        """
        x = to_float32(x.detach(), f"the input of layer '{self.name}'")
        rows = x.reshape(-1, x.shape[-1])
        if rows.numel() == 0:
            return
        absmax = rows.abs().amax(dim=0)
        squares = rows.double().square_().sum(dim=0)
        if self._absmax is None or self._squares is None:
            self._absmax, self._squares = absmax, squares
        elif self._absmax.shape != absmax.shape:
            raise QlabError(
                f"layer '{self.name}': inputs of {len(absmax)} features after "
                f"{len(self._absmax)}: use one LayerStats for each layer"
            )
        else:
            self._absmax = torch.maximum(self._absmax, absmax)
            self._squares = self._squares + squares
        self.tokens += len(rows)
        self.histogram.add(x)
        for observer in self.observers.values():
            observer.observe(x)

    @property
    def absmax(self) -> torch.Tensor:
        """Largest |x| of each input channel: float32 (in_features,)."""
        self._check()
        assert self._absmax is not None
        return self._absmax

    @property
    def mean_square(self) -> torch.Tensor:
        """Mean of x² of each input channel: float32 (in_features,), summed in float64."""
        self._check()
        assert self._squares is not None
        return (self._squares / self.tokens).float()

    @property
    def minimum(self) -> float:
        """Smallest input value."""
        self._check()
        return self.histogram.minimum

    @property
    def maximum(self) -> float:
        """Largest input value."""
        self._check()
        return self.histogram.maximum

    def _check(self) -> None:
        if self.tokens == 0:
            raise QlabError(
                f"layer '{self.name}' saw no tokens: calibrate with data that reaches it"
            )


class ActivationStats(Mapping[str, LayerStats]):
    """Layer name -> LayerStats, in the model's order.

    Attributes:
        batches: how many batches ran.
        tokens: how many token positions ran.
    """

    def __init__(self, layers: dict[str, LayerStats]) -> None:
        self._layers = layers
        self.batches = 0
        self.tokens = 0

    def __getitem__(self, name: str) -> LayerStats:
        try:
            return self._layers[name]
        except KeyError:
            some = ", ".join(list(self._layers)[:3])
            raise QlabError(f"no layer '{name}' was captured: there are {some}, ...") from None

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"ActivationStats({len(self)} layers, {self.batches} batches, {self.tokens} tokens)"


def capture(
    model: torch.nn.Module,
    calibration: Iterable[torch.Tensor],
    observers: Sequence[str] | Mapping[str, Callable[[], Observer]] = (),
    *,
    skip: tuple[str, ...] = ("lm_head",),
    bins: int = 1 << 12,
    progress: bool = False,
) -> ActivationStats:
    """Run calibration data through a model and summarize the inputs of every linear layer.

    Memory is bounded: each batch is summarized as it flows and forgotten. ``calibration`` may be a
    generator. The model is left as it was, with its hooks removed, also when something fails.

    Args:
        model: any model that takes token ids and has linear layers.
        calibration: token ids, int64 (batch, length) each.
        observers: names (``("minmax", "entropy")``), or name -> a function that makes one
            (``{"p999": lambda: Percentile(99.9)}``); each layer gets its own.
        skip: last names of layers to leave out.
        bins: bins of the histogram of each layer.
        progress: show a bar.

    Raises: QlabError for a model without linear layers, no data, or an input that is not finite
        (names layer, batch and position).
    """
    makers = (
        dict(observers)
        if isinstance(observers, Mapping)
        else {name: (lambda name=name: get_observer(name)) for name in observers}
    )
    if isinstance(observers, str):
        raise QlabError(f"observers is a list of names: write ('{observers}',)")
    modules = list(linear_layers(model, skip))
    if not modules:
        raise QlabError("the model has no linear layers to capture")
    stats = ActivationStats(
        {
            name: LayerStats(name, {key: make() for key, make in makers.items()}, bins)
            for name, _ in modules
        }
    )
    training = {module: module.training for module in model.modules()}
    hooks = []
    try:
        for name, module in modules:
            hooks.append(module.register_forward_pre_hook(_hook(stats[name]), with_kwargs=True))
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad():
            for ids in bar(calibration, "calibrating", "batch", progress):
                try:
                    model(ids.to(device))
                except QlabError as error:
                    raise QlabError(f"calibration batch {stats.batches}: {error}") from None
                stats.batches += 1
                stats.tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if stats.batches == 0:
        raise QlabError("calibration holds no batches: pass token ids, story.calibration()")
    return stats


def _hook(layer: LayerStats) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer.update(args[0] if args else next(iter(kwargs.values())))

    return hook
