"""Run the words and some kernels, and save what they give: ``python on_path.py FILE.npz``.

The variable QLAB_CPU chooses the path. ``test_simd.py`` compares the files.
"""

import sys
from pathlib import Path

import numpy as np

from qlab.kernels.cpu import float_kernels, integer_kernels, simd
from qlab.kernels.cpu.inputs import quantize_input, work_bytes
from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.pack import pack, pack_gguf
from qlab.kernels.cpu.simd import (
    add_up,
    bits_to_floats,
    dot4,
    dot4_small,
    fma,
    largest,
    load_bytes,
    load_floats,
    load_halves,
    load_int8,
    load_ints,
    load_uint8,
    lookup,
    magnitudes,
    nearest,
    put_bytes,
    splat_bytes,
    splat_float,
    splat_int,
    store,
    to_floats,
)

sys.path.insert(0, str(Path(__file__).parent))
from cases import matrix


@jit()
def words(a, f, h, out):
    """a: 256 bytes; f: 32 float32; h: the bytes of 16 float16; out: bytes, 64 for each word."""
    x, y = load_bytes(a, 0), load_bytes(a, 64)
    i, j = load_ints(a, 0), load_ints(a, 64)
    u, v = load_floats(f, 0), load_floats(f, 64)
    zero = splat_int(0)
    store(out, 0, x & 15)
    store(out, 64, x >> 4)
    store(out, 128, x << 3)
    store(out, 192, x | y)
    store(out, 256, i + j)
    store(out, 320, i - j)
    store(out, 384, i * j)
    store(out, 448, (i >> 5) | (j << 7))
    store(out, 512, i & 0xFFFF0000)
    store(out, 576, dot4(i, x, y))
    store(out, 640, dot4(zero, load_bytes(a, 128), load_bytes(a, 192)))  # the largest numbers
    store(out, 704, dot4_small(j, x & 127, y))
    store(out, 768, dot4_small(zero, load_bytes(a, 128) & 127, load_bytes(a, 192)))
    store(out, 832, splat_bytes(a, 5))
    store(out, 896, load_uint8(a, 3))
    store(out, 960, load_int8(a, 3))
    store(out, 1024, u + v)
    store(out, 1088, u - v)
    store(out, 1152, u * v)
    store(out, 1216, load_halves(h, 0))
    store(out, 1280, to_floats(i))
    store(out, 1344, bits_to_floats(i))
    store(out, 1408, nearest(u * splat_float(np.float32(100))))
    store(out, 1472, magnitudes(u))
    store(out, 1536, lookup(u, i))
    store(out, 1600, lookup(u, i >> 28))
    store(out, 1664, splat_int(largest(i)) + splat_int(add_up(j)))
    put_bytes(out, 1728, i)
    store(out, 1792, fma(u, v, v))


def sample():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, 256).astype(np.uint8)
    a[128:192], a[192:256] = 255, 128  # 255 and -128: where int16 would overflow
    f = rng.normal(size=32).astype(np.float32)
    f[:3] = 0.005, -0.015, 0.025  # halfway between integers when multiplied by 100
    h = np.array([0, -0.0, 1, -1, 65504, -65504, 6e-8, 6.1e-5, 1e-5, 0.1, -0.3, 2, 3, 1000, 7e-6,
                  -2.5], np.float16)  # fmt: skip
    return a, f, h


def kernels():
    """(name, the first tile's rows) of some kinds."""
    from qlab import quantize
    from qlab.gguf.blocks import block_type

    w = matrix(16, 512) + np.float32(0.01)
    x = np.random.default_rng(1).normal(size=512).astype(np.float32)
    out = np.empty(16, np.float32)
    plain = {"Q4_0": "q4_0", "Q8_0": "q8_0", "Q4_K": "q4_k", "Q6_K": "q6_k", "TQ2_0": "ternary"}
    packs = {}
    for name in plain:
        found = block_type(name)
        data = found.encode(w.reshape(16, -1, found.block_size), None).reshape(16, -1)
        packs[name] = pack_gguf(data, name, 512)
    packs["NF4"] = pack(quantize(w, "nf4-g64"))
    for name, packed in packs.items():
        work = np.empty(work_bytes(512), np.uint8)
        quantize_input(int(packed.kind), x, work)
        tile = packed.buffer
        from qlab.kernels.cpu.kinds import tile_bytes

        scales = 64 + tile_bytes(packed.kind, 512, packed.group_size)[0]
        if name == "NF4":
            run_codebook(tile, scales, work, out)
        else:
            RUN[name](tile, scales, work, out)
        yield name, out.copy()
        yield name + " inputs", work[:768].copy()


@jit()
def run_q4_0(buffer, scales, work, out):
    store(out, 0, integer_kernels.tile_q4_0(buffer, 64, scales, 16, work))


@jit()
def run_q8_0(buffer, scales, work, out):
    store(out, 0, integer_kernels.tile_q8_0(buffer, 64, scales, 16, work))


@jit()
def run_q4_k(buffer, scales, work, out):
    store(out, 0, integer_kernels.tile_q4_k(buffer, 64, scales, 16, work))


@jit()
def run_q6_k(buffer, scales, work, out):
    store(out, 0, integer_kernels.tile_q6_k(buffer, 64, scales, 16, work))


@jit()
def run_ternary(buffer, scales, work, out):
    store(out, 0, integer_kernels.tile_ternary(buffer, 64, scales, 16, work))


@jit()
def run_codebook(buffer, scales, work, out):
    store(out, 0, float_kernels.tile_codebook4(buffer, 64, scales, 64, 8, work))


RUN = {"Q4_0": run_q4_0, "Q8_0": run_q8_0, "Q4_K": run_q4_k, "Q6_K": run_q6_k,
       "TQ2_0": run_ternary}  # fmt: skip

if __name__ == "__main__":
    a, f, h = sample()
    out = np.zeros(1856, np.uint8)
    words(a, f, h.view(np.uint8), out)
    np.savez(sys.argv[1], path=simd.path(), words=out, **dict(kernels()))
