"""The weights of a model, packed for the kernels into one arena of bytes.

Two sources give the same parts under GGUF's names: a transformers model, whose linear layers may be
``QuantLinear``, and a GGUF file, whose blocks are taken as they are. Matrices with the same input
and of the same kind are joined (queries, keys and values; gate and up): one product in place of
three, and the input is quantized once.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from qlab.core import QTensor
from qlab.core.qtensor import assemble
from qlab.engine import forward as f
from qlab.engine.kernels import TABLES, address
from qlab.engine.linear import ADDRESS, COLUMNS, GROUP, KIND, ROWS, START, STOP
from qlab.engine.sizes import Sizes, from_config, rope_table
from qlab.errors import QlabError
from qlab.gguf import architectures
from qlab.gguf.errors import GGUFError

ALIGNMENT = 64
JOINED = ((f.Q, f.K, f.V), (f.OUT,), (f.GATE, f.UP), (f.DOWN,))


@dataclass(frozen=True)
class Blocks:
    """A matrix as GGUF stores it: uint8 (rows, row_bytes), and the name of the block type."""

    data: np.ndarray
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        from qlab.gguf.blocks import block_type

        kind = block_type(self.name)
        return len(self.data), self.data.shape[1] // kind.block_bytes * kind.block_size

    def dequantize(self) -> np.ndarray:
        """float32 (rows, columns)."""
        from qlab.gguf.quantize import dequantize

        return dequantize(self.data, self.name)


@dataclass(frozen=True)
class IntegerInputs:
    """A QTensor whose inputs are quantized to int8 as well, a scale a token (W8A8)."""

    weight: QTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape


Matrix = Any  # np.ndarray float32, QTensor, Blocks or IntegerInputs; each has a shape


class Source(Protocol):
    """What a model is read from. Names are GGUF's, such as ``blk.0.attn_q``."""

    sizes: Sizes

    def matrix(self, name: str) -> Matrix | None:
        """(out, in), queries and keys in the order of transformers; None where there is none."""

    def vector(self, name: str) -> np.ndarray | None:
        """float32, by its whole name (``blk.0.attn_q.bias``); None where there is none."""


class ModelSource:
    """A transformers model."""

    def __init__(self, model: Any) -> None:
        self.sizes = from_config(model.config)
        self.names = architectures.tensor_names(
            architectures.of_model_type(self.sizes.model_type), self.sizes.layers
        )
        self.model = model
        for part in model.modules():
            if type(part).__module__.startswith(("transformers.", "torch.")):
                continue
            if type(part).__name__ != "QuantLinear":
                raise QlabError(
                    f"the model holds a {type(part).__name__}, which the engine does not compute: "
                    "run it through transformers"
                )

    def _module(self, name: str) -> Any:
        theirs = self.names.get(name)
        if theirs is None:
            return None
        try:
            return self.model.get_submodule(theirs)
        except AttributeError:
            return None

    def matrix(self, name: str) -> Matrix | None:
        module = self._module(name)
        if module is None:
            return None
        if type(module).__name__ != "QuantLinear":
            return _floats(module.weight)
        if module.activations is None:
            return module.qweight
        word = str(module.activations.scheme)
        if (str(module.scheme), word) != ("int8-channel", "int8-token"):
            raise QlabError(
                f"{name}: inputs in '{word}' and weights in '{module.scheme}'; the engine computes "
                "integer products of 'int8-token' and 'int8-channel' only"
            )
        return IntegerInputs(module.qweight)

    def vector(self, name: str) -> np.ndarray | None:
        part, _, kind = name.rpartition(".")
        module = self._module(part)
        value = None if module is None else getattr(module, kind, None)
        return None if value is None else _floats(value)


class FileSource:
    """A GGUF file that is open. Its blocks are used as they are, without torch."""

    def __init__(self, file: Any) -> None:
        self.arch = architectures.of_file(file.metadata)
        freqs = file.tensors.get("rope_freqs.weight") if self.arch.rope_freqs else None
        values = architectures.from_metadata(
            self.arch, file.metadata, None if freqs is None else freqs.dequantize()
        )
        embeddings = file.tensors.get("token_embd.weight")
        if embeddings is None or len(embeddings.shape) != 2:
            raise GGUFError("no tensor token_embd.weight: the file holds no whole model")
        if values["num_hidden_layers"] > len(file.tensors):
            raise GGUFError(
                f"{values['num_hidden_layers']} layers in a file of {len(file.tensors)} tensors"
            )
        ids = {
            key: file.metadata.get(f"tokenizer.ggml.{key}_token_id")
            for key in ("bos", "eos", "eot")
        }
        ids = {key: value if isinstance(value, int) else None for key, value in ids.items()}
        self.sizes = from_config(
            SimpleNamespace(
                **values,
                model_type=self.arch.model_types[0],
                vocab_size=embeddings.shape[0],
                bos_token_id=ids["bos"],
                eos_token_id=[ids[k] for k in ("eos", "eot") if ids[k] is not None],
            )
        )
        self.file = file
        known = {"rope_freqs.weight"} if self.arch.rope_freqs else set()
        for name in architectures.tensor_names(self.arch, self.sizes.layers):
            known |= {f"{name}.weight", f"{name}.bias"}
        left = sorted(set(file.tensors) - known)
        if left:
            raise GGUFError(f"tensor {left[0]:.80} has no place in a {self.arch.name}")

    def _heads(self, name: str) -> int | None:
        part = name.rpartition(".")[2]
        heads = {"attn_q": self.sizes.heads, "attn_k": self.sizes.kv_heads}
        return heads.get(part) if self.arch.interleaved else None

    def matrix(self, name: str) -> Matrix | None:
        tensor = self.file.tensors.get(f"{name}.weight")
        if tensor is None:
            return None
        data, heads = tensor.data, self._heads(name)
        if data.ndim != 2:
            raise GGUFError(f"tensor {name}.weight has shape {tensor.shape}: a matrix is needed")
        if heads:
            if len(data) % (2 * heads):
                raise GGUFError(f"tensor {name}.weight has {len(data)} rows for {heads} heads")
            data = architectures.uninterleave(data, heads)  # a row is whole blocks
        return Blocks(np.ascontiguousarray(data), tensor.kind.name)

    def vector(self, name: str) -> np.ndarray | None:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        values, heads = tensor.dequantize(), self._heads(name.rpartition(".")[0])
        if heads and len(values) % (2 * heads) == 0:
            values = architectures.uninterleave(values, heads)
        return values.reshape(-1)


def _floats(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())


def join(parts: list[Matrix]) -> Matrix | None:
    """One matrix of the rows of all; None where they are of different kinds."""
    first = parts[0]
    if any(type(p) is not type(first) for p in parts):
        return None
    if len(parts) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, Blocks):
        same = all(p.name == first.name for p in parts)
        return Blocks(np.concatenate([p.data for p in parts]), first.name) if same else None
    if isinstance(first, IntegerInputs):
        inner = join([p.weight for p in parts])
        return None if inner is None else IntegerInputs(inner)
    # Scales must be those of single rows, or rows of two matrices would share one.
    rows_alone = all(p.scale.shape[:1] == p.shape[:1] and p.scheme == first.scheme for p in parts)
    if not rows_alone or first.tensor_scale is not None:
        return None
    import torch

    def stack(name: str) -> Any:
        values = [getattr(p, name) for p in parts]
        return None if values[0] is None else torch.cat([torch.as_tensor(v) for v in values])

    shape = (sum(p.shape[0] for p in parts), first.shape[1])
    return assemble(
        stack("packed"), stack("scale"), stack("zero_point"), first.scheme, shape, first.dtype, None
    )


@dataclass(frozen=True)
class Loaded:
    """A model as the compiled decoder takes it.

    Attributes:
        sizes: of the model.
        weights: its arrays.
        table: the block type in which the rows of the embedding are kept.
        kinds: name of each matrix (joined ones by the first) -> the kernel's kind, such as Q4_0.
        nbytes: bytes of matrices, vectors and embedding; RoPE's table, which is computed, left out.
    """

    sizes: Sizes
    weights: f.Weights
    table: str
    kinds: dict[str, str]
    nbytes: int


def collect(source: Source, context: int, exact: bool) -> Loaded:
    """All matrices packed into one arena, all vectors behind each other.

    Args:
        context: positions for which RoPE's table is made.
        exact: compute with the dequantized weights in floating point, and never round inputs.

    Raises: QlabError for a part that is missing or of another shape than the sizes say.
    """
    sizes = source.sizes
    rows, buffers, kinds = [], [], {}

    def place(name: str, matrix: Matrix | None) -> None:
        if matrix is None:  # joined to the one before it
            rows.append([0] * 7)
            return
        packed = _pack(matrix, exact)
        start = sum(b.nbytes for b in buffers)
        rows.append([0] * 7)
        rows[-1][KIND], rows[-1][ROWS] = int(packed.kind), packed.out_features
        rows[-1][COLUMNS], rows[-1][GROUP] = packed.in_features, packed.group_size
        rows[-1][START], rows[-1][STOP] = start, start + packed.buffer.nbytes
        rows[-1][ADDRESS] = address(packed.kind)
        buffers.append(packed.buffer)
        buffers.append(np.zeros(-packed.buffer.nbytes % ALIGNMENT, np.uint8))
        kinds[name] = packed.kind.name

    for layer in range(sizes.layers):
        for group in JOINED:
            names = [f"blk.{layer}.{f.MATRICES[i]}" for i in group]
            parts = [_checked(source, name, sizes) for name in names]
            one = join(parts)
            for i, (name, part) in enumerate(zip(names, parts, strict=True)):
                place(name, part if one is None else one if i == 0 else None)
    embedding = _checked(source, "token_embd", sizes)
    head = source.matrix("output")
    place("output", embedding if head is None else _checked(source, "output", sizes))
    numbers, places = _vectors(source)
    kind, table = _table(embedding)
    weights = f.Weights(
        _arena(buffers),
        np.array(rows, np.int64),
        numbers,
        places,
        rope_table(sizes, context),
        table,
    )
    nbytes = weights.arena.nbytes + numbers.nbytes + table.nbytes
    return Loaded(sizes, weights, kind, kinds, nbytes)


def _shapes(s: Sizes) -> dict[str, tuple[int, int]]:
    return {
        "token_embd": (s.vocabulary, s.hidden),
        "output": (s.vocabulary, s.hidden),
        "attn_q": (s.queries, s.hidden),
        "attn_k": (s.keys, s.hidden),
        "attn_v": (s.keys, s.hidden),
        "attn_output": (s.hidden, s.queries),
        "ffn_gate": (s.inner, s.hidden),
        "ffn_up": (s.inner, s.hidden),
        "ffn_down": (s.hidden, s.inner),
    }


def _checked(source: Source, name: str, sizes: Sizes) -> Matrix:
    matrix, needed = source.matrix(name), _shapes(sizes)[name.rpartition(".")[2]]
    if matrix is None or tuple(matrix.shape) != needed:
        there = "is missing" if matrix is None else f"has shape {tuple(matrix.shape)}"
        raise QlabError(f"the weight {name} {there}: the model needs {needed}")
    return matrix


def _pack(matrix: Matrix, exact: bool) -> Any:
    """For the kernels; ``exact`` keeps inputs as they are."""
    from qlab.kernels.cpu.pack import pack, pack_gguf

    if isinstance(matrix, np.ndarray):
        return pack(_halves(matrix))
    if isinstance(matrix, Blocks):
        if exact and matrix.name not in ("F32", "F16", "BF16"):
            return pack(matrix.dequantize())
        return pack_gguf(matrix.data, matrix.name, matrix.shape[1])
    if isinstance(matrix, IntegerInputs):
        if exact:
            return pack(matrix.weight, "float")
        return pack(matrix.weight, "token")
    return pack(matrix, "float" if exact else "blocks")


def _halves(x: np.ndarray) -> Any:
    """Numbers that bfloat16 holds exactly, in bfloat16: half the bytes."""
    if not is_bfloat16(x):
        return x
    import torch

    return torch.from_numpy(x).to(torch.bfloat16)


def _arena(buffers: list[np.ndarray]) -> np.ndarray:
    """All buffers behind each other, beginning at a multiple of 64 bytes."""
    size = sum(b.nbytes for b in buffers)
    room = np.empty(size + ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % ALIGNMENT
    arena, at = room[skip : skip + size], 0
    for i, b in enumerate(buffers):
        arena[at : at + b.nbytes] = b
        at += b.nbytes
        buffers[i] = b[:0]  # let go of it
    return arena


def _vectors(source: Source) -> tuple[np.ndarray, np.ndarray]:
    s = source.sizes
    places = np.full((s.layers + 1, len(f.VECTORS) + len(f.HEAD_VECTORS)), -1, np.int64)
    parts: list[np.ndarray] = []

    def put(row: int, column: int, names: list[str], counts: list[int], needed: bool) -> None:
        found = [source.vector(name) for name in names]
        if not needed and all(one is None for one in found):
            return
        places[row, column] = sum(p.size for p in parts)
        for name, one, count in zip(names, found, counts, strict=True):
            one = np.zeros(count, np.float32) if one is None and not needed else one
            if one is None or one.shape != (count,):
                there = "is missing" if one is None else f"has shape {one.shape}"
                raise QlabError(f"the vector {name} {there}: the model needs ({count},)")
            parts.append(one)

    for i in range(s.layers):
        blk = f"blk.{i}."
        put(i, f.ATTN_NORM, [blk + "attn_norm.weight"], [s.hidden], True)
        put(i, f.FFN_NORM, [blk + "ffn_norm.weight"], [s.hidden], True)
        qkv = [f"{blk}{f.MATRICES[j]}.bias" for j in JOINED[0]]
        put(i, f.QKV_BIAS, qkv, [s.queries, s.keys, s.keys], False)
        put(i, f.O_BIAS, [blk + "attn_output.bias"], [s.hidden], False)
        gate_up = [f"{blk}{f.MATRICES[j]}.bias" for j in JOINED[2]]
        put(i, f.GATE_UP_BIAS, gate_up, [s.inner, s.inner], False)
        put(i, f.DOWN_BIAS, [blk + "ffn_down.bias"], [s.hidden], False)
        normed = s.model_type == "qwen3"
        for column, name in ((f.Q_NORM, "attn_q_norm"), (f.K_NORM, "attn_k_norm")):
            if normed:
                put(i, column, [f"{blk}{name}.weight"], [s.head_dim], True)
    put(s.layers, f.ATTN_NORM, ["output_norm.weight"], [s.hidden], True)
    put(s.layers, f.O_BIAS, ["output.bias"], [s.vocabulary], False)
    return np.concatenate(parts), places


def _table(embedding: Matrix) -> tuple[str, np.ndarray]:
    """How the rows are kept, and their bytes, uint8 (tokens, bytes of a row)."""
    if isinstance(embedding, Blocks):
        if embedding.name in TABLES:
            return embedding.name, embedding.data
        embedding = embedding.dequantize()
    elif not isinstance(embedding, np.ndarray):
        raise QlabError("the embedding is quantized: the engine reads that from GGUF files only")
    if is_bfloat16(embedding):
        return "BF16", (embedding.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return "F32", embedding.view(np.uint8)


def is_bfloat16(x: np.ndarray) -> bool:
    """Whether bfloat16 holds these float32 numbers exactly: their last 16 bits are 0."""
    return not bool((x.view(np.uint32) & 0xFFFF).any())
