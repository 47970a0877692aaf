"""Configurations: the file, the choice, and tuning with a clock that is not one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import qlab
from qlab.kernels import gpu
from qlab.kernels.gpu import configs
from qlab.kernels.gpu.dispatch import kernel_name

SPLIT2, SPLIT8 = ({"BLOCK_N": 16, "BLOCK_C": 4, "num_warps": 4, "SPLIT": s} for s in (2, 8))


def entry(rows, inputs, batch, config, kernel="w4a16.gemv"):
    return {"kernel": kernel, "rows": rows, "inputs": inputs, "batch": batch, "config": config}


@pytest.fixture
def table(monkeypatch):
    entries = [entry(4096, 4096, 1, SPLIT2), entry(28672, 8192, 1, SPLIT8)]
    found = {"NVIDIA H100 80GB HBM3": {"entries": entries}, "NVIDIA H100 PCIe": {"entries": []}}
    monkeypatch.setattr(configs, "measured", lambda: found)


def test_the_nearest_measured_shape_of_that_gpu(table):
    name = "NVIDIA H100 80GB HBM3"
    assert configs.choose("w4a16.gemv", 4096, 4096, 1, name) == SPLIT2
    assert configs.choose("w4a16.gemv", 20000, 10000, 1, name) == SPLIT8
    # A card of the same model that has not been measured: the longest name in common.
    assert configs.choose("w4a16.gemv", 4096, 4096, 1, "NVIDIA H100 80GB HBM2e") == SPLIT2
    rule = configs.rule("w4a16.gemv", 4096, 4096, 1)
    assert configs.choose("w4a16.gemv", 4096, 4096, 1, "NVIDIA L40S") == rule
    assert configs.choose("w4a16.gemv", 4096, 100, 1, name) == configs.rule(
        "w4a16.gemv", 4096, 100, 1
    )
    assert configs.choose("w4a16.gemm", 4096, 4096, 2, name) == configs.rule(
        "w4a16.gemm", 4096, 4096, 2
    )


@pytest.mark.parametrize("kernel", configs.KERNELS)
@pytest.mark.parametrize("batch", [1, 2, 16, 17, 64, 256])
def test_rules_and_candidates_are_whole(kernel, batch):
    """What a kernel needs, powers of two, tiles that matrix units take, counters that suffice."""
    needed = {"BLOCK_N", "num_warps", "SPLIT"}
    needed |= {
        "w4a16.gemv": {"BLOCK_C"},
        "q4_k.gemv": {"BLOCK_B"},
        "w8a8": {"BLOCK_M", "BLOCK_K"},
        "fp8": {"BLOCK_M", "BLOCK_K"},
    }.get(kernel, {"BLOCK_M"})
    found = [configs.rule(kernel, 4096, 4096, batch), *configs.candidates(kernel, batch)]
    for config in found:
        assert set(config) == needed
        assert all(v & (v - 1) == 0 and v > 0 for v in config.values())
        assert config["BLOCK_N"] >= 4 and config.get("BLOCK_M", 16) >= 16
    assert len(found) < 26 and len({tuple(c.items()) for c in found[1:]}) == len(found) - 1


def test_the_rule_splits_few_rows_and_not_many():
    few, many = (configs.rule("w4a16.gemv", n, 8192, 1)["SPLIT"] for n in (1024, 131072))
    assert few > many == 1
    assert configs.rule("w4a16.gemv", 16, 128, 1)["SPLIT"] == 1  # one chunk cannot be split


def test_buckets():
    assert [configs.bucket(b) for b in (1, 2, 3, 16, 17, 256, 1000)] == [1, 2, 4, 16, 32, 256, 256]


def test_the_file_holds_what_the_loader_reads():
    for found in configs.measured().values():
        assert {"date", "versions", "entries"} <= set(found)
        for e in found["entries"]:
            assert e["kernel"] in configs.KERNELS and e["config"].keys() >= {"BLOCK_N", "SPLIT"}


def test_tuning_takes_the_fastest_that_compiles():
    packed = gpu.pack(qlab.quantize(torch.ones(8, 128), "int4-g32"))
    x = torch.ones(1, 128)
    tries = [{"BLOCK_N": 16, "BLOCK_C": 1, "SPLIT": s} for s in (1, 2, 4)]
    seconds = iter([3e-6, "too much shared memory", 2e-6])

    class OutOfResources(Exception):
        pass

    def timer(call):
        assert call(5).shape == (1, 8)  # whatever the number of the call
        found = next(seconds)
        if isinstance(found, str):
            raise OutOfResources(found)
        return found

    found = gpu.tune([packed, packed], x, timer, tries)
    assert found["config"] == tries[2] and found["microseconds"] == 2.0
    assert (found["kernel"], found["rows"], found["inputs"], found["batch"]) == (
        "w4a16.gemv", 8, 128, 1,
    )  # fmt: skip

    def broken(call):
        raise OutOfResources

    with pytest.raises(RuntimeError, match="no configuration"):
        gpu.tune([packed], x, broken, tries)


def test_which_kernel():
    names = {
        kernel_name(gpu.pack(qlab.quantize(torch.ones(8, 128), scheme)), batch)
        for scheme in ("int4-g32", "int8-channel", "fp8_e4m3-channel")
        for batch in (1, 2)
    }
    assert names == {"w4a16.gemv", "w4a16.gemm", "w8a8", "fp8"}


def test_importing_it_does_not_import_triton():
    code = "import sys; import qlab.kernels.gpu; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_it_interprets_though_another_package_imported_triton_first():
    """Which bitsandbytes and torchao do: the library of kernels is compiled by then."""
    code = (
        "import triton, torch, qlab; from qlab.kernels import gpu;"
        "q = qlab.quantize(torch.ones(4, 64), 'int4-g32');"
        "print(gpu.matmul(q, torch.ones(2, 64)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([[64.0] * 4] * 2) and done.stderr == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what happens without a GPU")
def test_compiled_kernels_refuse_tensors_of_the_cpu():
    code = (
        "import torch, qlab; from qlab.kernels import gpu;"
        "q = qlab.quantize(torch.ones(4, 64), 'int4-g32'); gpu.matmul(q, torch.ones(2, 64))"
    )
    import os

    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "QlabError: the tensors lie on cpu" in done.stderr
