"""What is in a GGUF file, what looks wrong in it, and how two of them differ.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlab.gguf.reader import GGUFFile, Tensor

LONG = 6  # elements of an array that are shown


def inspect(file: GGUFFile, check: bool = False) -> dict[str, Any]:
    """Metadata, tensors, types, bits per weight, and warnings, as plain values for JSON.

    Args:
        file: an open file.
        check: read all tensors too, and warn of weights that are not finite.

    Chapter: GGUF, byte by byte.
    """
    kinds: dict[str, dict[str, int]] = {}
    for tensor in file.tensors.values():
        row = kinds.setdefault(tensor.kind.name, {"tensors": 0, "weights": 0, "bytes": 0})
        row["tensors"] += 1
        row["weights"] += tensor.size
        row["bytes"] += tensor.nbytes
    return {
        "file": str(file.path),
        "bytes": file.size,
        "version": file.version,
        "alignment": file.alignment,
        "metadata": {
            key: {"type": file.types[key], "value": _short(value)}
            for key, value in file.metadata.items()
        },
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.kind.name,
                "bits_per_weight": t.kind.bits_per_weight(),
                "offset": t.offset,
                "bytes": t.nbytes,
            }
            for t in file.tensors.values()
        ],
        "types": kinds,
        "bits_per_weight": None if not file.tensors else file.bits_per_weight,
        "warnings": warnings(file, check),
    }


def warnings(file: GGUFFile, check: bool = False) -> list[str]:
    """What the format allows and still looks wrong, one line each."""
    found = []
    metadata: Mapping[str, Any] = file.metadata
    name = metadata.get("general.architecture")
    if name is None:
        found.append("no general.architecture: no program knows what model this is")
    elif isinstance(name, str):
        for key in ("block_count", "context_length", "embedding_length"):
            if f"{name}.{key}" not in metadata and name not in ("imatrix", "adapter", "clip"):
                found.append(f"no {name}.{key}")
        blocks = metadata.get(f"{name}.block_count")
        there = {t.split(".")[1] for t in file.tensors if t.startswith("blk.") and t.count(".") > 1}
        if isinstance(blocks, int) and there and len(there) != blocks:
            found.append(
                f"{name}.block_count is {blocks}, and tensors of {len(there)} blocks exist"
            )
    if not file.tensors:
        found.append("no tensors")
    words, embedding = metadata.get("tokenizer.ggml.tokens"), file.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and embedding.shape else None
    if isinstance(words, list) and rows is not None and len(words) != rows:
        found.append(f"{len(words)} tokens, and {rows} rows in token_embd.weight")
    for tensor in file.tensors.values():
        if tensor.kind.name in ("Q8_1", "Q8_K"):
            found.append(f"{tensor.name} is {tensor.kind.name}, a type for activations")
    if file.data_end < file.size - file.alignment:
        found.append(f"{file.size - file.data_end} bytes behind the last tensor")
    if check:
        for tensor in file.tensors.values():
            bad = sum(int((~np.isfinite(part)).sum()) for part in _parts(tensor))
            if bad:
                found.append(f"{tensor.name}: {bad} of {tensor.size} weights are not finite")
    return found


def diff(a: GGUFFile, b: GGUFFile) -> dict[str, Any]:
    """How two files differ, as plain values for JSON.

    Returns: ``same`` (whether nothing differs), and lists of lines ``metadata`` and of rows
        ``tensors``, with the relative root mean square error where shapes agree and bytes do not.

    Chapter: GGUF, byte by byte.
    """
    metadata = []
    for key in [*a.metadata, *(k for k in b.metadata if k not in a.metadata)]:
        if key not in b.metadata or key not in a.metadata:
            metadata.append({"key": key, "only_in": "a" if key in a.metadata else "b"})
        else:
            one, two = a.metadata[key], b.metadata[key]
            if a.types[key] != b.types[key] or not _equal(one, two):
                metadata.append({"key": key, "a": _short(one), "b": _short(two)})
    tensors = []
    for name in [*a.tensors, *(t for t in b.tensors if t not in a.tensors)]:
        left, right = a.tensors.get(name), b.tensors.get(name)
        if left is None or right is None:
            tensors.append({"name": name, "only_in": "b" if left is None else "a"})
            continue
        row = {"name": name, "a": _kind(left), "b": _kind(right)}
        if left.shape != right.shape:
            tensors.append({**row, "relative_error": None})
        elif left.kind is not right.kind or not np.array_equal(left.data, right.data):
            tensors.append({**row, "relative_error": _error(left, right)})
    return {"same": not metadata and not tensors, "metadata": metadata, "tensors": tensors}


def _kind(tensor: Tensor) -> str:
    return f"{tensor.kind.name} {'x'.join(map(str, tensor.shape))}"


def _parts(tensor: Tensor, weights: int = 1 << 22) -> Any:
    """A tensor's weights, some rows at a time."""
    from qlab.gguf.quantize import dequantize

    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    rows = max(1, weights // (tensor.shape[-1] if tensor.shape else 1))
    for i in range(0, len(data), rows):
        yield dequantize(data[i : i + rows], tensor.kind.name)


def _error(a: Tensor, b: Tensor) -> float | None:
    wrong = total = 0.0
    for one, two in zip(_parts(a), _parts(b), strict=True):
        wrong += float(((one.astype(np.float64) - two) ** 2).sum())
        total += float((one.astype(np.float64) ** 2).sum())
    found = np.sqrt(wrong / total) if total else np.inf if wrong else 0.0
    return float(found) if np.isfinite(found) else None


def _short(value: Any) -> Any:
    """A value for people: long arrays by their beginning and length."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if len(value) <= LONG else [*value[:LONG].tolist(), _more(value)]
    elif isinstance(value, list):
        value = [_short(v) for v in value[:LONG]] + ([_more(value)] if len(value) > LONG else [])
    elif isinstance(value, str) and len(value) > 200:
        value = f"{value[:200]}... ({len(value)} characters)"
    return value


def _more(value: Any) -> str:
    return f"... {len(value)} in all"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
