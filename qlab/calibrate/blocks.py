"""BlockRunner: a decoder one block at a time, on the inputs that calibration data gives each block.

A method that looks at what flows into a layer needs the model's inputs up to that layer and nothing
beyond. So the calibration samples go through block after block; between two blocks only their
hidden states are kept. The source of the scheme is GPTQ's, Frantar et al. 2023, arXiv 2210.17323,
section 4.

Chapter: GPTQ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qlab.bars import bar
from qlab.calibrate.inputs import LayerInputs
from qlab.calibrate.layers import is_linear
from qlab.errors import QlabError


@dataclass(frozen=True)
class InputGroup:
    """Linear layers of one block that read the same input, such as the query, key and value.

    Attributes:
        layers: their names within the block, in the order in which they run.
        norm: name within the block of the norm whose output they read, or None.
    """

    layers: tuple[str, ...]
    norm: str | None = None


@dataclass
class Block:
    """One decoder block and the inputs of every calibration sample to it.

    Attributes:
        name: in the model; "" where the whole model is the one block.
        module: the block, as it is now in the model: what is changed in it counts at the next run.
        inputs: hidden states of each sample, (1, length, width).
        extras: the other arguments of each sample (masks, positions), as the model passed them.
        skip: last names of layers that count for nothing.
    """

    name: str
    module: nn.Module
    inputs: list[torch.Tensor]
    extras: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)
    skip: tuple[str, ...] = ()

    def full_name(self, layer: str) -> str:
        """The name in the model of a layer of this block."""
        return f"{self.name}.{layer}" if self.name else layer

    @torch.no_grad()
    def call(self, sample: int, module: nn.Module | None = None) -> torch.Tensor:
        """The output for one sample, of the block or of another module in its place."""
        args, kwargs = self.extras[sample]
        out = (module or self.module)(self.inputs[sample], *args, **kwargs)
        if isinstance(out, torch.Tensor):
            return out
        first: torch.Tensor = out[0]
        return first

    def run(self) -> list[torch.Tensor]:
        """The outputs for all samples."""
        return [self.call(i) for i in range(len(self.inputs))]

    def linear_layers(self) -> list[tuple[str, nn.Module]]:
        """(name within the block, layer), in the order of the module."""
        return [
            (name, layer)
            for name, layer in self.module.named_modules()
            if is_linear(layer) and name.rsplit(".", 1)[-1] not in self.skip
        ]

    def groups(self) -> list[InputGroup]:
        """The linear layers by the input that they read, in the order in which they run.

        Found by running one sample and comparing where the inputs lie in memory, so it holds for
        any architecture. Layers that did not run (an expert that no token chose) come last, alone.
        """
        read: dict[tuple[int, int], list[str]] = {}
        made: dict[tuple[int, int], str] = {}
        kept = []  # nothing may be freed: its address would serve another tensor
        linears = dict(self.linear_layers())

        def reads(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = _first(args, kwargs)
                kept.append(x)
                read.setdefault((x.data_ptr(), x.numel()), []).append(name)

            return hook

        def makes(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                kept.append(out)
                made[out.data_ptr(), out.numel()] = name

            return hook

        hooks: list[Any] = []
        for name, module in self.module.named_modules():
            if name in linears:
                hooks.append(module.register_forward_pre_hook(reads(name), with_kwargs=True))
            elif "norm" in type(module).__name__.lower():
                hooks.append(module.register_forward_hook(makes(name)))
        try:
            self.call(0)
        finally:
            for hook in hooks:
                hook.remove()
        groups = [InputGroup(tuple(names), made.get(key)) for key, names in read.items()]
        ran = {name for group in groups for name in group.layers}
        return groups + [InputGroup((name,)) for name in linears if name not in ran]

    def gather(
        self,
        layers: Collection[str],
        needs: Collection[str] = ("hessian", "sample"),
        full: Block | None = None,
    ) -> dict[str, LayerInputs]:
        """LayerInputs of some layers (names within the block), over all samples.

        Those of layers that read one input share their memory. ``full``: the same block of the
        unquantized model with its own inputs, for ``cross``.

        Raises: QlabError naming layer, sample and position of an input that is not finite.
        """
        owner: dict[str, str] = {}
        for group in self.groups():
            wanted = [name for name in group.layers if name in layers]
            owner.update({name: wanted[0] for name in wanted})
        modules = dict(self.module.named_modules())
        found = {
            name: LayerInputs(_in_features(modules[name]), self.full_name(name), needs)
            for name in dict.fromkeys(owner.values())
        }
        for sample in range(len(self.inputs)):
            seen = self._inputs_of(list(found), sample)
            true = full._inputs_of(list(found), sample) if full is not None else {}
            for name, inputs in found.items():
                for i, x in enumerate(seen[name]):
                    try:
                        inputs.update(x, true[name][i] if full is not None else None)
                    except QlabError as error:
                        raise QlabError(f"calibration sample {sample}: {error}") from None
        return {name: found[owner[name]].named(self.full_name(name)) for name in layers}

    def _inputs_of(self, names: list[str], sample: int) -> dict[str, list[torch.Tensor]]:
        """What flows into each named layer for one sample."""
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        modules = dict(self.module.named_modules())

        def hook(name: str) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen[name].append(_first(args, kwargs))

            return keep

        hooks = [
            modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in names
        ]
        try:
            self.call(sample)
        finally:
            for one in hooks:
                one.remove()
        return seen


class BlockRunner:
    """Iterates the decoder blocks of a model with the calibration samples at their doors.

        for block in BlockRunner(model, calibration):
            block.run()          # outputs, with the block as it is
            ...                  # change the block: the next one sees what it now makes

    A model without a list of blocks is one block. Between blocks only hidden states are kept.

    Raises: QlabError for no calibration data, or token ids of a wrong shape or type.

    Chapter: GPTQ.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Sequence[torch.Tensor],
        *,
        skip: tuple[str, ...] = ("lm_head",),
        progress: bool = False,
    ) -> None:
        self.model, self.skip, self.progress = model, skip, progress
        samples = _checked(calibration, model)
        self.blocks = decoder_blocks(model)
        self._arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self._hidden: list[torch.Tensor] = []
        if self.blocks[0][0] == "":
            self._hidden = samples
            self._arguments = [[((), {})] * len(samples)]
        else:
            self._capture(samples)

    def _capture(self, samples: list[torch.Tensor]) -> None:
        """Run each sample once: the first block's input, and all other arguments of each block."""
        self._arguments = [[] for _ in self.blocks]

        def hook(index: int) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if index == 0:
                    self._hidden.append(hidden.detach())
                self._arguments[index].append((tuple(args[1:]), kwargs))

            return keep

        hooks = [
            module.register_forward_pre_hook(hook(i), with_kwargs=True)
            for i, (_, module) in enumerate(self.blocks)
        ]
        with _evaluating(self.model), torch.no_grad():
            try:
                for ids in samples:
                    self.model(ids, use_cache=False)
            finally:
                for one in hooks:
                    one.remove()

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Block]:
        last = len(self.blocks) - 1
        for index, (name, module) in enumerate(
            bar(self.blocks, "quantizing", "block", self.progress)
        ):
            block = Block(name, module, self._hidden, self._arguments[index], self.skip)
            with _evaluating(self.model):
                yield block
                if index < last:
                    self._hidden = block.run()


def decoder_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, block) of the decoder's blocks, in order.

    They are the longest list of modules that holds linear layers; a model without one is itself the
    only block, named "".
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(is_linear(m) for m in module.modules())
    ]
    if not lists:
        return [("", model)]
    weights = {
        name: sum(m.weight.numel() for m in module.modules() if is_linear(m))
        for name, module in lists
    }
    # Of lists within lists (experts of a block) the outer one has the most weights.
    name, blocks = max(lists, key=lambda one: weights[one[0]])
    return [(f"{name}.{i}", block) for i, block in enumerate(blocks)]


def _checked(calibration: Sequence[torch.Tensor], model: nn.Module) -> list[torch.Tensor]:
    """The token ids as a list, on the model's device."""
    if isinstance(calibration, torch.Tensor):
        calibration = [calibration]
    samples = list(calibration)
    if not samples:
        raise QlabError("calibration holds no samples: pass token ids, story.calibration()")
    device = next(model.parameters()).device
    for i, ids in enumerate(samples):
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.is_floating_point():
            what = f"shape {tuple(ids.shape)}" if isinstance(ids, torch.Tensor) else repr(type(ids))
            raise QlabError(
                f"calibration sample {i}: expected token ids, int64 (1, length), got {what}"
            )
        if ids.shape[1] == 0:
            raise QlabError(f"calibration sample {i} has no tokens: leave it out")
    return [ids.to(device) for ids in samples]


class _evaluating:
    """Put a model into evaluation mode, and each module back into its own at the end."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = {module: module.training for module in model.modules()}
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def _in_features(layer: Any) -> int:
    """Width of the input of a linear layer (GPT-2's Conv1D stores its weight transposed)."""
    return int(layer.weight.shape[0 if type(layer).__name__ == "Conv1D" else 1])
