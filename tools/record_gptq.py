"""Record what gptqmodel and llm-compressor make of small matrices, for tests/parity/test_gptq.py.

Their environments conflict with ours and with each other, so each runs in one of its own:

    python -m venv A && A/bin/pip install torch==2.13.0 gptqmodel==7.6.0
    A/bin/python tools/record_gptq.py gptqmodel
    python -m venv B && B/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    B/bin/python tools/record_gptq.py llmcompressor

Writes tests/parity/data/gptq_TOOL.npz with the codes, scales and zero points of all cases, and the
versions. The inputs of the layers are small integers over four: the sums in the Hessian are exact,
so every machine has the same Hessian to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "tests" / "parity" / "data"
TOOLS = ("gptqmodel", "llmcompressor")
ROWS = 32


@dataclass(frozen=True)
class Case:
    """One layer, quantized by one tool.

    Attributes:
        name: of the case.
        scheme: in qlab's words.
        options: of qlab's method.
        settings: of the tool.
        columns: in_features.
        kind: of the inputs: ``plain``, ``dead`` (some are always zero), ``few`` (fewer samples
            than features, so that the Hessian is singular), ``chapter`` (what the book
            shows) or ``positive`` (no weight below zero).
    """

    name: str
    scheme: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    columns: int = 256
    kind: str = "plain"


BLOCK, STATIC = {"scales": "block"}, {"scales": "static"}
ORDER = {"act_order": True}
CASES = {
    "gptqmodel": (
        Case("int4-g128", "int4-full-g128", BLOCK),
        Case("int4-g64", "int4-full-g64", BLOCK),
        Case("int4-g32", "int4-full-g32", BLOCK),
        Case("int3-channel", "int3-full-channel", BLOCK),
        Case("int8-channel", "int8-full-channel", BLOCK),
        Case("int2-g64", "int2-full-g64", BLOCK),
        Case("int4-asym-g64", "uint4-g64", BLOCK),
        Case("int3-asym-g32", "uint3-g32", BLOCK),
        Case("int4-asym-channel", "uint4-channel", BLOCK),
        Case("damping", "int4-full-g128", {**BLOCK, "damping": 0.05}),
        Case("odd width", "int4-full-g32", BLOCK, columns=160),
        Case("static groups", "int4-full-g64", STATIC, {"static_groups": True}),
        Case("order", "int4-full-g64", ORDER, {"static_groups": True, "desc_act": True}),
        Case("order, channel", "int3-full-channel", ORDER, {"desc_act": True}),
        Case("dead inputs", "int4-full-g128", BLOCK, kind="dead"),
        Case("few samples", "int4-full-g128", BLOCK, kind="few"),
        Case("positive", "int4-full-channel", BLOCK, kind="positive"),
        Case("chapter", "int4-full-g16", BLOCK, columns=48, kind="chapter"),
        Case("gptaq", "int4-full-g128", {**BLOCK, "alpha": 0.25}),
        Case("gptaq, order", "int3-full-g64", {**ORDER, "alpha": 0.25},
             {"static_groups": True, "desc_act": True}),
    ),
    "llmcompressor": (
        Case("int4-g128", "int4-full-g128", STATIC),
        Case("int4-g64", "int4-full-g64", STATIC),
        Case("int4-g32", "int4-full-g32", STATIC),
        Case("int3-channel", "int3-full-channel", STATIC),
        Case("int8-channel", "int8-full-channel", STATIC),
        Case("int4-asym-g64", "int4-asym-g64", STATIC),
        Case("int3-asym-channel", "int3-asym-channel", STATIC),
        Case("damping", "int4-full-g128", {**STATIC, "damping": 0.1}),
        Case("odd width", "int4-full-g32", STATIC, columns=160),
        Case("order", "int4-full-g64", ORDER, {"actorder": "weight"}),
        Case("dead inputs", "int4-full-g128", STATIC, kind="dead"),
        Case("few samples", "int4-full-g128", STATIC, kind="few"),
        Case("chapter", "int4-full-g16", STATIC, columns=48, kind="chapter"),
        Case("fp8", "fp8_e4m3-channel", STATIC, {"type": "float"}),
    ),
}  # fmt: skip


def case_inputs(case: Case) -> dict[str, np.ndarray]:
    """weight (32, columns), x and full (tokens, columns), float32, from the name of the case.

    The first rows of the weight are hard: zeros, one value, tiny, with an outlier. ``full`` are the
    inputs that an unquantized model would have had.
    """
    if case.kind == "chapter":
        rng = np.random.default_rng(0)
        x = rng.integers(-3, 4, (256, 6)) @ rng.integers(-1, 2, (6, 48))
        x += rng.integers(-1, 2, x.shape)
        w = rng.standard_normal((6, 48)).astype(np.float32)
        return {"weight": w, "x": x.astype(np.float32), "full": x.astype(np.float32)}
    rng = np.random.default_rng(sum(case.name.encode()) + case.columns)
    tokens = 64 if case.kind == "few" else 512
    mixed = rng.integers(-3, 4, (tokens, 16)) @ rng.integers(-1, 2, (16, case.columns))
    x = (mixed + rng.integers(-6, 7, mixed.shape)) / 4
    full = x + rng.integers(-2, 3, x.shape) / 4
    if case.kind == "dead":
        x[:, 7::31] = 0
        full[:, 7::31] = 0
    w = 0.05 * rng.standard_normal((ROWS, case.columns))
    w[0], w[1], w[2] = 0, -0.03, 1e-30 * w[2]
    w[3, case.columns // 3] = 4
    if case.kind == "positive":
        w = np.abs(w)
    return {"weight": w.astype(np.float32), "x": x.astype(np.float32),
            "full": full.astype(np.float32)}  # fmt: skip


def moments(x: Any, full: Any) -> tuple[Any, Any]:
    """The Hessian and the cross moment, as ``qlab.calibrate.LayerInputs`` has them."""
    return 2 / len(x) * (x.T @ x), 2 / len(x) * ((full - x).T @ x)


def fingerprint() -> str:
    """Bits of a factorization and a product by torch: other processors sum in another order.

    Computed by torch alone, so that every environment can say whether its arithmetic is the same.
    """
    import torch

    given = case_inputs(CASES["gptqmodel"][0])
    h, _ = moments(torch.from_numpy(given["x"]), torch.from_numpy(given["full"]))
    h.diagonal().add_(0.01 * h.diagonal().mean())
    factor = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(factor, upper=True)
    product = torch.from_numpy(given["weight"])[:, :128] @ upper[:128, 128:]
    bits = upper.contiguous().numpy().tobytes() + product.numpy().tobytes()
    return hashlib.sha256(bits).hexdigest()


def scheme_words(scheme: str) -> tuple[int, bool, int]:
    """(bits, symmetric, group size or -1)"""
    words = scheme.split("-")
    bits = int("".join(c for c in words[0].split("_")[0] if c.isdigit()))
    symmetric = words[0][0] != "u" and "asym" not in words
    group = -1 if words[-1] == "channel" else int(words[-1][1:])
    return bits, symmetric, group


def gptqmodel_case(case: Case) -> dict[str, np.ndarray]:
    import torch
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig
    from gptqmodel.quantization.gptaq import GPTAQ
    from gptqmodel.quantization.gptq import GPTQ

    given = {k: torch.from_numpy(v) for k, v in case_inputs(case).items()}
    bits, symmetric, group = scheme_words(case.scheme)
    config = QuantizeConfig(
        bits=bits, group_size=group, sym=symmetric, act_group_aware=False,
        damp_percent=case.options.get("damping", 0.01), **{"desc_act": False, **case.settings},
    )  # fmt: skip
    if case.options.get("alpha"):
        config.gptaq = GPTAQConfig(alpha=case.options["alpha"])
    layer = torch.nn.Linear(case.columns, len(given["weight"]), bias=False)
    layer.weight.data = given["weight"].clone()
    # GPTAQ's constructor asks for a whole model's inputs; what it works with is set below.
    tool = GPTQ(layer, config)
    tool.quantizer.configure(perchannel=True)
    if case.options.get("alpha"):
        tool.__class__ = GPTAQ
        tool.H, tool.dXXT = moments(given["x"], given["full"])
        tool.nsamples = 1
        values, scale, zero, *_ = tool.quantize()
    else:
        tool.add_batch(given["x"], None)
        tool.finalize_hessian()
        assert torch.equal(tool.H, moments(given["x"], given["full"])[0])
        tool.add_batch = None
        values, scale, zero, *_ = tool.quantize()
    # Codes around zero where ours are signed.
    shift = 0 if case.scheme[0] == "u" else 1 << (bits - 1)
    return _codes(values, scale, zero - shift, case.columns)


def llmcompressor_case(case: Case) -> dict[str, np.ndarray]:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    given = {k: torch.from_numpy(v) for k, v in case_inputs(case).items()}
    bits, symmetric, group = scheme_words(case.scheme)
    strategy = {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, **strategy, **{"type": "int", **case.settings}
    )
    w = given["weight"]
    parts = w.reshape(len(w), -1, w.shape[1] if group < 0 else group)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    hessian, _ = moments(given["x"], given["full"])
    values, _, failed = quantize_weight(
        w.clone()[None], hessian[None], scale[None], zero[None], None, args,
        percdamp=case.options.get("damping", 0.01),
    )  # fmt: skip
    assert not bool(failed.any())
    if case.settings.get("type") == "float":
        return {"values": values[0].numpy(), "scale": scale.numpy()}
    return _codes(values[0], scale, zero, case.columns)


def _codes(values: Any, scale: Any, zero: Any, columns: int) -> dict[str, np.ndarray]:
    """Codes as small integers, from which the tool's values come back to the bit."""
    import torch

    width = columns // scale.shape[1]
    s, z = (t.float().repeat_interleave(width, 1) for t in (scale, zero))
    codes = torch.round(values / s) + z
    assert torch.equal((codes - z) * s, values)
    return {"codes": codes.to(torch.int16).numpy(), "scale": scale.float().numpy(),
            "zero_point": zero.to(torch.int16).numpy()}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    tool = parser.parse_args(argv).tool
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    run = gptqmodel_case if tool == "gptqmodel" else llmcompressor_case
    import torch

    torch.set_num_threads(1)
    arrays = {}
    for case in CASES[tool]:
        for part, array in run(case).items():
            arrays[f"{case.name}/{part}"] = array
        print(f"{case.name}: recorded")
    names = [tool, "torch", "numpy"] + (["compressed-tensors"] if tool == "llmcompressor" else [])
    versions = {n: importlib.metadata.version(n) for n in names}
    arrays["fingerprint"] = np.array(fingerprint())
    arrays["versions"] = np.array(json.dumps(versions))
    DATA.mkdir(parents=True, exist_ok=True)
    out = DATA / f"gptq_{tool}.npz"
    np.savez_compressed(out, **arrays)
    print(f"wrote {out} ({out.stat().st_size / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
