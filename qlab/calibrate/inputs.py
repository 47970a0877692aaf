"""LayerInputs: what a method may know of the inputs of one linear layer.

GPTQ needs their Hessian, AWQ their mean magnitude, learned rounding some of them as they are. All
of it is gathered while the inputs flow by, in memory that does not grow with their number.

Chapter: GPTQ.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch

from qlab.core._array import to_float32
from qlab.errors import QlabError

# Rows kept as they are, of all that flowed by.
SAMPLE = 1024
PARTS = ("hessian", "sample", "cross")


class LayerInputs:
    """A summary of inputs x (tokens, in_features) of one layer.

    Attributes:
        name: the layer's name, for messages.
        in_features: width of the inputs.
        tokens: how many inputs were taken in.
        needs: which of the costly parts are gathered: ``hessian``, ``sample``, ``cross``.

    Chapter: GPTQ.
    """

    def __init__(
        self,
        in_features: int,
        name: str = "",
        needs: Collection[str] = ("hessian", "sample"),
        seed: int = 0,
    ) -> None:
        if unknown := set(needs) - set(PARTS):
            raise QlabError(
                f"LayerInputs has no part '{min(unknown)}': there are {', '.join(PARTS)}"
            )
        self.name, self.in_features, self.needs = name, in_features, tuple(needs)
        self.tokens = 0
        self._products: torch.Tensor | None = None
        self._cross: torch.Tensor | None = None
        self._abs_sum = torch.zeros(in_features, dtype=torch.float64)
        self._absmax = torch.zeros(in_features)
        self._rows = torch.zeros(0, in_features)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._random = torch.Generator().manual_seed(seed)

    @classmethod
    def of(cls, x: torch.Tensor, full: torch.Tensor | None = None, name: str = "") -> LayerInputs:
        """The summary of one tensor x (..., in_features)."""
        needs = ("hessian", "sample") + (() if full is None else ("cross",))
        inputs = cls(x.shape[-1], name, needs)
        inputs.update(x, full)
        return inputs

    def named(self, name: str) -> LayerInputs:
        """The same inputs as those of another layer that reads them; shares the memory."""
        other = copy.copy(self)
        other.name = name
        return other

    def update(self, x: torch.Tensor, full: torch.Tensor | None = None) -> None:
        """Take in x (..., in_features) of any floating dtype.

        ``full``: the inputs of the same tokens in the model before quantization, for ``cross``.

        Raises: QlabError naming the layer and the position of the first NaN or infinity.
        """
        rows = self._checked(x)
        if not len(rows):
            return
        self.tokens += len(rows)
        self._abs_sum += rows.abs().sum(dim=0, dtype=torch.float64).cpu()
        self._absmax = torch.maximum(self._absmax, rows.abs().amax(dim=0).cpu())
        if "hessian" in self.needs:
            product = rows.T @ rows
            self._products = product if self._products is None else self._products.add_(product)
        if "cross" in self.needs:
            if full is None:
                raise QlabError(
                    f"layer '{self.name}': 'cross' compares with the inputs of the unquantized "
                    "model: pass them as full"
                )
            product = (self._checked(full) - rows).T @ rows
            self._cross = product if self._cross is None else self._cross.add_(product)
        if "sample" in self.needs:
            self._draw(rows.cpu())

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.in_features:
            raise QlabError(
                f"layer '{self.name}' has {self.in_features} inputs, got shape {tuple(x.shape)}"
            )
        x32: torch.Tensor = to_float32(x.detach(), f"the input of layer '{self.name}'")
        return x32.reshape(-1, self.in_features)

    def _draw(self, rows: torch.Tensor) -> None:
        """Each row gets a random key; those with the smallest keys stay, whatever the order."""
        keys = torch.rand(len(rows), dtype=torch.float64, generator=self._random)
        keys, rows = torch.cat([self._keys, keys]), torch.cat([self._rows, rows])
        keep = keys.argsort()[:SAMPLE]
        self._keys, self._rows = keys[keep], rows[keep]

    @property
    def hessian(self) -> torch.Tensor:
        """H = 2/tokens · Xᵀ X: float32 (in_features, in_features)."""
        self._check("hessian")
        assert self._products is not None
        return self._products * (2.0 / self.tokens)

    @property
    def cross(self) -> torch.Tensor | None:
        """2/tokens · (X_full - X)ᵀ X: float32 (in_features, in_features); None if not gathered."""
        if "cross" not in self.needs:
            return None
        self._check("cross")
        assert self._cross is not None
        return self._cross * (2.0 / self.tokens)

    @property
    def sample(self) -> torch.Tensor:
        """Some of the inputs, drawn at random: float32 (at most 1024, in_features)."""
        self._check("sample")
        return self._rows

    @property
    def mean_abs(self) -> torch.Tensor:
        """Mean |x| of each input feature: float32 (in_features,), summed in float64."""
        self._check()
        return (self._abs_sum / self.tokens).float()

    @property
    def absmax(self) -> torch.Tensor:
        """Largest |x| of each input feature: float32 (in_features,)."""
        self._check()
        return self._absmax

    def _check(self, part: str = "") -> None:
        if self.tokens == 0:
            raise QlabError(
                f"layer '{self.name}' saw no tokens: calibrate with data that reaches it"
            )
        if part and part not in self.needs:
            raise QlabError(f"layer '{self.name}': '{part}' was not gathered: name it in needs")

    def __repr__(self) -> str:
        return f"LayerInputs({self.name!r}, {self.in_features} features, {self.tokens} tokens)"
