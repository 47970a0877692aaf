"""A small vocabulary of vectors for Numba.

Three types, each of 64 bytes: ``Bytes`` (64 unsigned bytes), ``Ints`` (16 int32), ``Floats`` (16
float32). A kernel is written once with them. How a word becomes instructions depends on the
processor (``path``), and what it computes does not.

Chapter: A CPU kernel in Numba.
"""

from qlab.kernels.cpu.simd.path import PATHS as PATHS
from qlab.kernels.cpu.simd.path import path as path
from qlab.kernels.cpu.simd.types import Bytes as Bytes
from qlab.kernels.cpu.simd.types import Floats as Floats
from qlab.kernels.cpu.simd.types import Ints as Ints
from qlab.kernels.cpu.simd.words import add_up as add_up
from qlab.kernels.cpu.simd.words import bits_to_float as bits_to_float
from qlab.kernels.cpu.simd.words import bits_to_floats as bits_to_floats
from qlab.kernels.cpu.simd.words import dot4 as dot4
from qlab.kernels.cpu.simd.words import dot4_small as dot4_small
from qlab.kernels.cpu.simd.words import fma as fma
from qlab.kernels.cpu.simd.words import get_float as get_float
from qlab.kernels.cpu.simd.words import get_int as get_int
from qlab.kernels.cpu.simd.words import largest as largest
from qlab.kernels.cpu.simd.words import load_bytes as load_bytes
from qlab.kernels.cpu.simd.words import load_floats as load_floats
from qlab.kernels.cpu.simd.words import load_halves as load_halves
from qlab.kernels.cpu.simd.words import load_int8 as load_int8
from qlab.kernels.cpu.simd.words import load_ints as load_ints
from qlab.kernels.cpu.simd.words import load_uint8 as load_uint8
from qlab.kernels.cpu.simd.words import lookup as lookup
from qlab.kernels.cpu.simd.words import magnitudes as magnitudes
from qlab.kernels.cpu.simd.words import nearest as nearest
from qlab.kernels.cpu.simd.words import prefetch as prefetch
from qlab.kernels.cpu.simd.words import put_bytes as put_bytes
from qlab.kernels.cpu.simd.words import put_float as put_float
from qlab.kernels.cpu.simd.words import put_int as put_int
from qlab.kernels.cpu.simd.words import splat_bytes as splat_bytes
from qlab.kernels.cpu.simd.words import splat_float as splat_float
from qlab.kernels.cpu.simd.words import splat_int as splat_int
from qlab.kernels.cpu.simd.words import store as store
from qlab.kernels.cpu.simd.words import to_floats as to_floats
