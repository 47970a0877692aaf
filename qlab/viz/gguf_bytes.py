"""Figure: click a byte of a GGUF block, and see which weights it is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qlab.core import sqnr
from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.gguf import block_type, dequantize, quantize
from qlab.gguf.blocks import _iq4, _k
from qlab.gguf.blocks.base import read_half
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

SIZE = 256  # weights: one super-block, or eight blocks of 32
TYPES = ("Q4_0", "Q4_1", "Q8_0", "IQ4_NL", "Q4_K", "Q6_K")


@dataclass(frozen=True)
class Piece:
    """Some bits of a byte that belong together.

    Attributes:
        low, bits: the lowest of the bits, and how many there are.
        kind: ``code``, ``scale`` or ``minimum``.
        label: what they are, in words.
        start, count: the weights of the block that depend on them.
    """

    low: int
    bits: int
    kind: str
    label: str
    start: int
    count: int


def layout(name: str) -> list[list[Piece]]:
    """What the bits of each byte of a block are for, lowest bits first.

    Args:
        name: one of ``TYPES``.

    Returns: for each byte of a block its pieces, which cover all eight bits.

    Raises: QlabError for another type.

    Chapter: GGUF, byte by byte.
    """
    if name not in TYPES:
        raise QlabError(f"no layout of {name!r} is drawn: choose one of {', '.join(TYPES)}")
    if name == "Q4_K":
        return _float16("d", "scale", SIZE) + _float16("dmin", "minimum", SIZE) + _q4_k()
    if name == "Q6_K":
        return _q6_k() + _float16("d", "scale", SIZE)
    if name == "Q8_0":
        return _float16("d", "scale", 32) + [
            [Piece(0, 8, "code", "the code, signed,", i, 1)] for i in range(32)
        ]
    head = _float16("d", "scale", 32)
    if name == "Q4_1":
        head += _float16("m", "minimum", 32)
    return head + [_two_codes(i, i + 16) for i in range(16)]


def _float16(name: str, kind: str, count: int) -> list[list[Piece]]:
    """The two bytes of a float16, the lower one first."""
    return [
        [Piece(0, 8, kind, f"the {half} byte of {name}, a float16,", 0, count)]
        for half in ("low", "high")
    ]


def _two_codes(low: int, high: int, what: str = "the code") -> list[Piece]:
    return [Piece(0, 4, "code", what, low, 1), Piece(4, 4, "code", what, high, 1)]


def _q4_k() -> list[list[Piece]]:
    """12 bytes with eight scales and eight minima of six bits, then 128 with the codes."""
    found = []
    for kind, letter in (("scale", "s"), ("minimum", "m")):
        for i in range(4):
            found.append(
                [
                    Piece(0, 6, kind, f"{letter}{i}, all six bits,", 32 * i, 32),
                    Piece(6, 2, kind, f"the upper two bits of {letter}{i + 4}", 32 * (i + 4), 32),
                ]
            )
    for i in range(4, 8):
        found.append(
            [
                Piece(0, 4, "scale", f"the low four bits of s{i}", 32 * i, 32),
                Piece(4, 4, "minimum", f"the low four bits of m{i}", 32 * i, 32),
            ]
        )
    for i in range(128):
        first = i // 32 * 64 + i % 32
        found.append(_two_codes(first, first + 32))
    return found


def _q6_k() -> list[list[Piece]]:
    """128 bytes with low bits of codes, 64 with the upper ones, 16 scales."""
    found = []
    for i in range(128):
        first = i // 64 * 128 + i % 64
        found.append(_two_codes(first, first + 64, "the low four bits of the code"))
    for i in range(64):
        first = i // 32 * 128 + i % 32
        found.append(
            [
                Piece(2 * k, 2, "code", "the upper two bits of the code", first + 32 * k, 1)
                for k in range(4)
            ]
        )
    return found + [[Piece(0, 8, "scale", f"s{i}, signed,", 16 * i, 16)] for i in range(16)]


def gguf_bytes(weights: Any, name: str = "weights") -> Picture:
    """Bytes of 256 weights in six block types: what each is for, and what each weight became.

    Args:
        weights: (256,), finite, not all zero: a piece of a row.
        name: where they come from, for the caption.

    Raises: QlabError for another number of weights, NaN, infinity, or zeros alone.

    Chapter: GGUF, byte by byte.
    """
    x = to_numpy(weights).astype(np.float32).reshape(-1)
    if x.size != SIZE or not np.isfinite(x).all() or not x.any():
        raise QlabError(f"gguf_bytes needs {SIZE} finite weights that are not all 0")
    shown = [_shown(x, kind) for kind in TYPES]
    rows = [
        (t["name"], len(t["bytes"]), f"{t['bits']:.5g}", f"{t['sqnr']:.2f}", f"{t['worst']:.2g}")
        for t in shown
    ]
    return figure(
        "ggufbytes",
        {"types": shown, "weights": [_short(v) for v in x], "name": name},
        alt="The bytes of 256 weights in a block type of GGUF, and the weights as eight rows of "
        "32 cells; choosing a byte marks the weights that depend on it.",
        caption="What is this byte for? Choose one, with the mouse or the arrow keys, and see "
        f"which of the 256 {name} it touches; choose a weight to see how it is put together again.",
        fallback=table(("type", "bytes", "bits per weight", "SQNR (dB)", "largest error"), rows),
    )


def _shown(x: np.ndarray, name: str) -> dict[str, Any]:
    """All that the script needs to know of the weights in one type."""
    kind = block_type(name)
    data = quantize(x, name)
    decoded = dequantize(data, name)
    return {
        "name": name,
        "blockBytes": kind.block_bytes,
        "blockSize": kind.block_size,
        "bits": kind.bits_per_weight(),
        "bytes": data.tolist(),
        "pieces": [[list(asdict(p).values()) for p in byte] for byte in layout(name)],
        "codes": codes_of(data, name).tolist(),
        "decoded": [_short(v) for v in decoded],
        "formulas": formulas(data, name),
        "levels": _iq4.LEVELS.astype(int).tolist() if name == "IQ4_NL" else [],
        "sqnr": round(float(sqnr(x, decoded)), 3),
        "worst": _short(np.abs(decoded - x).max()),
    }


def codes_of(data: np.ndarray, name: str) -> np.ndarray:
    """The codes of the weights, collected bit by bit as ``layout`` says.

    Args:
        data: uint8 (row_bytes,).
        name: the block type.

    Returns: int64 (weights,); signed for Q8_0.
    """
    kind = block_type(name)
    blocks = data.reshape(-1, kind.block_bytes)
    found = np.zeros((len(blocks), kind.block_size), np.int64)
    for i, pieces in enumerate(layout(name)):
        for p in pieces:
            if p.kind == "code":
                part = blocks[:, i].astype(np.int64) >> p.low & (1 << p.bits) - 1
                found[:, p.start] |= part << (4 if "upper" in p.label else 0)
    return found.reshape(-1) - (found.reshape(-1) > 127) * 256


def formulas(data: np.ndarray, name: str) -> list[str]:
    """How a code becomes a weight, for each run of weights with the same numbers in it.

    The code stands as ``{q}``, the level of IQ4_NL as ``{level}``. Runs are equally long.
    """
    kind = block_type(name)
    blocks = data.reshape(-1, kind.block_bytes)
    if name == "Q6_K":
        d, s = read_half(blocks, 208)[0], blocks[0, 192:208].view(np.int8)
        return [f"{d:.5g} · {_signed(v)} · ({{q}} − 32)" for v in s]
    d = read_half(blocks, 0)
    if name == "Q4_K":
        dmin = read_half(blocks, 2)[0]
        s, m = _k.unpack_six_bits(blocks[:, 4:16])
        return [
            f"{d[0]:.5g} · {a} · {{q}} − {dmin:.5g} · {b}" for a, b in zip(s[0], m[0], strict=True)
        ]
    if name == "Q4_1":
        return [
            f"{a:.5g} · {{q}} + {_signed(b)}" for a, b in zip(d, read_half(blocks, 2), strict=True)
        ]
    code = {"Q4_0": "({q} − 8)", "Q8_0": "{q}", "IQ4_NL": "{level}"}[name]
    return [f"{_signed(a, False)} · {code}" for a in d]


def _signed(v: Any, brackets: bool = True) -> str:
    text = f"{abs(v):.5g}" if isinstance(v, np.floating) else f"{abs(int(v))}"
    if v >= 0:
        return text
    return f"(−{text})" if brackets else f"−{text}"


def _short(v: Any) -> float:
    return float(f"{float(v):.5g}")
