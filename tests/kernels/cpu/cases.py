"""What the tests of the kernels share."""

import numpy as np

import qlab

# Scheme, what the kernel makes of the inputs, and the kind that it must have.
CASES = [
    ("int8-channel", "blocks", "INT8_GROUP"),
    ("int8-channel", "token", "INT8_CHANNEL"),
    ("int8-channel", "float", "INT8_WEIGHT"),
    ("int8-g64", "float", "INT8_WEIGHT"),
    ("int8-asym-g32", "blocks", "INT8_ZERO"),
    ("int8-full-tensor", "blocks", "INT8_GROUP"),
    ("int6-asym-g32", "blocks", "INT8_ZERO"),
    ("int5-g32", "blocks", "INT8_GROUP"),
    ("int4-g32-sfp16", "blocks", "INT4_GROUP"),
    ("int4-full-g64", "blocks", "INT4_GROUP"),
    ("int4-asym-g32", "blocks", "INT4_ZERO"),
    ("uint4-channel", "blocks", "INT4_ZERO"),
    ("int4-g32", "float", "CODEBOOK4"),
    ("int4-b1x32", "blocks", "INT4_GROUP"),
    ("int3-g32", "blocks", "INT3_GROUP"),
    ("int3-asym-channel", "blocks", "INT3_ZERO"),
    ("int2-full-g32", "blocks", "INT2_GROUP"),
    ("int2-asym-g64", "blocks", "INT2_ZERO"),
    ("ternary-channel", "blocks", "INT2_GROUP"),
    ("binary-g32", "blocks", "INT2_GROUP"),
    ("nf4-g64", "blocks", "CODEBOOK4"),
    ("fp4_e2m1-g8", "blocks", "CODEBOOK4"),
    ("mxfp4", "blocks", "CODEBOOK4"),
    ("nvfp4", "blocks", "CODEBOOK4"),
]
GGUF = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q4_0": "Q4_0",
    "Q8_0": "Q8_0",
    "Q4_K": "Q4_K",
    "Q5_K": "Q5_K",
    "Q6_K": "Q6_K",
    "TQ2_0": "TERNARY",
    "Q5_0": "Q8_0",
    "IQ4_NL": "Q8_0",
    "Q3_K": "Q6_K",
    "Q4_1": "Q4_1",
    "Q5_1": "Q5_1",
    "Q2_K": "Q2_K",
}


def matrix(rows, columns, seed=0):
    """Gaussian, with rows of their own sizes, a row of zeros and an outlier."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(rows, columns)) * rng.uniform(0.01, 2, (rows, 1))
    w[rows // 2] = 0
    w[-1, columns // 3] = 50
    return w.astype(np.float32)


def block_inputs(kind, scheme_inputs, columns):
    """Inputs that share a scale: None where they stay floats."""
    from qlab.kernels.cpu.kinds import FLOAT, Kind

    if Kind[kind] in FLOAT:
        return None
    return columns if scheme_inputs == "token" else 32


def expected(weight, x, block):
    """The result in float64 of the inputs that the kernel sees, and the sum of magnitudes."""
    from qlab.kernels import reference

    seen = x.astype(np.float64) if block is None else reference.quantized_inputs(x, block)
    dense = reference.dense(weight)
    return seen @ dense.T, np.abs(seen) @ np.abs(dense).T


def quantized(scheme, rows, columns, seed=0, pad=False):
    return qlab.quantize(matrix(rows, columns, seed), scheme, pad=pad)
