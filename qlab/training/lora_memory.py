"""How many bytes fine-tuning takes: all weights, LoRA, QLoRA.

Counted for a Llama-style decoder whose training runs in bfloat16 with AdamW:

    a weight that learns    2 bytes, its gradient 2, its two moments in float32 8: 12 together
    a frozen weight         2 bytes, or the bits of its scheme
    an activation           2 bytes; kept from the forward to the backward pass

Numbers kept for a token, in each layer of width d with k numbers of keys, and as many of values:

    inputs of two norms 2d, what they give 2d, query d, key k, value k, attention d, MLP 4f
    normalized inputs 2d, if the weights of the norms learn;  r for each adapter

and of the whole model the logits in float32. With checkpointing, only the input d of each layer is
kept, and one layer at a time is computed again. Kernels that keep more, and what lives for the
moment only, come on top.

Sources: Dettmers et al. 2023 (arXiv 2305.14314), section 1: more than 780 GB for the 16-bit
fine-tuning of 65 billion weights, and less than 48 GB with QLoRA; Chen et al. 2016 (arXiv
1604.06174) for checkpointing.

Chapter: Fine-tuning a quantized model: QAF and QLoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError

WAYS = ("full", "lora", "qlora")
HALF, MOMENTS, LOGIT = 2, 8, 4  # bytes
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # double quantization


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-style decoder.

    Attributes:
        width: d, of the residual stream.
        inner: f, of the MLP.
        layers: decoder layers.
        kv: k, numbers of keys of a token and layer.
        vocabulary: tokens.
        tied: whether one matrix is embedding and output.
    """

    width: int
    inner: int
    layers: int
    kv: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers configuration whose heads together are as wide as the model."""
        size = config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_key_value_heads * size,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the linear maps of a layer: q, k, v, o, gate, up, down."""
        d, f, k = self.width, self.inner, self.kv
        return ((d, d), (k, d), (k, d), (d, d), (f, d), (f, d), (d, f))

    @property
    def linear(self) -> int:
        """Weights of the linear maps of all layers: what is quantized."""
        return self.layers * sum(o * i for o, i in self.matrices)

    @property
    def rest(self) -> int:
        """Weights of embeddings, output and norms."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return tables + (2 * self.layers + 1) * self.width

    def adapters(self, rank: int) -> int:
        """Weights of LoRA on all linear maps."""
        return self.layers * rank * sum(o + i for o, i in self.matrices)


@dataclass(frozen=True)
class Memory:
    """Bytes of one step of training.

    Attributes:
        weights: of the model.
        adapters: of LoRA.
        gradients: of what learns.
        optimizer: AdamW's two moments of what learns, float32.
        activations: kept for the backward pass.
    """

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


def fine_tuning_memory(
    shape: Shape,
    way: str,
    *,
    rank: int = 16,
    tokens: int = 2048,
    bits: float = NF4_BITS,
    checkpointing: bool = False,
) -> Memory:
    """Bytes that a step of fine-tuning takes.

    Args:
        shape: of the model.
        way: ``full``; ``lora``, adapters on all linear maps; ``qlora``, the same over a quantized
            base.
        rank: r, of each adapter.
        tokens: of a batch, rows times length.
        bits: of a weight of the quantized base, metadata counted; embeddings stay in 16.
        checkpointing: keep the inputs of layers only.

    Raises: QlabError for an unknown way, or a rank, tokens or bits that are not positive.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    if way not in WAYS:
        raise QlabError(f"no way '{way}' of fine-tuning: choose from {', '.join(WAYS)}")
    for name, value in (("rank", rank), ("tokens", tokens), ("bits", bits)):
        if not value > 0:
            raise QlabError(f"{name} is {value}: choose a number above 0")
    full = way == "full"
    low = 0 if full else shape.adapters(rank)
    learn = shape.linear + shape.rest if full else low
    base = shape.linear * (bits / 8 if way == "qlora" else HALF)
    kept = kept_numbers(shape, way, rank, checkpointing)
    return Memory(
        weights=base + HALF * shape.rest,
        adapters=HALF * low,
        gradients=HALF * learn,
        optimizer=MOMENTS * learn,
        activations=tokens * (HALF * kept + LOGIT * shape.vocabulary),
    )


def kept_numbers(shape: Shape, way: str, rank: int, checkpointing: bool = False) -> int:
    """Numbers kept a token for the backward pass, over all layers, without the logits."""
    d, f, k = shape.width, shape.inner, shape.kv
    norms = 2 * d if way == "full" else 0
    low = 0 if way == "full" else rank * len(shape.matrices)
    layer = 6 * d + norms + 2 * k + 4 * f + low
    return shape.layers * d + layer if checkpointing else shape.layers * layer
