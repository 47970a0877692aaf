"""Codes in 32-bit words, as GPTQ, AWQ and compressed-tensors store them.

All three pack densely, first code in the lowest bits of the first word: the bytes of
``qlab.core.pack``, four to a word. They differ in the axis along which they pack, and AWQ in the
order within a word.

Chapter: The case study, second telling.
"""

from __future__ import annotations

import torch

from qlab.core import pack, unpack
from qlab.errors import QlabError

# AWQ puts code i of eight into nibble AWQ_ORDER[i]: its kernel takes even and odd ones apart.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes (rows, n) -> int32 (rows, ceil(n * bits / 32)), zeros at the end."""
    data = pack(codes.to(torch.uint8), bits)
    short = -data.shape[-1] % 4
    if short:
        data = torch.nn.functional.pad(data, (0, short))
    return data.reshape(-1).view(torch.int32).reshape(data.shape[0], -1)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse: int32 (rows, words) -> uint8 codes (rows, count).

    Raises: QlabError if the words cannot hold ``count`` codes.
    """
    data = words.reshape(-1).view(torch.uint8).reshape(words.shape[0], -1)
    need = -(-count * bits // 8)
    if words.dtype != torch.int32 or data.shape[-1] != -(-need // 4) * 4:
        raise QlabError(
            f"{words.shape[-1]} words ({words.dtype}) cannot hold {count} codes of {bits} bits: "
            "the file is cut or its configuration is wrong"
        )
    codes: torch.Tensor = unpack(data[..., :need], bits, count)
    return codes


def awq_interleave(codes: torch.Tensor) -> torch.Tensor:
    """Codes (rows, n), n a multiple of 8, in the order in which AWQ packs them."""
    eight = codes.reshape(codes.shape[0], -1, 8)
    return eight[..., _positions()].reshape(codes.shape)


def awq_restore(codes: torch.Tensor) -> torch.Tensor:
    """The inverse of ``awq_interleave``."""
    eight = codes.reshape(codes.shape[0], -1, 8)
    return eight[..., list(AWQ_ORDER)].reshape(codes.shape)


def _positions() -> list[int]:
    """Which code stands in nibble 0, 1, ... 7."""
    return [AWQ_ORDER.index(nibble) for nibble in range(8)]
