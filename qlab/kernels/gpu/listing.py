"""What the compiler makes of a kernel for a GPU that need not be here.

Triton brings NVIDIA's assembler and disassembler along, so a kernel can be compiled for any GPU on
any machine. The instructions of its inner loop, divided by the weights that a thread treats in it,
bound its speed from the side of arithmetic, as its bytes do from the side of memory.

``python -m qlab.kernels.gpu.listing 90 w4a16.gemv`` prints the counts as JSON. It runs in a process
of its own: one that interprets kernels cannot compile them.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from qlab.errors import QlabError

_PACKED = {"x": "*fp16", "words": "*i32", "scales": "*fp16", "zeros": "*u8", "table": "*fp32",
           "out": "*fp16", "partial": "*fp32", "counters": "*i32"}  # fmt: skip
_EIGHT = {"x": "*i8", "w": "*i8", "x_scales": "*fp32", "w_scales": "*fp32", "out": "*fp16",
          "partial": "*i32", "counters": "*i32"}  # fmt: skip
_FP8 = {**_EIGHT, "x": "*fp8e4nv", "w": "*fp8e4nv", "partial": "*fp32"}
_CACHE = {"q": "*fp16", "k_codes": "*u8", "k_scales": "*fp16", "k_lows": "*fp16",
          "v_codes": "*u8", "v_scales": "*fp16", "v_lows": "*fp16", "sums": "*fp32",
          "largest": "*fp32", "totals": "*fp32", "shrink": "fp32"}  # fmt: skip
_INT4 = {"GROUP": 128, "TABLE": False, "ZEROS": False, "OFFSET": 8}
_GEMM = {"BLOCK_N": 128, "BLOCK_M": 16, "SPLIT": 2}

# Name -> module, function, types of pointers and floats, constants. All other arguments are int32.
VARIANTS: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "w4a16.gemv": ("w4a16", "gemv_kernel", _PACKED,
                   {**_INT4, "BLOCK_N": 16, "BLOCK_C": 4, "SPLIT": 4}),
    "w4a16.gemm": ("w4a16", "gemm_kernel", _PACKED,
                   {**_INT4, **_GEMM, "EVEN": True, "DOT": "float16"}),
    "nf4.gemv": ("w4a16", "gemv_kernel", _PACKED,
                 {**_INT4, "GROUP": 64, "TABLE": True, "BLOCK_N": 16, "BLOCK_C": 4, "SPLIT": 4}),
    "q4_k.gemv": ("q4_k", "gemv_kernel", _PACKED, {"BLOCK_N": 16, "BLOCK_B": 2, "SPLIT": 2}),
    "q4_k.gemm": ("q4_k", "gemm_kernel", _PACKED, {**_GEMM, "BLOCK_N": 64, "DOT": "float16"}),
    "w8a8": ("w8a8", "w8a8_kernel", _EIGHT,
             {"EVEN": True, "BLOCK_N": 64, "BLOCK_M": 16, "BLOCK_K": 128, "SPLIT": 2}),
    "fp8": ("fp8", "fp8_kernel", _FP8,
            {"NATIVE": True, "EVEN": True, "BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_K": 128,
             "SPLIT": 1}),
    "kv_attention": ("kv_attention", "attention_kernel", _CACHE,
                     {"SHARED": 4, "D": 128, "K_T": 32, "K_D": 1, "V_T": 1, "V_D": 32,
                      "BLOCK_D": 128, "BLOCK_T": 32, "SPLIT": 4, "DOT": "float16"}),
    "quantize.int4": ("quantize", "int4_kernel", {**_PACKED, "w": "*fp16"},
                      {"GROUP": 128, "ASYM": True, "BLOCK_N": 16}),
    "quantize.rows": ("quantize", "rows_kernel", {**_PACKED, "codes": "*u8", "scales": "*fp32"},
                      {"FP8": True, "BLOCK_K": 1024}),
}  # fmt: skip


def count_instructions(*names: str, capability: int = 90) -> dict[str, dict[str, Any]]:
    """Compile kernels for a GPU of that compute capability (80: A100, 89: L40S, 90: H100).

    Returns: for each name, ``loop``, instruction -> how often it stands in the longest loop;
        ``all``, the same for the whole kernel; ``weights``, the 4-bit weights that a thread treats
        in one turn of that loop (None for other kernels); ``shared``, bytes of shared memory;
        ``spilled``, whether registers did not suffice.

    Raises: QlabError for a name not in ``VARIANTS``, or where Triton cannot compile.

    Chapter: A GPU kernel in Triton.
    """
    for name in names:
        if name not in VARIANTS:
            raise QlabError(f"there is no kernel '{name}': use one of {', '.join(VARIANTS)}")
    # Fused multiply-adds, as on a GPU: said explicitly, because Triton warns about its default.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "qlab.kernels.gpu.listing", str(capability), *names],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": path},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QlabError(f"Triton cannot compile {', '.join(names)} for {capability}: {last}")
    return dict(json.loads(done.stdout))


def compile_variant(name: str, capability: int) -> dict[str, Any]:
    """``count_instructions`` in this process, which must not interpret kernels."""
    import importlib

    from qlab.kernels.gpu.runtime import load_triton

    triton, tl = load_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function, pointers, constants = VARIANTS[name]
    kernel = getattr(importlib.import_module(f"qlab.kernels.gpu.{module}"), function)
    constants = {k: getattr(tl, v) if k == "DOT" else v for k, v in constants.items()}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    # Triton assumes 16 in pointers and in sizes that are multiples of it, and so compiles apart.
    even = [n for n in names if n not in constants and n not in ("M", "BLOCKS", "shrink")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(n),): v for n, v in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in even},
    )
    options = {"num_warps": 4}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    lines = disassemble(made.asm["cubin"], Path(triton.__file__).parent)
    found = longest_loop(lines)
    threads = 32 * options["num_warps"]
    inputs = 128 * constants.get("BLOCK_C", 1) if module == "w4a16" else 256
    inputs *= constants.get("BLOCK_B", 1)
    weights = constants["BLOCK_N"] * inputs / threads if module in ("w4a16", "q4_k") else None
    whole = Counter(operation(line) for _, line in lines)
    return {
        "loop": dict(Counter(operation(line) for _, line in found).most_common()),
        "all": dict(whole.most_common()),
        "weights": weights,
        "shared": made.metadata.shared,
        "spilled": bool(whole.keys() & {"STL", "LDL"}),
    }


def disassemble(cubin: bytes, folder: Path) -> list[tuple[str, str]]:
    """[(labels before it, instruction)] of the machine code; folder: that of Triton."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "kernel.cubin"
        path.write_bytes(cubin)
        program = folder / "backends" / "nvidia" / "bin" / "nvdisasm"
        text = subprocess.run(
            [str(program), "-c", str(path)], capture_output=True, text=True, check=True
        ).stdout
    lines, labels = [], ""
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels += label[1] + " "
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append((labels, found[1]))
            labels = ""
    return lines


def longest_loop(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The longest run of instructions that ends in a jump back to its start; [] without a loop."""
    starts = {label: i for i, (labels, _) in enumerate(lines) for label in labels.split()}
    best: list[tuple[str, str]] = []
    for i, (_, line) in enumerate(lines):
        jump = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        if jump and starts.get(jump[1], i) < i and i - starts[jump[1]] >= len(best):
            best = lines[starts[jump[1]] : i + 1]
    return best


def operation(line: str) -> str:
    """FFMA of ``@P0 FFMA.FTZ R1, R2, R3, R4``."""
    return re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0]


if __name__ == "__main__":
    found = {name: compile_variant(name, int(sys.argv[1])) for name in sys.argv[2:]}
    print(json.dumps(found))
