"""Figure: the memory of full fine-tuning, LoRA and QLoRA."""

from __future__ import annotations

from qlab.training.lora_memory import NF4_BITS, WAYS, Shape, fine_tuning_memory
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# From the models' published configurations (config.json on the Hugging Face hub).
MODELS = (
    ("SmolLM2-135M", Shape(576, 1536, 30, 192, 49152, tied=True)),
    ("Llama-3.2-1B", Shape(2048, 8192, 16, 512, 128256, tied=True)),
    ("Llama-3.2-3B", Shape(3072, 8192, 28, 1024, 128256, tied=True)),
    ("Llama-3.1-8B", Shape(4096, 14336, 32, 1024, 128256)),
    ("LLaMA-65B", Shape(8192, 22016, 80, 8192, 32000)),
    ("Llama-3.1-70B", Shape(8192, 28672, 80, 1024, 128256)),
)
BASES = (
    ("NF4, double quantization", NF4_BITS),
    ("NF4", 4.5),
    ("int8, a scale for 128", 8.125),
    ("int2, a scale for 64", 2.25),
)
# name, memory in GB (10^9 bytes)
DEVICES = (
    ("a card of 8 GB", 8),
    ("a card of 12 GB", 12),
    ("a card of 24 GB", 24),
    ("a card of 48 GB", 48),
    ("a card of 80 GB", 80),
    ("eight cards of 80 GB", 640),
)
MARGIN = 0.95  # share of a card that may be filled
LABELS = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations")


def fine_tuning_calculator() -> Picture:
    """Bars of memory for three ways of fine-tuning; model, rank, batch and base to choose.

    The script multiplies what ``coefficients`` gives; a test holds it against
    ``qlab.training.lora_memory.fine_tuning_memory``.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    rows = [
        (name, *(f"{fine_tuning_memory(shape, way).total / 1e9:.1f} GB" for way in WAYS))
        for name, shape in MODELS
    ]
    return figure(
        "finetuning",
        {
            "models": [(name, coefficients(shape)) for name, shape in MODELS],
            "bases": BASES,
            "ways": [LABELS[way] for way in WAYS],
            "parts": PARTS,
            "devices": DEVICES,
            "margin": MARGIN,
        },
        alt="Calculator: three bars of memory, for training all weights, LoRA and QLoRA, each of "
        "weights, adapters, gradients, optimizer and activations.",
        caption="What fills the memory, and what does each way save? Choose the model, the rank, "
        "the tokens of a batch and the base of QLoRA. Checkpointing keeps the inputs of layers only"
        " and computes the rest a second time.",
        fallback=table(("model", *(LABELS[way] for way in WAYS)), rows),
    )


def coefficients(shape: Shape) -> dict[str, int]:
    """What the count of bytes multiplies: sizes of the model, and numbers kept a token."""
    return {
        "linear": shape.linear,
        "rest": shape.rest,
        "adapter": shape.adapters(1),
        "layers": shape.layers,
        "width": shape.width,
        # of a layer, all weights and adapters (without r a map)
        "full": 8 * shape.width + 2 * shape.kv + 4 * shape.inner,
        "lora": 6 * shape.width + 2 * shape.kv + 4 * shape.inner,
        "maps": len(shape.matrices),
        "vocabulary": shape.vocabulary,
    }
