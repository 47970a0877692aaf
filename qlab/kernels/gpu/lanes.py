"""The order of 4-bit codes in memory that the kernels read: lanes of 32-bit words.

A row is cut into *chunks* of 128 inputs. A chunk is 16 words of 32 bits, and a word holds eight
codes, the first in its lowest bits. Word j holds the inputs j, 16 + j, 32 + j ... 112 + j::

    word          0              1              2        ...        15
    bits 0-3      input 0        input 1        input 2  ...        input 15      plane 0
    bits 4-7      input 16       input 17       input 18 ...        input 31      plane 1
    ...
    bits 28-31    input 112      input 113      ...                 input 127     plane 7

So a *plane*, the same four bits of neighboring words, is 16 neighboring inputs: one shift and mask
gives codes in the order in which the inputs lie in memory, and both are read in whole lines. A
group of 32, 64 or 128 inputs is two, four or eight whole planes, which share a scale.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import torch

CHUNK = 128  # inputs
WORDS = 16  # of 32 bits
PLANES = 8  # codes a word


def to_lanes(codes: torch.Tensor) -> torch.Tensor:
    """codes: integers 0 to 15 (rows, inputs) -> int32 (rows, chunks, 16). Short rows end in 0."""
    rows, inputs = codes.shape
    chunks = -(-inputs // CHUNK)
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, chunks * CHUNK - inputs))
    planes = padded.reshape(rows, chunks, PLANES, WORDS)
    shifts = torch.arange(0, 32, 4, device=codes.device)
    words = (planes << shifts[:, None]).sum(dim=2)
    # The highest plane reaches the sign bit: the same 32 bits as a signed number.
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def from_lanes(words: torch.Tensor, inputs: int) -> torch.Tensor:
    """The inverse: int32 (rows, chunks, 16) -> uint8 (rows, inputs)."""
    shifts = torch.arange(0, 32, 4, device=words.device)
    planes = (words[:, :, None, :] >> shifts[:, None]) & 15
    return planes.reshape(words.shape[0], -1)[:, :inputs].to(torch.uint8)
