"""Every kernel compiles for the GPUs in use, without spilled registers, to the units it is for.

Triton carries NVIDIA's assembler along, so this runs on any Linux machine.
"""

from __future__ import annotations

import pytest

import qlab
from qlab.kernels.gpu.listing import count_instructions, longest_loop, operation

MATRIX_UNITS = {"w4a16.gemm": "HGMMA", "w8a8": "IMMA", "fp8": "QGMMA"}
# The others are compiled by the tests on a GPU; each takes some seconds.
COMPILED = ("w4a16.gemv", "w4a16.gemm", "q4_k.gemv", "w8a8", "fp8")


@pytest.fixture(scope="module")
def compiled():
    return count_instructions(*COMPILED, capability=90)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_it_compiles_for_an_h100(compiled, name):
    found = compiled[name]
    assert not found["spilled"]
    assert found["shared"] <= 100_000  # an SM of an A100 has 164 KB, of an L40S 100
    if found["weights"]:
        # Decoding and multiplying: some operations a weight; tens would mean that a conversion or
        # a trip through shared memory has crept in.
        assert 2 < sum(found["loop"].values()) / found["weights"] < 12
    if name in MATRIX_UNITS:
        assert MATRIX_UNITS[name] in found["all"]


@pytest.mark.slow
def test_the_vector_product_converts_no_integers(compiled):
    assert not {"I2F", "I2FP"} & compiled["w4a16.gemv"]["all"].keys()
    assert {"I2F", "I2FP"} & compiled["q4_k.gemv"]["all"].keys()


def test_a_loop_is_found():
    lines = [
        ("", "MOV R1, R2"),
        (".L_x_1 ", "FFMA R1, R2, R3, R4"),
        ("", "@!P0 FADD.FTZ R1, R1, R2"),
        ("", "@P1 BRA `(.L_x_1)"),
        (".L_x_2 ", "EXIT"),
        ("", "BRA `(.L_x_2)"),
    ]
    assert [operation(line) for _, line in longest_loop(lines)] == ["FFMA", "FADD", "BRA"]
    assert longest_loop(lines[:1]) == []


def test_an_unknown_kernel():
    with pytest.raises(qlab.QlabError, match=r"no kernel 'w2a16': use one of w4a16\.gemv"):
        count_instructions("w2a16")
