"""Figure: the time that a product must take on a GPU, against the number of vectors."""

from __future__ import annotations

from typing import NamedTuple

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


class Gpu(NamedTuple):
    """What a maker publishes of a GPU."""

    name: str
    bandwidth: float  # bytes a second
    peak: float  # operations a second on the matrix units, 16-bit floats, dense
    processors: int
    per_clock: int  # such operations a processor and clock tick

    @property
    def instructions(self) -> float:
        """Instructions a second, counted a thread: four of 32 threads a processor and tick.

        The clock is the one that belongs to the published peak.
        """
        clock = self.peak / (self.processors * self.per_clock)
        return self.processors * 4 * 32 * clock


# NVIDIA's data sheets and architecture white papers: A100 80GB SXM (2021), L40S (2023), H100 SXM
# (2022), H200 (2023).
GPUS = (
    Gpu("A100 SXM, 80 GB", 2039e9, 312e12, 108, 2048),
    Gpu("L40S", 864e9, 362.05e12, 142, 1024),
    Gpu("H100 SXM", 3.35e12, 989.4e12, 132, 4096),
    Gpu("H200 SXM", 4.8e12, 989.4e12, 132, 4096),
)
MATRICES = (
    ("7B, attention: 4096 x 4096", 4096, 4096),
    ("7B, up: 11008 x 4096", 11008, 4096),
    ("70B, attention: 8192 x 8192", 8192, 8192),
    ("70B, up: 28672 x 8192", 28672, 8192),
)
WEIGHTS = (
    ("int8, a scale a row", 8.0),
    ("int4, a 16-bit scale for 32 (Q4_0)", 4.5),
    ("int4, a 16-bit scale for 128", 4.125),
    ("2 bits, a 16-bit scale for 64", 2.25),
)
DECODING = (0.0, 2.0, 5.0, 10.0)  # instructions a weight
BATCHES = tuple(2**i for i in range(10))


def seconds(
    gpu: Gpu, rows: int, inputs: int, batch: int, bits: float = 16, decoding: float = 0
) -> float:
    """The least time of a product: of memory, matrix units and decoding, the slowest.

    Args:
        bits: of a weight, with its share of the scales. Vectors are of 16 bits.
        decoding: instructions a weight that turn codes into numbers, once for all vectors.
    """
    weights = rows * inputs
    moved = weights * bits / 8 + 2 * batch * (rows + inputs)
    return max(
        moved / gpu.bandwidth,
        2 * batch * weights / gpu.peak,
        weights * decoding / gpu.instructions,
    )


def gpu_times() -> Picture:
    """Predicted times of a product in 16 bits and in fewer, with the batch to choose.

    Chapter: A GPU kernel in Triton.
    """
    rows, inputs = MATRICES[0][1:]
    header = ("GPU", *(f"{b} vectors" if b > 1 else "1 vector" for b in (1, 16, 64, 256)))
    ratios = [
        (
            gpu.name,
            *(
                f"{seconds(gpu, rows, inputs, b) / seconds(gpu, rows, inputs, b, 4.125):.2f} times"
                for b in (1, 16, 64, 256)
            ),
        )
        for gpu in GPUS
    ]
    return figure(
        "gputime",
        {
            "gpus": [[*g, g.instructions] for g in GPUS],
            "matrices": MATRICES,
            "weights": WEIGHTS,
            "decoding": DECODING,
            "batches": BATCHES,
            "start": {"gpu": 2, "matrix": 0, "weights": 2, "decoding": 0, "batch": 0},
        },
        alt="Two curves of predicted microseconds against the number of vectors: 16-bit weights "
        "and fewer bits. Both are flat, then rise; where both wait for arithmetic they meet.",
        caption="Up to which batch do fewer bits pay? The curves are predictions from published "
        "bandwidths and peaks, not measurements. Then let decoding cost instructions.",
        fallback=table(header, ratios),
    )
