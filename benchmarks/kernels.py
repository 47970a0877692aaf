"""A quantized matrix times a vector, or times many: qlab's kernels against those in use.

    python benchmarks/kernels.py [--shapes 4096x4096,11008x4096] [--tokens 1] [--threads 2]
                                 [--seconds 4] [--schemes Q4_0,Q8_0] [--anyway] [--out FILE.json]

Each scheme is a row of contestants: qlab, and what multiplies weights of about as many bits
elsewhere. All run in this process with the same number of threads. They take turns; in a turn a
contestant runs several times, and the fastest and the median of all its runs are kept. Hot: the
same weight again and again. Cold: copies of it by turns, more bytes than the nearer caches hold
(--cold-mb).
All results are compared with the product in float64 first.

    ggml            ``ggml_mul_mat`` of xllamacpp's prebuilt library, plain, and with the weight in
                    its repacked buffer where it has one for the type
    onnxruntime     MatMulNBits, blocks of 32, accuracy_level 4 (int8 inputs)
    torch           int4 and int8 weights packed for bfloat16 inputs; float32; bfloat16
    bitsandbytes    Linear4bit, NF4 in blocks of 64

The ceiling is the bandwidth of reading memory, measured with a loop that only adds up
(``qlab.kernels.cpu.measure``). Another busy
process spoils all of this: the machine must be quiet, or --anyway says that it was not.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Instead of this folder, where this file would stand for the package ``kernels``.
sys.path[0] = str(ROOT)

from qlab.cli_bench import SHARE, busy_share, cpu  # noqa: E402

GOALS = ("Q4_0", "Q8_0", "Q4_K")  # faster than the fastest peer, hot and cold
GOAL_SHARE = 0.85  # of the read bandwidth, cold
SCHEMES = (*GOALS, "Q6_K", "NF4", "INT8", "BF16", "F32")
RUNS = 5  # in a turn
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "bitsandbytes", "xllamacpp")

# A contestant: x (tokens, in_features) -> y, for each copy of the weight; and the bytes of one.
Contestant = tuple[list[Callable[[], np.ndarray]], int]


# --- qlab ---------------------------------------------------------------------------------------


def by_qlab(packed: Any, x: np.ndarray, copies: int) -> Contestant:
    from qlab.kernels.cpu.measure import product_runs

    return product_runs(packed, x, copies), packed.nbytes


# --- ggml ---------------------------------------------------------------------------------------


class _Init(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool),
    ]  # fmt: skip


def ggml_library() -> Any:
    from tests.gguf import llamacpp

    lib = llamacpp.library()
    lib.ggml_log_set(_silent, None)
    pointer = ctypes.c_void_p
    for name, result, *arguments in (
        ("ggml_init", pointer, _Init),
        ("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
        ("ggml_mul_mat", pointer, pointer, pointer, pointer),
        ("ggml_new_graph", pointer, pointer),
        ("ggml_build_forward_expand", None, pointer, pointer),
        ("ggml_backend_cpu_init", pointer),
        ("ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int),
        ("ggml_backend_alloc_ctx_tensors", pointer, pointer, pointer),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer),
        ("ggml_backend_tensor_set", None, pointer, pointer, ctypes.c_size_t, ctypes.c_size_t),
        ("ggml_backend_graph_compute", ctypes.c_int, pointer, pointer),
        ("ggml_get_data", pointer, pointer),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


_silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
# Where these lie in ``struct ggml_tensor``.
_DATA, _EXTRA = 248, 320


def extra_of(lib: Any, tensor: int) -> int | None:
    """What a tensor's buffer says about it: nothing, if it stores the tensor as it is."""
    assert ctypes.c_void_p.from_address(tensor + _DATA).value == lib.ggml_get_data(tensor)
    return ctypes.c_void_p.from_address(tensor + _EXTRA).value


def by_ggml(
    data: np.ndarray, type_id: int, x: np.ndarray, copies: int, threads: int, repacked: bool
) -> Contestant | None:
    """None where the library has no repacked buffer."""
    lib = ggml_library()
    rows, (tokens, columns) = len(data), x.shape
    backend = lib.ggml_backend_cpu_init()
    lib.ggml_backend_cpu_set_n_threads(backend, threads)
    kind = None
    if repacked:
        try:
            get = lib._Z35ggml_backend_cpu_repack_buffer_typev
        except AttributeError:
            return None
        get.restype = ctypes.c_void_p
        kind = get()
    x = np.ascontiguousarray(x)
    runs = []
    for _ in range(copies):
        # The weight, and what changes, in contexts of their own: their buffers differ.
        weights = lib.ggml_init(_Init(1 << 14, None, True))
        rest = lib.ggml_init(_Init(1 << 20, None, True))
        w = lib.ggml_new_tensor_2d(weights, type_id, columns, rows)
        if repacked:
            lib.ggml_backend_alloc_ctx_tensors_from_buft(weights, kind)
        else:
            lib.ggml_backend_alloc_ctx_tensors(weights, backend)
        if repacked and not extra_of(lib, w):
            return None  # the type has no repacked form
        lib.ggml_backend_tensor_set(w, data.ctypes.data, 0, data.nbytes)
        v = lib.ggml_new_tensor_2d(rest, 0, columns, tokens)
        y = lib.ggml_mul_mat(rest, w, v)
        graph = lib.ggml_new_graph(rest)
        lib.ggml_build_forward_expand(graph, y)
        lib.ggml_backend_alloc_ctx_tensors(rest, backend)
        lib.ggml_backend_tensor_set(v, x.ctypes.data, 0, x.nbytes)
        numbers = ctypes.cast(lib.ggml_get_data(y), ctypes.POINTER(ctypes.c_float))
        out = np.ctypeslib.as_array(numbers, (tokens, rows))

        def run(graph: Any = graph, out: np.ndarray = out) -> np.ndarray:
            lib.ggml_backend_graph_compute(backend, graph)
            return out

        runs.append(run)
    return runs, data.nbytes


# --- others -------------------------------------------------------------------------------------


def by_onnxruntime(q: Any, x: np.ndarray, copies: int, threads: int) -> Contestant:
    """``q``: symmetric integers in groups of 32, all codes in use (``int4-full-g32``)."""
    import onnxruntime as ort

    from qlab.kernels.peers import matmul_nbits

    model, nbytes = matmul_nbits(q, len(x))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runs = []
    for _ in range(copies):
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        runs.append(lambda s=session: s.run(None, {"x": x})[0])
    return runs, nbytes


def by_torch_int4(q: Any, x: np.ndarray, copies: int) -> Contestant:
    """bfloat16 inputs; w = (code - 8) · scale + zero."""
    import torch

    codes = torch.from_numpy(q.codes.astype(np.int32) + 8)
    scale = torch.from_numpy(np.asarray(q.scale, np.float32)).T
    params = torch.stack([scale, torch.zeros_like(scale)], dim=2).bfloat16().contiguous()
    v, multiply = torch.from_numpy(x).bfloat16(), torch.ops.aten._weight_int4pack_mm_for_cpu

    def of(packed: Any, scales: Any) -> Callable[[], np.ndarray]:
        return lambda: multiply(v, packed, 32, scales).float().numpy()

    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    runs = [of(pack(codes, 2), params.clone()) for _ in range(copies)]
    return runs, codes.numel() // 2 + params.numel() * 2


def by_torch_int8(q: Any, x: np.ndarray, copies: int) -> Contestant:
    """bfloat16 inputs; one scale a row."""
    import torch

    scale = torch.from_numpy(np.asarray(q.scale, np.float32)).reshape(-1).bfloat16()
    v = torch.from_numpy(x).bfloat16()
    runs = []
    for _ in range(copies):
        w = torch.from_numpy(q.codes.copy())
        runs.append(lambda w=w: torch.ops.aten._weight_int8pack_mm(v, w, scale).float().numpy())
    return runs, q.codes.nbytes + 2 * scale.numel()


def by_torch(w: np.ndarray, x: np.ndarray, copies: int, name: str) -> Contestant:
    import torch

    dtype = getattr(torch, name)
    v = torch.from_numpy(x).to(dtype)
    weights = [torch.from_numpy(w).to(dtype).clone() for _ in range(copies)]
    runs = [lambda w=w: torch.nn.functional.linear(v, w).float().numpy() for w in weights]
    return runs, weights[0].nbytes


def by_bitsandbytes(w: np.ndarray, x: np.ndarray, copies: int) -> tuple[Contestant, np.ndarray]:
    """And the weight that it has."""
    import bitsandbytes as bnb
    import torch

    v, runs = torch.from_numpy(x), []
    for _ in range(copies):
        layer = bnb.nn.Linear4bit(
            w.shape[1], w.shape[0], bias=False, quant_type="nf4", compress_statistics=False
        )
        layer.weight = bnb.nn.Params4bit(
            torch.from_numpy(w), requires_grad=False, quant_type="nf4",
            compress_statistics=False, blocksize=64,
        )  # fmt: skip
        layer = layer.to("cpu").eval()

        def run(layer: Any = layer) -> np.ndarray:
            with torch.inference_mode():
                return layer(v).numpy()

        runs.append(run)
    state = layer.weight.quant_state
    dense = bnb.functional.dequantize_4bit(layer.weight.data, state).float().numpy()
    return (runs, layer.weight.data.nbytes + state.absmax.nbytes), dense.reshape(w.shape)


# --- contests -----------------------------------------------------------------------------------


def contestants(
    scheme: str, rows: int, columns: int, tokens: int, copies: Callable[[float], int], threads: int
) -> dict[str, tuple[Contestant, np.ndarray]]:
    """Name -> the contestant and Ŵ, float32: the weight that it multiplies."""
    import qlab
    from qlab.gguf import BLOCK_TYPES
    from qlab.kernels.cpu.pack import pack, pack_gguf
    from tests.gguf import llamacpp

    rng = np.random.default_rng(0)
    w = rng.normal(size=(rows, columns)).astype(np.float32)
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    found: dict[str, tuple[Contestant | None, np.ndarray]] = {}
    if scheme in BLOCK_TYPES and scheme not in ("BF16", "F32"):
        kind = BLOCK_TYPES[scheme].type_id
        data = llamacpp.quantize(w, kind)
        dense = llamacpp.dequantize(data, kind)
        n = copies(data.nbytes)
        found["qlab"] = by_qlab(pack_gguf(data, scheme, columns), x, n), dense
        found["ggml"] = by_ggml(data, kind, x, n, threads, False), dense
        found["ggml repacked"] = by_ggml(data, kind, x, n, threads, True), dense
        bits = {"Q4_0": 4, "Q8_0": 8}.get(scheme)
        if bits:
            q = qlab.quantize(w, f"int{bits}-full-g32")
            found["onnxruntime"] = by_onnxruntime(q, x, n, threads), q.dequantize()
        if bits == 4:
            found["torch int4, bf16 inputs"] = by_torch_int4(q, x, n), q.dequantize()
        if bits == 8:
            q = qlab.quantize(w, "int8-channel")
            found["torch int8, bf16 inputs"] = by_torch_int8(q, x, n), q.dequantize()
    elif scheme == "NF4":
        n = copies(w.size / 2)
        found["bitsandbytes"] = by_bitsandbytes(w, x, n)
        q = qlab.quantize(w, "nf4-g64")
        found = {"qlab": (by_qlab(pack(q), x, n), q.dequantize()), **found}
    elif scheme == "INT8":
        n = copies(w.size)
        q = qlab.quantize(w, "int8-channel")
        found["qlab W8A8"] = by_qlab(pack(q, "token"), x, n), q.dequantize()
        found["qlab, float inputs"] = by_qlab(pack(q, "float"), x, n), q.dequantize()
        found["torch int8, bf16 inputs"] = by_torch_int8(q, x, n), q.dequantize()
    elif scheme == "BF16":
        import torch

        n = copies(2 * w.size)
        half = torch.from_numpy(w).bfloat16()
        bits16 = half.view(torch.uint8).numpy()
        found["qlab"] = by_qlab(pack(half), x, n), half.float().numpy()
        found["ggml"] = by_ggml(bits16, 30, x, n, threads, False), half.float().numpy()
        found["torch"] = by_torch(w, x, n, "bfloat16"), half.float().numpy()
    else:
        n = copies(4 * w.size)
        found["qlab"] = by_qlab(pack(w), x, n), w
        found["torch"] = by_torch(w, x, n, "float32"), w
    return {name: (c, dense) for name, (c, dense) in found.items() if c is not None}


def error_of(run: Callable[[], np.ndarray], dense: np.ndarray, x: np.ndarray) -> float:
    """Relative to the size of the result."""
    wanted = x.astype(np.float64) @ dense.T.astype(np.float64)
    return float(np.linalg.norm(run() - wanted) / np.linalg.norm(wanted))


def contest(
    runs: dict[str, list[Callable[[], np.ndarray]]], seconds: float
) -> dict[str, tuple[float, float]]:
    """The fastest and the median run of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    turn, until = 0, time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < until or turn < 2:
        for name, copies in runs.items():
            for i in range(RUNS):
                run = copies[(turn * RUNS + i) % len(copies)]
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        turn += 1
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def compare(
    scheme: str, rows: int, columns: int, tokens: int, threads: int, seconds: float, cold: float
) -> dict[str, Any]:
    def copies(nbytes: float) -> int:
        return max(1, round(cold / nbytes))

    found = contestants(scheme, rows, columns, tokens, copies, threads)
    x = np.random.default_rng(0)
    x.normal(size=(rows, columns))
    inputs = x.normal(size=(tokens, columns)).astype(np.float32)
    row: dict[str, Any] = {"scheme": scheme, "rows": rows, "columns": columns, "tokens": tokens}
    row["contestants"] = {}
    for name, ((runs, nbytes), dense) in found.items():
        row["contestants"][name] = {
            "bytes": nbytes, "error": error_of(runs[0], dense, inputs), "copies": len(runs),
        }  # fmt: skip
    for state in ("hot", "cold"):
        pick = {n: (c[0][:1] if state == "hot" else c[0]) for n, (c, _) in found.items()}
        for name, (best, median) in contest(pick, seconds / 2).items():
            row["contestants"][name] |= {
                f"{state}_ms": 1e3 * best,
                f"{state}_median_ms": 1e3 * median,
            }
    ours = [n for n in row["contestants"] if n.startswith("qlab")]
    for state in ("hot", "cold"):
        times = {n: c[f"{state}_ms"] for n, c in row["contestants"].items()}
        peer = min((n for n in times if n not in ours), key=times.__getitem__)
        row[f"{state}_peer"], row[f"{state}_ratio"] = (
            peer,
            times[peer] / min(times[n] for n in ours),
        )
    return row


# --- the machine --------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    device = result["device"]
    share = device["busy_share"]
    state = "unknown" if share is None else f"{share:.0%}"
    lines = [
        f"# Kernels on {device['cpu']}, threads: {device['threads']}",
        "",
        f"{result['date']}, path `{device['path']}`, read bandwidth "
        f"{device['read_bytes_per_second'] / 1e9:.1f} GB/s. Other processes took {state} of the "
        "processors when the run began"
        + (
            ": **the machine was not quiet, so these are no results**."
            if share is None or share > SHARE
            else "."
        ),
        "",
        "Fastest run of each, in milliseconds; GB/s and the share of the bandwidth are of the cold "
        "run. The error is relative to the product in float64. Made by `benchmarks/kernels.py`.",
        "",
        "| scheme | shape | tokens | kernel | hot, ms | cold, ms | GB/s | share | error |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["contests"]:
        for name, c in row["contestants"].items():
            speed = c["bytes"] / c["cold_ms"] * 1e3
            lines.append(
                f"| {row['scheme']} | {row['rows']} x {row['columns']} | {row['tokens']} | {name} "
                f"| {c['hot_ms']:.3f} | {c['cold_ms']:.3f} | {speed / 1e9:.1f} | "
                f"{speed / device['read_bytes_per_second']:.2f} | {c['error']:.0e} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="4096x4096,11008x4096", help="outputs x inputs")
    parser.add_argument("--tokens", type=int, default=1, help="vectors at once (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="for all (default: 2)")
    parser.add_argument("--seconds", type=float, default=4, help="for each contestant (default: 4)")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="separated by commas")
    parser.add_argument("--cold-mb", type=float, default=160, help="of copies (default: 160)")
    parser.add_argument("--anyway", action="store_true", help="also where the machine is busy")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    args = parser.parse_args(argv)
    try:
        shapes = [tuple(int(n) for n in s.split("x")) for s in args.shapes.split(",")]
        assert all(len(s) == 2 and s[0] >= 32 and s[1] % 256 == 0 and s[1] for s in shapes)
    except (ValueError, AssertionError):
        parser.error("--shapes are outputs x inputs, inputs a multiple of 256: 4096x4096")
    schemes = args.schemes.split(",")
    if unknown := [s for s in schemes if s not in SCHEMES]:
        parser.error(f"--schemes: {unknown[0]} is not one of {', '.join(SCHEMES)}")
    if args.threads < 1 or args.tokens < 1 or args.seconds < 0:
        parser.error("--threads and --tokens are at least 1, --seconds is not negative")
    share = busy_share()
    if (share is None or share > SHARE) and not args.anyway:
        state = "cannot be told" if share is None else f"is {share:.0%}"
        parser.error(f"the share of the processors that others use {state}: wait, or add --anyway")

    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import numba
    import torch

    import qlab
    from qlab.kernels.cpu import measure, simd

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    versions = {p: importlib.metadata.version(p) for p in PACKAGES}
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "path": simd.path(),
            "busy_share": share,
            "read_bytes_per_second": measure.read_bandwidth(256, args.threads, 1),
        },
        "versions": {"python": platform.python_version(), "qlab": qlab.__version__, **versions},
        "cold_bytes": args.cold_mb * 1e6,
        "contests": [],
    }
    for rows, columns in shapes:
        for scheme in schemes:
            row = compare(
                scheme, rows, columns, args.tokens, args.threads, args.seconds, args.cold_mb * 1e6
            )
            result["contests"].append(row)
            print(
                f"{scheme:5} {rows} x {columns}: hot {row['hot_ratio']:.2f} times as fast as "
                f"{row['hot_peer']}, cold {row['cold_ratio']:.2f} as {row['cold_peer']}",
                flush=True,
            )
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    many = "" if args.tokens == 1 else f"-{args.tokens}-tokens"
    out = args.out or RESULTS / f"kernels-{slug}-{args.threads}-threads{many}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(f"wrote {out} and {out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
