"""Record what transformers' quantized cache stores, for tests/test_cache.py.

Its backend optimum-quanto is no requirement of this project:

    pip install --no-deps --target quanto-env optimum-quanto==0.2.7 ninja
    PYTHONPATH=quanto-env python tools/record_kv_cache.py

Writes tests/parity/data/kv_cache.json: the codes of keys and values drawn by NumPy, as hashes, and
their scales and shifts. The test draws the same numbers again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "tests" / "parity" / "data" / "kv_cache.json"
KINDS = ("normal", "channel", "outlier", "tiny", "constant")


def states(kind: str) -> torch.Tensor:
    """Keys (2 sequences, 2 heads, 128 tokens, 64 channels), float32."""
    rng = np.random.default_rng(sum(kind.encode()))
    x = rng.standard_normal((2, 2, 128, 64)).astype(np.float32)
    if kind == "channel":
        x[..., 5] += np.float32(20)
    elif kind == "outlier":
        x[0, 1, 77, 9] = 1000
    elif kind == "tiny":
        x *= np.float32(1e-6)
    elif kind == "constant":
        x[..., 3] = 0.75
        x[1] += np.arange(64, dtype=np.float32)
    return torch.from_numpy(x)


def digest(codes: torch.Tensor) -> str:
    """Of codes (2, 2, 128, 64)."""
    return hashlib.sha256(codes.to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()


def main() -> None:
    from transformers import LlamaConfig
    from transformers.cache_utils import QuantizedCache

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1
    )
    results = []
    for kind in KINDS:
        for bits in (2, 4):
            for axis in (0, -1):
                cache = QuantizedCache("quanto", config, bits, axis, axis, q_group_size=64)
                x = states(kind)
                cache.update(x, x, 0)
                q = cache.layers[0]._quantized_keys
                # Groups of 64 channels of a token, or of 64 tokens of a channel, in whole numbers.
                codes = ungrouped(q._data.unpack(), axis)
                results.append(
                    {
                        "kind": kind,
                        "bits": bits,
                        "axis": axis,
                        "codes": digest(codes),
                        "scale": float(q._scale.double().abs().sum()),
                        "shift": float(q._shift.double().abs().sum()),
                        "restored": float(q.dequantize().double().square().sum()),
                    }
                )
    versions = {
        name: importlib.metadata.version(name)
        for name in ("optimum-quanto", "transformers", "torch")
    }
    OUT.write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
    print(f"{len(results)} results in {OUT}")


def ungrouped(codes: torch.Tensor, axis: int) -> torch.Tensor:
    """Codes as quanto groups them, back in the shape of the states."""
    from optimum.quanto.tensor.grouped import ungroup

    return ungroup(codes, axis, torch.Size((2, 2, 128, 64)))


if __name__ == "__main__":
    main()
