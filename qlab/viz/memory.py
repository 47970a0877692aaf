"""Figure: does this model fit on that device?"""

from __future__ import annotations

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# name, weights in billions, layers, numbers kept for each token and layer in the KV cache
# (2 · KV heads · head size; DeepSeek-V3 keeps a compressed vector of 512 + 64 instead).
# From the models' published configurations (config.json on the Hugging Face hub).
MODELS = (
    ("SmolLM2-135M", 0.1345, 30, 2 * 3 * 64),
    ("Qwen2.5-0.5B", 0.494, 24, 2 * 2 * 64),
    ("Llama-3.2-1B", 1.236, 16, 2 * 8 * 64),
    ("Llama-3.2-3B", 3.213, 28, 2 * 8 * 128),
    ("Mistral-7B", 7.248, 32, 2 * 8 * 128),
    ("Llama-3.1-8B", 8.030, 32, 2 * 8 * 128),
    ("Qwen2.5-14B", 14.77, 48, 2 * 8 * 128),
    ("Qwen2.5-32B", 32.76, 64, 2 * 8 * 128),
    ("Llama-3.1-70B", 70.55, 80, 2 * 8 * 128),
    ("Llama-3.1-405B", 405.9, 126, 2 * 8 * 128),
    ("DeepSeek-V3 (671B)", 671.0, 61, 576),
)
# name, bits per weight with metadata
WIDTHS = (
    ("float32", 32.0),
    ("bfloat16", 16.0),
    ("int8, a 16-bit scale for 32 (Q8_0)", 8.5),
    ("int6, k-quant (Q6_K)", 6.5625),
    ("int4, a 16-bit scale for 32 (Q4_0)", 4.5),
    ("int4, a 16-bit scale for 128", 4.125),
    ("int3, a 16-bit scale for 128", 3.125),
    ("int2, a 16-bit scale for 64", 2.25),
    ("ternary, 1.6875 bits (TQ1_0)", 1.6875),
)
# name, memory in GB (10^9 bytes, as the makers count)
DEVICES = (
    ("phone, 8 GB", 8),
    ("laptop, 16 GB", 16),
    ("graphics card, 24 GB", 24),
    ("laptop, 64 GB", 64),
    ("data-center GPU, 80 GB", 80),
    ("eight of them, 640 GB", 640),
)
MARGIN = 0.8  # share of a device's memory that a model may take; the rest is for the system


def memory_calculator() -> Picture:
    """Weights and KV cache of a model at a width and a context, and the devices that hold both."""
    rows = [
        (name, *(f"{billions * bits / 8:.1f} GB" for _, bits in WIDTHS[1:6:2]))
        for name, billions, _, _ in MODELS
    ]
    header = ("model", *(name for name, _ in WIDTHS[1:6:2]))
    return figure(
        "memory",
        {"models": MODELS, "widths": WIDTHS, "devices": DEVICES, "margin": MARGIN},
        alt="Calculator: memory that a model needs for its weights and its KV cache, as a bar, "
        "with the devices that can hold it.",
        caption="Which model fits where? Choose a model, the bits of a weight, the length of the "
        "context and the bits of the cache. A device counts as large enough if the model takes at "
        "most 80 percent of its memory.",
        fallback=table(header, rows),
    )
