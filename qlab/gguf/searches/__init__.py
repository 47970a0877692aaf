"""The searches for a scale that lie behind the block types, one a file.

Each takes many groups at once, one a row, and says in NumPy what llama.cpp's C does for one group,
in the same order of operations. The compiled twins are in ``qlab.kernels.cpu``.
"""

from qlab.gguf.searches.affine import affine_search
from qlab.gguf.searches.descent import descent_search
from qlab.gguf.searches.positive import positive_search
from qlab.gguf.searches.symmetric import symmetric_search

__all__ = ["affine_search", "descent_search", "positive_search", "symmetric_search"]
