"""Scheme: a format, a granularity, and whether zero sits in the middle; in one word.

    int8-channel    int4-asym-g128    int3-g64-sfp16    int8-tensor

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qlab.core.formats import IntFormat, get_format
from qlab.core.granularity import Granularity
from qlab.errors import QlabError

# Word -> (array API dtype name, bits, smallest and largest positive value) of the stored scale.
# float16 halves the cost of a scale. A scale beyond its range is clipped to it.
SCALE_DTYPES = {
    "sfp32": ("float32", 32, 1.1754943508222875e-38, 3.4028234663852886e38),
    "sfp16": ("float16", 16, 2.0**-24, 65504.0),
}


@dataclass(frozen=True)
class Scheme:
    """How a tensor is represented; how the codes are chosen is the method's business.

    Attributes:
        format: what a code stands for.
        granularity: which elements share a scale (and a zero point).
        symmetric: zero_point is 0 and the range restricted, else the range is fitted to min, max.
        scale_word: how scales are stored, a key of ``SCALE_DTYPES``.
    """

    format: IntFormat
    granularity: Granularity = field(default_factory=lambda: Granularity("channel"))
    symmetric: bool = True
    scale_word: str = "sfp32"

    @property
    def name(self) -> str:
        """The scheme as one word; ``Scheme.parse(scheme.name) == scheme``."""
        words = [self.format.name]
        # An unsigned format can only be asymmetric, so the word would say nothing.
        if not self.symmetric and self.format.signed:
            words.append("asym")
        words.append(self.granularity.name)
        if self.scale_word != "sfp32":
            words.append(self.scale_word)
        return "-".join(words)

    @staticmethod
    def parse(word: str | Scheme) -> Scheme:
        """Read a scheme from its word.

        Raises: QlabError naming the part that is not understood and what may stand there.
        """
        if isinstance(word, Scheme):
            return word
        if not isinstance(word, str) or not word:
            raise QlabError(f"a scheme is a word such as 'int4-g128', got {word!r}")
        first, *rest = word.lower().split("-")
        fmt = get_format(first)
        granularity, symmetric, scale = None, fmt.signed, "sfp32"
        for part in rest:
            if part in ("asym", "sym"):
                if part == "sym" and not fmt.signed:
                    raise QlabError(f"scheme '{word}': {fmt.name} has no negative codes to mirror")
                symmetric = part == "sym"
            elif part in SCALE_DTYPES:
                scale = part
            elif (parsed := Granularity.parse(part)) is not None:
                if granularity is not None:
                    raise QlabError(f"scheme '{word}' names two granularities: keep one")
                granularity = parsed
            else:
                raise QlabError(
                    f"scheme '{word}': '{part}' is not understood; after the format come "
                    "asym, one of tensor, channel, token, g<size>, b<rows>x<columns>, "
                    f"and one of {', '.join(SCALE_DTYPES)}"
                )
        return Scheme(fmt, granularity or Granularity("channel"), symmetric, scale)

    def __str__(self) -> str:
        return self.name
