"""Scheme: a format, a granularity, and how zero and the scales are kept; in one word.

    int8-channel    int4-asym-g128    int4-full-g32    int3-g64-sfp16    fp8_e4m3-tensor    nf4-g64

The microscaling formats have names of their own:

    mxfp8       fp8_e4m3-g32-se8m0          mxfp8_e5m2  fp8_e5m2-g32-se8m0
    mxfp6       fp6_e2m3-g32-se8m0          mxfp6_e3m2  fp6_e3m2-g32-se8m0
    mxfp4       fp4_e2m1-g32-se8m0          nvfp4       fp4_e2m1-g16-sfp8_e4m3

Sources: Open Compute Project, Microscaling Formats (MX) v1.0, 2023; NVFP4: NVIDIA, "Introducing
NVFP4", 2025.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from qlab.core.formats import (
    FloatFormat,
    Format,
    IntFormat,
    LearnedFormat,
    find_format,
    format_names,
    get_format,
)
from qlab.core.granularity import Granularity
from qlab.errors import QlabError

# Word -> (array API dtype that holds the scale, bits stored, smallest and largest scale). A scale
# beyond these is clipped to them. What NumPy has no type for is held in a float32 that has such a
# value, and stored as its bits. sfp8_e4m3 starts at its smallest normal number, 2^-6, as NVFP4 does
# in torchao, and comes with one float32 scale of the whole tensor: its range alone is too narrow.
SCALE_DTYPES = {
    "sfp32": ("float32", 32, 1.1754943508222875e-38, 3.4028234663852886e38),
    "sfp16": ("float16", 16, 2.0**-24, 65504.0),
    "sbf16": ("float32", 16, 1.1754943508222875e-38, 3.3895313892515355e38),
    "se8m0": ("float32", 8, 2.0**-127, 2.0**127),
    "sfp8_e4m3": ("float32", 8, 2.0**-6, 448.0),
}

ALIASES = {
    "mxfp8": "fp8_e4m3-g32-se8m0",
    "mxfp8_e5m2": "fp8_e5m2-g32-se8m0",
    "mxfp6": "fp6_e2m3-g32-se8m0",
    "mxfp6_e3m2": "fp6_e3m2-g32-se8m0",
    "mxfp4": "fp4_e2m1-g32-se8m0",
    "nvfp4": "fp4_e2m1-g16-sfp8_e4m3",
}
_SHORT = {long: short for short, long in ALIASES.items()}


@dataclass(frozen=True)
class Scheme:
    """How a tensor is represented; how the codes are chosen is the method's business.

    Attributes:
        format: what a code stands for.
        granularity: which elements share a scale (and a zero point).
        symmetric: zero_point is 0 and the range restricted, else the range is fitted to min, max.
        scale_word: how scales are stored, a key of ``SCALE_DTYPES``.
        full: symmetric with all codes of a signed integer, -2^(b-1) too (``affine_params`` says
            what the scale is then).
    """

    format: Format
    granularity: Granularity = field(default_factory=lambda: Granularity("channel"))
    symmetric: bool = True
    scale_word: str = "sfp32"
    full: bool = False

    def __post_init__(self) -> None:
        fmt, kind = self.format, self.granularity.kind
        if fmt.name == "e8m0":
            raise QlabError("e8m0 has neither zero nor sign: use it for scales, as in 'int4-se8m0'")
        if not fmt.affine and not self.symmetric:
            raise QlabError(f"{fmt.name} has no zero point: leave out 'asym', or use an integer")
        if self.full and not (self.symmetric and fmt.affine and fmt.signed and fmt.bits > 1):
            raise QlabError(
                f"'full' does not fit {fmt.name}{'' if self.symmetric else '-asym'}: it is the "
                "whole range of symmetric signed integers, such as 'int4-full-g32'"
            )
        if self.has_tensor_scale and kind in ("tensor", "global"):
            raise QlabError(
                f"'sfp8_e4m3' comes with a scale of the whole tensor, which '{kind}' is already: "
                "use smaller blocks, such as g16, or another scale"
            )
        if fmt.name == "binary" and kind == "global":
            raise QlabError("the scale of 'binary' is a mean of its block: use 'binary-tensor'")

    @property
    def has_tensor_scale(self) -> bool:
        """Whether one float32 scale of the whole tensor multiplies the scales of the blocks."""
        return self.scale_word == "sfp8_e4m3"

    @property
    def is_cast(self) -> bool:
        """Whether the format is wide enough to need no scale (16 bits and more): it is 1."""
        return isinstance(self.format, FloatFormat) and self.format.bits >= 16

    @property
    def integer(self) -> IntFormat:
        """The format, if it is an integer.

        Raises: QlabError if it is not.
        """
        if not isinstance(self.format, IntFormat):
            raise QlabError(f"scheme '{self}': {self.format.name} is no integer format")
        return self.format

    @property
    def name(self) -> str:
        """The scheme as one word; ``Scheme.parse(scheme.name) == scheme``."""
        words = [self.format.name]
        # An unsigned format can only be asymmetric, so the word would say nothing.
        if not self.symmetric and self.format.signed:
            words.append("asym")
        if self.full:
            words.append("full")
        words.append(self.granularity.name)
        if self.scale_word != "sfp32":
            words.append(self.scale_word)
        name = "-".join(words)
        return _SHORT.get(name, name)

    @staticmethod
    def parse(word: str | Scheme) -> Scheme:
        """Read a scheme from its word.

        Raises: QlabError naming the part that is not understood, what may stand there, and the
            nearest schemes there are.
        """
        if isinstance(word, Scheme):
            return word
        if not isinstance(word, str) or not word:
            raise QlabError(f"a scheme is a word such as 'int4-g128', got {word!r}")
        lower = word.lower()
        first, *rest = ALIASES.get(lower, lower).split("-")
        if first in ALIASES:
            raise QlabError(f"scheme '{word}': '{first}' is '{ALIASES[first]}', nothing is added")
        fmt = find_format(first)
        if fmt is None:
            raise QlabError(f"unknown scheme '{word}': did you mean {_nearest(lower)}?")
        granularity, symmetric, scale, full = None, fmt.signed, "sfp32", False
        for part in rest:
            if part in ("asym", "sym"):
                if part == "sym" and not fmt.signed:
                    raise QlabError(f"scheme '{word}': {fmt.name} has no negative codes to mirror")
                symmetric = part == "sym"
            elif part == "full":
                full = True
            elif part in SCALE_DTYPES:
                scale = part
            elif (parsed := Granularity.parse(part)) is not None:
                if granularity is not None:
                    raise QlabError(f"scheme '{word}' names two granularities: keep one")
                granularity = parsed
            else:
                raise QlabError(
                    f"scheme '{word}': '{part}' is not understood (did you mean "
                    f"{_nearest(lower)}?); after the format come asym or full, one of tensor, "
                    "channel, token, g<size>, b<rows>x<columns>, global, and one of "
                    f"{', '.join(SCALE_DTYPES)}"
                )
        if granularity is None:
            granularity = Granularity("tensor" if _one_block(fmt) else "channel")
        return Scheme(fmt, granularity, symmetric, scale, full)

    def __str__(self) -> str:
        return self.name


def _one_block(fmt: Format) -> bool:
    """Whether a scheme that names no granularity means the whole tensor: casts need no scale, and
    vq and pq have one codebook."""
    if isinstance(fmt, FloatFormat):
        return fmt.bits >= 16
    return isinstance(fmt, LearnedFormat) and fmt.kind != "kmeans"


def _nearest(word: str) -> str:
    """The known schemes that a misspelt one is nearest to."""
    known = [*ALIASES, *format_names(), "kmeans4", "vq8x4", "pq8x4"]
    for name in format_names():
        fmt = get_format(name)
        for rest in ("tensor", "channel", "token", "global", "g32", "g64", "g128"):
            known.append(f"{name}-{rest}")
            if fmt.affine and fmt.signed:
                known.append(f"{name}-asym-{rest}")
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.3) or ["int4-g128"])
