"""Figure: what each worker holds, by ZeRO's stage."""

from __future__ import annotations

from qlab.training.zero import FLOAT32, MIXED, OFFLOADS, zero_memory
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# name, parameters in billions; the first is ZeRO's own example (figure 1 of its paper), the others
# are the models' published sizes.
MODELS = (
    ("7.5 billion (the paper's example)", 7.5),
    ("SmolLM2-135M", 0.1345),
    ("Llama-3.2-1B", 1.236),
    ("Llama-3.1-8B", 8.030),
    ("Qwen2.5-32B", 32.76),
    ("Llama-3.1-70B", 70.55),
    ("Llama-3.1-405B", 405.9),
)
PRECISIONS = (("bfloat16 with float32 AdamW", MIXED), ("all float32", FLOAT32))
STAGES = ("none", "stage 1", "stage 2", "stage 3")
CARD = 80  # GB of a data-center GPU
MARGIN = 0.9  # share of it that weights, gradients and states may fill


def zero_calculator() -> Picture:
    """Bars of bytes a worker for the four stages; model, workers, offload, precision to choose.

    The script counts as ``qlab.training.zero.zero_memory`` does; a test holds it against it.

    Chapter: Many machines: training and quantizing at scale.
    """
    rows = [
        (
            name,
            *(
                f"{zero_memory(billions * 1e9, 64, stage).device / 1e9:.1f} GB"
                for stage in range(4)
            ),
        )
        for name, billions in MODELS
    ]
    return figure(
        "zero",
        {
            "models": MODELS,
            "precisions": [(name, (p.weight, p.gradient, p.optimizer)) for name, p in PRECISIONS],
            "offloads": OFFLOADS,
            "stages": STAGES,
            "card": CARD,
            "margin": MARGIN,
        },
        alt="Calculator: for each stage of ZeRO a bar of what one worker holds on its device: "
        "weights, gradients and the optimizer's state.",
        caption="How much does one worker hold? Choose the model, the number of workers, the "
        f"stage, and what is moved to the host's memory. The thin line stands at {MARGIN:.0%} of a "
        f"card of {CARD} GB. A bar that ends before it fits; the rest is for activations.",
        fallback=table(("model, on 64 workers", *STAGES), rows),
    )
