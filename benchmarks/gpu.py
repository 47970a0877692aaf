"""Products with packed weights on an NVIDIA GPU: are they right, and how fast beside cuBLAS.

    python benchmarks/gpu.py                    # correctness, then times: under six minutes
    python benchmarks/gpu.py --tune             # look for tile sizes first, and use them
    python benchmarks/gpu.py --adopt FILE.json  # put the tile sizes of a result into the package
    python benchmarks/gpu.py --rehearse         # tiny, under the interpreter: no GPU, no times

It needs torch, Triton and qlab. bitsandbytes is measured where it is installed, and the figure is
drawn where matplotlib is. Results go to ``benchmarks/results/gpu-NAME.json``, ``.md`` and ``.svg``
(or to ``--out FOLDER``).

How it is timed. The same product runs on several copies of the weight, together larger than the
caches, as the layers of a model do. The calls are recorded once as a CUDA graph, so that the time
of launching from Python is left out; it is replayed several times, and the median counts. The
output of every product is checked against float64 before.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qlab.kernels import gpu
from qlab.kernels.gpu import configs

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (1, 2, 4, 8, 16, 64, 256)
# rows x inputs: the matrices of Llama-2-7B and Llama-2-70B (Touvron et al. 2023, table 1 and
# Hugging Face configs: hidden 4096 and 8192, feed-forward 11008 and 28672, 8 key-value heads).
SHAPES = {
    "7B attention": (4096, 4096),
    "7B up": (11008, 4096),
    "7B down": (4096, 11008),
    "70B attention": (8192, 8192),
    "70B up": (28672, 8192),
    "70B down": (8192, 28672),
}
TUNED = ("7B attention", "70B up")
OTHERS = ("nf4-g64", "q4_k", "int8-channel", "fp8_e4m3-channel")
COLD = 160e6  # bytes that no cache holds: an H100 has 50 MB of L2
GOAL = 3.5  # times cuBLAS FP16, int4-g128, batch 1 to 16


# The clock


def graph_timer(copies: int, replays: int = 9) -> Callable[[Callable[[int], Any]], float]:
    """Seconds a call, median of replays of a CUDA graph of one call for each copy, or several."""

    def timer(call: Callable[[int], Any]) -> float:
        rounds = max(1, -(-16 // copies))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(2):
                call(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(copies * rounds):
                call(i)
        graph.replay()
        found = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3 / (copies * rounds))
        return statistics.median(found)

    return timer


def no_timer(copies: int) -> Callable[[Callable[[int], Any]], float]:
    """For the rehearsal: calls each copy, and measures nothing."""

    def timer(call: Callable[[int], Any]) -> float:
        for i in range(copies):
            call(i)
        return 1.0

    return timer


# What is measured


def packed(scheme: str, rows: int, inputs: int, device: str, seed: int) -> gpu.PackedWeight:
    """A random weight. The time of a product does not depend on its values."""
    g = torch.Generator(device).manual_seed(seed)
    if scheme == "q4_k":
        data = torch.randint(0, 256, (rows, inputs // 256, 144), generator=g, device=device)
        data = data.to(torch.uint8)
        data[:, :, :4] = (
            torch.tensor([0.001, 0.002], dtype=torch.float16).view(torch.uint8).to(device)
        )
        return gpu.pack_gguf(data.reshape(rows, -1))
    w = torch.randn(rows, inputs, generator=g, device=device).half() / inputs**0.5
    if scheme.startswith("int4"):
        return gpu.quantize_int4(w, scheme)
    import qlab

    return gpu.pack(qlab.quantize(w.float(), scheme))


def dense(p: gpu.PackedWeight) -> torch.Tensor:
    """The weight as float64, by plain torch: the oracle."""
    from qlab.kernels.gpu.lanes import from_lanes

    if p.kind == "q4_k":
        from qlab.gguf.quantize import dequantize

        data = p.codes.reshape(p.out_features, -1).contiguous().view(torch.uint8)
        return torch.from_numpy(dequantize(data.cpu().numpy(), "Q4_K")).double().to(p.device)
    assert p.scales is not None
    scales = p.scales.double()
    if p.kind == "int8":
        return p.codes.double() * scales[:, None]
    if p.kind == "fp8":
        return p.codes.view(torch.float8_e4m3fn).float().double() * scales[:, None]
    codes = from_lanes(p.codes, p.in_features).long()
    scales = scales.repeat_interleave(p.group_size, 1)[:, : p.in_features]
    if p.table is not None:
        return p.table.double()[codes] * scales
    zeros: Any = p.offset
    if p.zeros is not None:
        zeros = p.zeros.double().repeat_interleave(p.group_size, 1)[:, : p.in_features]
    return (codes.double() - zeros) * scales


def check(p: gpu.PackedWeight, batch: int, config: Any = None) -> float:
    """The largest error of a product, in units of the root mean square of the exact one.

    Raises: AssertionError beyond what the rounding of 16-bit numbers explains.
    """
    g = torch.Generator(p.device.type).manual_seed(batch)
    x = torch.randn(batch, p.in_features, generator=g, device=p.device).half()
    y = gpu.matmul(p, x, config=config).double()
    again = gpu.matmul(p, x, config=config).double()
    assert torch.equal(y, again), f"{p.kind}, batch {batch}: two calls, two results"
    seen = x.double()
    if p.kind in ("int8", "fp8"):
        codes, scales = gpu.quantize_rows(x, {"int8": "int8", "fp8": "fp8_e4m3"}[p.kind])
        values = codes if p.kind == "int8" else codes.view(torch.float8_e4m3fn).float()
        seen = values.double() * scales.double()[:, None]
    exact = seen @ dense(p).T
    error = float((y - exact).abs().max() / exact.square().mean().sqrt())
    # The output is rounded to 11 bits (2^-11 of some five root mean squares), and so are weights
    # of a table or of Q4_K before they are multiplied.
    assert error < 0.02, f"{p.kind}, batch {batch}: error {error:.3g} of the root mean square"
    return error


def bandwidth(device: str) -> float:
    """Bytes a second that this GPU reads and writes when it copies 2 GB."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    seconds = graph_timer(1)(lambda i: b.copy_(a))
    return 2 * a.numel() / seconds


def peak(device: str) -> float:
    """Operations a second of cuBLAS on large float16 matrices."""
    a = torch.randn(8192, 8192, device=device).half()
    return 2 * 8192**3 / graph_timer(1, 5)(lambda i: a @ a)


def torch_int4(rows: int, inputs: int, copies: int, x: torch.Tensor) -> Callable[[int], Any]:
    """torch's own int4 kernel, bfloat16, groups of 128."""
    codes = torch.randint(0, 256, (rows, inputs // 2), device=x.device, dtype=torch.uint8)
    one = torch._convert_weight_to_int4pack(codes, 8)
    scales = torch.rand(inputs // 128, rows, 2, device=x.device).bfloat16()
    weights = [one.clone() for _ in range(copies)]
    y = x.bfloat16()
    return lambda i: torch._weight_int4pack_mm(y, weights[i % copies], 128, scales)


def bitsandbytes_nf4(rows: int, inputs: int, copies: int, x: torch.Tensor) -> Callable[[int], Any]:
    """bitsandbytes' NF4 product, groups of 64."""
    import bitsandbytes as bnb

    w = torch.randn(rows, inputs, device=x.device).half()
    weights = [
        bnb.functional.quantize_4bit(w, blocksize=64, quant_type="nf4") for _ in range(copies)
    ]
    return lambda i: bnb.matmul_4bit(x, weights[i % copies][0].t(), weights[i % copies][1])


PEERS = {"torch int4 g128 (bf16)": torch_int4, "bitsandbytes nf4": bitsandbytes_nf4}


class Run:
    """The state of one run: where, with which clock, until when."""

    def __init__(self, rehearse: bool, budget: float) -> None:
        self.rehearse, self.device = rehearse, "cpu" if rehearse else "cuda"
        self.end = time.monotonic() + budget
        self.shapes = {"tiny": (32, 256)} if rehearse else SHAPES
        self.batches = (1, 2) if rehearse else BATCHES
        self.rows: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}

    def left(self) -> float:
        return self.end - time.monotonic()

    def copies(self, nbytes: int) -> int:
        return 2 if self.rehearse else max(1, min(64, -(-int(COLD) // nbytes)))

    def timer(self, copies: int) -> Callable[[Callable[[int], Any]], float]:
        return no_timer(copies) if self.rehearse else graph_timer(copies)

    def correctness(self) -> dict[str, float]:
        """Kind and batch -> error. Small odd shapes, and each kind on a real one."""
        found = {}
        shapes = [(21, 256)] if self.rehearse else [(1000, 2816), (4096, 4096)]
        batches = (1, 3) if self.rehearse else (1, 2, 64)
        for scheme in ("int4-g128-sfp16", "int4-asym-g64-sfp16", *OTHERS):
            for rows, inputs in shapes if scheme.startswith("int4") else shapes[-1:]:
                p = packed(scheme, rows, inputs, self.device, 0)
                for batch in batches:
                    key = f"{scheme} {rows}x{inputs} batch {batch}"
                    found[key] = check(p, batch)
        return found

    def tune(self) -> list[dict[str, Any]]:
        """Entries for configs.json, for the time that is set aside."""
        entries = []
        batches = (1, 2) if self.rehearse else (1, 16, 64, 256)
        schemes = ("int4-g128-sfp16", "q4_k", "fp8_e4m3-channel", "int8-channel")
        stop = time.monotonic() + 0.5 * self.left()
        for scheme in schemes:
            for name in ["tiny"] if self.rehearse else TUNED:
                rows, inputs = self.shapes[name]
                one = packed(scheme, rows, inputs, self.device, 0)
                copies = self.copies(one.nbytes)
                weights = [one] + [packed(scheme, rows, inputs, self.device, i + 1)
                                   for i in range(copies - 1)]  # fmt: skip
                for batch in batches:
                    if time.monotonic() > stop:
                        return entries
                    x = torch.randn(batch, inputs, device=self.device).half()
                    kernel = gpu.dispatch.kernel_name(one, batch)
                    tries = configs.candidates(kernel, batch)[: 2 if self.rehearse else None]
                    entry = gpu.tune(weights, x, self.timer(copies), tries)
                    check(one, batch, entry["config"])
                    # One entry serves all batches up to its own, down to the next smaller one.
                    served = {1: (1,), 16: (2, 4, 8, 16), 64: (32, 64), 256: (128, 256)}
                    entries += [{**entry, "batch": b} for b in served.get(batch, (batch,))]
                    print(f"tuned {scheme} {name} batch {batch}: {entry['config']}", flush=True)
        return entries

    def add(self, kernel: str, name: str, batch: int, seconds: float, nbytes: int) -> None:
        rows, inputs = self.shapes[name]
        moved = nbytes + 2 * batch * (rows + inputs)
        row = {"kernel": kernel, "matrix": name, "rows": rows, "inputs": inputs, "batch": batch,
               "microseconds": seconds * 1e6, "bytes": moved, "gb_per_s": moved / seconds / 1e9,
               "operations_per_s": 2 * batch * rows * inputs / seconds}  # fmt: skip
        base = [r for r in self.rows if r["kernel"] == "cuBLAS fp16"
                and (r["matrix"], r["batch"]) == (name, batch)]  # fmt: skip
        if base:
            row["times_fp16"] = base[0]["microseconds"] / row["microseconds"]
        self.rows.append(row)

    def measure(self) -> None:
        """All products: float16 first, ours, then the peers, one matrix after another."""
        for name in sorted(self.shapes, key=lambda name: name not in TUNED):
            rows, inputs = self.shapes[name]
            if self.left() < 40:
                self.missing[name] = "no time was left"
                continue
            copies = self.copies(2 * rows * inputs)
            w = [torch.randn(rows, inputs, device=self.device).half() for _ in range(copies)]
            xs = {b: torch.randn(b, inputs, device=self.device).half() for b in self.batches}
            for b, x in xs.items():
                seconds = self.timer(copies)(lambda i, x=x, w=w: x @ w[i % len(w)].T)
                self.add("cuBLAS fp16", name, b, seconds, 2 * rows * inputs)
            del w
            schemes = ("int4-g128-sfp16", *(OTHERS if self.rehearse or name in TUNED else ()))
            for scheme in schemes:
                one = packed(scheme, rows, inputs, self.device, 0)
                copies = self.copies(one.nbytes)
                weights = [one] + [packed(scheme, rows, inputs, self.device, i + 1)
                                   for i in range(copies - 1)]  # fmt: skip
                for b, x in xs.items():
                    call = lambda i, x=x, weights=weights: gpu.matmul(weights[i % len(weights)], x)  # noqa: E731
                    self.add(f"qlab {scheme}", name, b, self.timer(copies)(call), one.nbytes)
                del weights, one
            for peer, make in () if self.rehearse else PEERS.items():
                bits = 4 + (16 * 2 / 128 if "int4" in peer else 32 / 64)
                nbytes = int(rows * inputs * bits / 8)
                try:
                    for b, x in xs.items():
                        copies = self.copies(nbytes)
                        seconds = self.timer(copies)(make(rows, inputs, copies, x))
                        self.add(peer, name, b, seconds, nbytes)
                except Exception as error:  # a peer that is not there, or fails, is named
                    self.missing.setdefault(peer, f"{type(error).__name__}: {error}"[:200])
            torch.cuda.empty_cache()
            print(f"measured {name}, {self.left():.0f} s left", flush=True)


# What is written


def device_facts(run: Run) -> dict[str, Any]:
    if run.rehearse:
        return {"name": "interpreter, a rehearsal"}
    p = torch.cuda.get_device_properties(0)
    return {"name": p.name, "processors": p.multi_processor_count,
            "memory_gb": p.total_memory / 1e9, "capability": f"{p.major}.{p.minor}",
            "cuda": torch.version.cuda}  # fmt: skip


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("qlab", "torch", "triton", "bitsandbytes"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "from source" if name == "qlab" else "not installed"
    return found


def markdown(result: dict[str, Any]) -> str:
    """A table a matrix: microseconds, and how many times as fast as float16."""
    device = result["device"]
    lines = [f"# Products on {device['name']}", "", f"{result['date']}; "
             + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + "."]  # fmt: skip
    if result["bandwidth"]:
        lines += ["", f"Copying 1 GB moves {result['bandwidth'] / 1e9:.0f} GB/s, "
                  f"cuBLAS reaches {result['peak'] / 1e12:.0f} TFLOP/s in float16."]  # fmt: skip
    lines += ["", "Microseconds a product (and times as fast as cuBLAS in float16).", ""]
    matrices = list(dict.fromkeys(r["matrix"] for r in result["rows"]))
    for name in matrices:
        rows = [r for r in result["rows"] if r["matrix"] == name]
        batches = sorted({r["batch"] for r in rows})
        lines += [f"## {name}: {rows[0]['rows']} x {rows[0]['inputs']}", "",
                  "| kernel | " + " | ".join(f"batch {b}" for b in batches) + " |",
                  "|---|" + "---|" * len(batches)]  # fmt: skip
        for kernel in dict.fromkeys(r["kernel"] for r in rows):
            cells = []
            for b in batches:
                found = [r for r in rows if (r["kernel"], r["batch"]) == (kernel, b)]
                cell = f"{found[0]['microseconds']:.1f}" if found else "-"
                if found and "times_fp16" in found[0]:
                    cell += f" ({found[0]['times_fp16']:.2f}x)"
                cells.append(cell)
            lines.append(f"| {kernel} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"Not measured: {k}: {v}" for k, v in result["not_measured"].items()]
    return "\n".join(lines).rstrip() + "\n"


def draw(result: dict[str, Any], path: Path) -> bool:
    """The roofline of the GPU with the measured products, as SVG; False without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    fig, ax = plt.subplots(figsize=(6.4, 4))
    slope, roof = result["bandwidth"] / 1e12, result["peak"] / 1e12
    xs = [0.5, roof / slope, 5000]
    ax.plot(xs, [min(roof, slope * x) for x in xs], color="gray", label="memory, arithmetic")
    for kernel in dict.fromkeys(r["kernel"] for r in result["rows"]):
        rows = [r for r in result["rows"] if r["kernel"] == kernel]
        intensity = [2 * r["batch"] * r["rows"] * r["inputs"] / r["bytes"] for r in rows]
        ax.plot(intensity, [r["operations_per_s"] / 1e12 for r in rows], "o", ms=4, label=kernel)
    ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s",
           title=f"{result['device']['name']}, {result['date']}")  # fmt: skip
    ax.legend(fontsize=7)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)
    return True


def adopt(result: dict[str, Any], path: Path) -> None:
    """Put the tile sizes of a result into the package's file."""
    table = json.loads(path.read_text(encoding="utf-8"))
    table["gpus"][result["device"]["name"]] = {
        "date": result["date"],
        "versions": result["versions"],
        "entries": result["configs"],
    }
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="look for tile sizes first")
    parser.add_argument("--rehearse", action="store_true", help="no GPU: tiny, and not timed")
    parser.add_argument("--adopt", type=Path, metavar="FILE", help="a result with tile sizes")
    parser.add_argument("--budget", type=float, default=300, help="seconds (default: 300)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    own = Path(configs.__file__).with_name("configs.json")
    if args.adopt:
        result = json.loads(args.adopt.read_text(encoding="utf-8"))
        if not result.get("configs"):
            parser.error(f"{args.adopt} has no tile sizes: run with --tune")
        adopt(result, own)
        print(f"wrote {own}")
        return 0
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU here: --rehearse runs without one")
    if args.rehearse and args.out == RESULTS:
        parser.error("a rehearsal measures nothing: give --out FOLDER")
    run = Run(args.rehearse, args.budget)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.date.today().isoformat(),
        "device": device_facts(run),
        "versions": versions(),
        "goal_times_fp16": GOAL,
        "correctness": run.correctness(),
        "bandwidth": None if run.rehearse else bandwidth(run.device),
        "peak": None if run.rehearse else peak(run.device),
        "configs": [],
    }
    print(f"{len(result['correctness'])} products are right, {run.left():.0f} s left", flush=True)
    if args.tune:
        result["configs"] = run.tune()
        found = {**configs.measured(), result["device"]["name"]: {"entries": result["configs"]}}
        configs.measured = lambda: found  # type: ignore[assignment]  # for this run
    run.measure()
    result |= {"rows": run.rows, "not_measured": run.missing}
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["name"].lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu-{slug}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    drawn = not run.rehearse and draw(result, path.with_suffix(".svg"))
    print(text)
    print(f"wrote {path}, its .md{' and its .svg' if drawn else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
