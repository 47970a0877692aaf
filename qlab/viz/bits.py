"""Figure: flip the bits of a pattern, and see what it stands for."""

from __future__ import annotations

from typing import Any

from qlab.core import get_format
from qlab.core.floats import FloatFormat
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# Name -> what the reader chooses from.
LABELS = {
    "fp32": "fp32 (float32)",
    "tf32": "tf32",
    "bf16": "bf16 (bfloat16)",
    "fp16": "fp16 (float16)",
    "fp8_e4m3": "fp8 e4m3",
    "fp8_e5m2": "fp8 e5m2",
    "fp6_e2m3": "fp6 e2m3",
    "fp6_e3m2": "fp6 e3m2",
    "fp4_e2m1": "fp4 e2m1",
    "e8m0": "e8m0 (scales)",
    "int8": "int8",
    "uint8": "uint8",
    "int4": "int4",
}


def layout(name: str) -> dict[str, Any]:
    """How a format's bits are divided, as the scripts of the figures read it.

    Keys: ``name``, ``label``, ``kind`` (``float``, ``int``, or ``scale`` for a power of two without
    a sign), the number of bits in ``sign``, ``exponent`` and ``mantissa``; of a float also its
    ``bias``, ``special`` and ``overflow`` (``FloatFormat.specials`` and ``.overflow``).
    """
    fmt = get_format(name)
    known = {"name": name, "label": LABELS.get(name, name)}
    if not isinstance(fmt, FloatFormat):
        sign = int(fmt.signed)
        return known | {"kind": "int", "sign": sign, "exponent": 0, "mantissa": fmt.bits - sign}
    return known | {
        "kind": "float" if fmt.signed else "scale",
        "sign": int(fmt.signed),
        "exponent": fmt.exponent_bits,
        "mantissa": fmt.mantissa_bits,
        "bias": fmt.bias,
        "special": fmt.specials,
        "overflow": fmt.overflow,
    }


def bit_flipper(name: str = "fp8_e4m3", code: int = 0) -> Picture:
    """Switch the bits of a pattern, or type a number, and see value, formula, neighbours and step.

    Args:
        name: the format shown first, one of ``LABELS``.
        code: the pattern shown first.

    The script decodes and encodes by itself; a test compares it with ``qlab`` on every pattern of
    the narrow formats.
    """
    if name not in LABELS:
        raise QlabError(f"the bit flipper has no format '{name}': choose {', '.join(LABELS)}")
    layouts = [layout(known) for known in LABELS]
    bits = get_format(name).bits
    if not 0 <= code < 1 << bits:
        raise QlabError(f"{code} is no pattern of {name}: it has {bits} bits")
    rows = [
        (
            p["label"],
            p["sign"],
            p["exponent"],
            p["mantissa"],
            p.get("bias", ""),
            f"{get_format(n).max:g}",
        )
        for n, p in zip(LABELS, layouts, strict=True)
    ]
    return figure(
        "bits",
        {"formats": layouts, "start": {"format": list(LABELS).index(name), "code": code}},
        alt="A pattern of bits, each of which can be switched, with the number that it stands for, "
        "the formula, the neighbouring values and the step between them.",
        caption="What does a bit do? Switch bits, or type a number and see what the format makes "
        "of it. Watch the step: when does it change?",
        fallback=table(
            ("format", "sign bits", "exponent bits", "mantissa bits", "bias", "largest value"), rows
        ),
    )
