"""The roofline: how long a product must take on a machine, from bytes and operations alone.

Y = X Wᵀ of ``tokens`` vectors reads each weight once and uses it ``tokens`` times:

    bytes = rows · inputs · bits / 8 + tokens · (rows + inputs) · bytes of a number of X and Y
    operations = 2 · rows · inputs · tokens
    seconds >= max(bytes / bandwidth, operations / peak)

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52 (4), 2009.

Chapter: Why it is fast, or isn't.
"""

from __future__ import annotations

from typing import NamedTuple

MOST = 1 << 16  # tokens at once; a larger batch is not asked for


class Machine(NamedTuple):
    """The ceilings of a machine, for all of it or for one thread.

    Attributes:
        name: what it is called.
        bandwidth: bytes a second that memory delivers.
        floats: operations a second on floats (a multiplication and an addition are two).
        integers: operations a second on int8, added up in int32.
        number: bytes of a number of the inputs and results (4: float32).
    """

    name: str
    bandwidth: float
    floats: float
    integers: float
    number: int = 4


class Scheme(NamedTuple):
    """What a product does with a weight.

    Attributes:
        name: what it is called.
        bits: read for a weight, its share of scales counted.
        integers: whether inputs become int8, so that the products are integers.
        extra: bytes a weight that are moved besides, as when weights are first written out as
            floats and read again.
    """

    name: str
    bits: float
    integers: bool = False
    extra: float = 0.0


SIXTEEN = Scheme("16 bits", 16.0)
SCHEMES = (
    SIXTEEN,
    Scheme("8 bits, float inputs", 8.5),
    Scheme("8 bits, int8 inputs", 8.5, integers=True),
    Scheme("4 bits, float inputs", 4.5),
    Scheme("4 bits, int8 inputs", 4.5, integers=True),
    Scheme("4 bits, written out as 16 first", 4.5, extra=4.0),
    Scheme("2 bits, float inputs", 2.625),
)
# Bandwidth and operations as the makers publish them. Laptop: eight cores of AMD's Zen 4 (Ryzen 7
# 7840U) at the base clock of 3.3 GHz, each with two fused multiply-adds of eight float32 a tick and
# four times as many on int8; two channels of 8 bytes of DDR5-5600. GPU: the data sheet of H100 SXM,
# dense matrix units.
LAPTOP = Machine("laptop, 8 cores of Zen 4", 2 * 8 * 5.6e9, 8 * 3.3e9 * 32, 8 * 3.3e9 * 128)
H100 = Machine("H100 SXM", 3.35e12, 989.4e12, 1978.9e12, number=2)


def bytes_moved(scheme: Scheme, rows: int, inputs: int, tokens: int = 1, number: int = 4) -> float:
    """Bytes between memory and processor.

    Args:
        rows, inputs: of the weight (out_features, in_features).
        tokens: vectors that are multiplied at once.
        number: bytes of a number of the inputs and results (4: float32).

    Chapter: Why it is fast, or isn't.
    """
    weights = rows * inputs * (scheme.bits / 8 + scheme.extra)
    return weights + tokens * (rows + inputs) * number


def operations(rows: int, inputs: int, tokens: int = 1) -> int:
    """Multiplications and additions of a product.

    Chapter: Why it is fast, or isn't.
    """
    return 2 * rows * inputs * tokens


def peak(machine: Machine, scheme: Scheme) -> float:
    """Operations a second that the scheme can use at most."""
    return machine.integers if scheme.integers else machine.floats


def seconds(machine: Machine, scheme: Scheme, rows: int, inputs: int, tokens: int = 1) -> float:
    """The least time of a product on a machine: that of its bytes or of its operations.

    Chapter: Why it is fast, or isn't.
    """
    return max(
        bytes_moved(scheme, rows, inputs, tokens, machine.number) / machine.bandwidth,
        operations(rows, inputs, tokens) / peak(machine, scheme),
    )


def speedup(machine: Machine, scheme: Scheme, rows: int, inputs: int, tokens: int = 1) -> float:
    """Times as fast as weights of 16 bits, at best.

    Chapter: Why it is fast, or isn't.
    """
    plain = seconds(machine, SIXTEEN, rows, inputs, tokens)
    return plain / seconds(machine, scheme, rows, inputs, tokens)


def last_gain(
    machine: Machine, scheme: Scheme, rows: int, inputs: int, gain: float = 1.1
) -> int | None:
    """The largest batch at which a scheme is still ``gain`` times as fast as 16 bits.

    Returns: tokens; 0 where one token gains less already, None where no batch is too large.

    Chapter: Why it is fast, or isn't.
    """
    if speedup(machine, scheme, rows, inputs, 1) < gain:
        return 0
    if speedup(machine, scheme, rows, inputs, MOST) >= gain:
        return None
    low, high = 1, MOST  # a larger batch never gains more
    while high - low > 1:
        middle = (low + high) // 2
        if speedup(machine, scheme, rows, inputs, middle) >= gain:
            low = middle
        else:
            high = middle
    return low
