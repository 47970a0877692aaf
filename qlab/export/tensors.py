"""QTensors in a safetensors file: whole or not at all, and refused when anything in it was changed.

A QTensor ``NAME`` becomes ``NAME.packed`` (uint8), ``NAME.scale`` (in the bits of its type: uint8
for ``se8m0``, uint16 for ``sbf16``), and where it has them ``NAME.zero_point`` (packed like codes)
and ``NAME.tensor_scale`` (float32, 1). The metadata of the file:

    format      "qlab.qtensors"
    version     of this layout
    library     "numpy" or "torch": what the tensors were
    tensors     JSON: for each name the scheme, the shape and the dtype of the original, and the
                shape of the scales
    sha256      of all of the above and of every tensor: name, dtype, shape, bytes

The sum finds damage, not malice: whoever alters a file can compute it anew.

Chapter: Number formats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qlab.core import QTensor, Scheme, pack, unpack
from qlab.core._array import is_torch, to_numpy
from qlab.core.parts import PARTS, from_parts, parts_of
from qlab.core.scales import decode_scale, encode_scale
from qlab.errors import QlabError
from qlab.files import new_file

FORMAT = "qlab.qtensors"
VERSION = 1


def save_qtensors(path: str | Path, tensors: Mapping[str, QTensor]) -> None:
    """Write QTensors (CodebookTensors too) to a safetensors file; an old file is replaced.

    The file is written beside ``path`` and renamed at the end, so that there is never half of it.

    Args:
        path: such as ``weights.safetensors``.
        tensors: name -> QTensor, all of NumPy or all of torch (any device).

    Raises: QlabError if the libraries are mixed, a value is no QTensor, or the disk is full.

    Chapter: Number formats.
    """
    libraries = set()
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, q in tensors.items():
        if not isinstance(q, QTensor):
            raise QlabError(f"'{name}' is a {type(q).__name__}: only QTensors are saved here")
        libraries.add("torch" if is_torch(q.packed) else "numpy")
        about[name] = {
            "scheme": q.scheme.name,
            "shape": list(q.shape),
            "dtype": q.dtype,
            "scale_shape": [int(n) for n in q.scale.shape],
        }
        for part, array in _parts(q).items():
            arrays[f"{name}.{part}"] = np.ascontiguousarray(to_numpy(array)).reshape(array.shape)
    if len(libraries) > 1:
        raise QlabError("some QTensors are NumPy and some torch: save them to two files")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "library": libraries.pop() if libraries else "numpy",
        "tensors": json.dumps(about, sort_keys=True),
    }
    metadata["sha256"] = _digest(metadata, arrays)
    with new_file(path) as fresh:
        fresh.write_bytes(save(arrays, metadata))


def load_qtensors(path: str | Path) -> dict[str, QTensor]:
    """Read what ``save_qtensors`` wrote, into the library it came from (torch: on the CPU).

    Raises: QlabError in one line if there is no such file, it is not of this kind, is cut, was
        altered, or was written by a newer qlab.

    Chapter: Number formats.
    """
    metadata, arrays = _read(Path(path))
    if metadata.get("format") != FORMAT:
        raise QlabError(f"'{path}' holds no QTensors: it was not written by save_qtensors")
    version = metadata.get("version", "")
    if version.isdecimal() and int(version) > VERSION:
        raise QlabError(
            f"'{path}' was written by a newer qlab (layout {version}, this one reads {VERSION}): "
            "upgrade qlab"
        )
    stated = metadata.pop("sha256", "")
    if stated != _digest(metadata, arrays):
        raise QlabError(f"'{path}' was altered or damaged (its sum differs): get or save it again")
    about = json.loads(metadata["tensors"])
    if metadata["library"] == "torch":
        import torch

        parts: dict[str, Any] = {k: torch.from_numpy(v) for k, v in arrays.items()}
    else:
        parts = dict(arrays)
    return {name: _assembled(name, facts, parts) for name, facts in about.items()}


def _parts(q: QTensor) -> dict[str, Any]:
    """The arrays of a QTensor as they are stored."""
    parts = dict(parts_of(q))
    if "scale" in parts:
        parts["scale"] = encode_scale(q.scale, q.scheme.scale_word)
    if q.zero_point is not None and "float" not in str(q.zero_point.dtype):  # HQQ's are floats
        fmt = q.scheme.integer
        flat = to_numpy(q.zero_point).reshape(-1)
        parts["zero_point"] = pack((flat - fmt.qmin).astype(np.uint8), fmt.bits)
    return parts


def _assembled(name: str, facts: dict[str, Any], stored: dict[str, Any]) -> QTensor:
    scheme = Scheme.parse(facts["scheme"])
    parts = {part: stored[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in stored}
    if "scale" in parts:
        parts["scale"] = decode_scale(parts["scale"], scheme.scale_word)
    zero_point = parts.get("zero_point")
    if zero_point is not None and "float" not in str(zero_point.dtype):
        fmt, count = scheme.integer, math.prod(facts["scale_shape"])
        zeros = to_numpy(unpack(zero_point, fmt.bits, count))
        shaped = (zeros.astype(np.int32) + fmt.qmin).reshape(facts["scale_shape"])
        parts["zero_point"] = shaped
        if is_torch(parts["scale"]):
            import torch

            parts["zero_point"] = torch.from_numpy(shaped)
    return from_parts(parts, scheme, tuple(facts["shape"]), facts["dtype"])


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file."""
    if not path.is_file():
        raise QlabError(f"'{path}' is no file: check the path")
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {}), {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise QlabError(
            f"'{path}' is cut, or no safetensors file ({reason}): get or save it again"
        ) from None


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """sha256, in hexadecimal, of the metadata and the tensors, in the order of their names."""
    total = hashlib.sha256()
    for key in sorted(metadata):
        total.update(json.dumps([key, metadata[key]]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
