"""Mixes: which block type each tensor of a model gets.

``q4_k_m`` is not a block type. It names a recipe: most tensors in Q4_K, and more bits where an
error costs most. The rules are llama.cpp's (``llama_tensor_get_type`` in ``src/llama-quant.cpp``,
commit 0c1e57098), for models without experts. They rest on measurements of its authors
(llama.cpp pull request 1684), and in words they say:

- The output matrix decides between all words, so it gets Q6_K. With tied embeddings the token
  embeddings are the output matrix.
- ``attn_v`` is small where several heads share a key and a value, and its error goes straight into
  the sum over positions: it gets more bits.
- ``ffn_down`` meets the inputs with the largest outliers. In the ``m`` mixes it gets more bits in
  the first eighth of the layers, in the last eighth, and in every third between.
- Vectors (norms, biases) stay in float32: they are few.
- A row that is no multiple of 256 weights falls back to a type of blocks of 32, about as large.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from qlab.errors import QlabError
from qlab.gguf.blocks import block_type


@dataclass(frozen=True)
class Mix:
    """A recipe.

    Attributes:
        name: what a reader types, such as ``q4_k_m``.
        file_type: its number in ``general.file_type``.
        base: the block type of the tensors that no rule is about.
    """

    name: str
    file_type: int
    base: str


# name, general.file_type, base
_ROWS = (
    ("f32", 0, "F32"), ("f16", 1, "F16"), ("bf16", 32, "BF16"),
    ("q4_0", 2, "Q4_0"), ("q4_1", 3, "Q4_1"), ("q5_0", 8, "Q5_0"), ("q5_1", 9, "Q5_1"),
    ("q8_0", 7, "Q8_0"), ("q2_k", 10, "Q2_K"), ("q2_k_s", 21, "Q2_K"),
    ("q3_k_s", 11, "Q3_K"), ("q3_k_m", 12, "Q3_K"), ("q3_k_l", 13, "Q3_K"),
    ("q4_k_s", 14, "Q4_K"), ("q4_k_m", 15, "Q4_K"), ("q5_k_s", 16, "Q5_K"), ("q5_k_m", 17, "Q5_K"),
    ("q6_k", 18, "Q6_K"), ("iq4_nl", 25, "IQ4_NL"), ("iq4_xs", 30, "IQ4_XS"),
    ("iq3_xxs", 23, "IQ3_XXS"), ("iq3_xs", 22, "IQ3_S"), ("iq3_s", 26, "IQ3_S"),
    ("iq3_m", 27, "IQ3_S"), ("iq2_xxs", 19, "IQ2_XXS"), ("iq2_xs", 20, "IQ2_XS"),
    ("iq2_s", 28, "IQ2_XS"), ("iq2_m", 29, "IQ2_S"), ("iq1_s", 24, "IQ1_S"), ("iq1_m", 31, "IQ1_M"),
    ("tq1_0", 36, "TQ1_0"), ("tq2_0", 37, "TQ2_0"), ("q1_0", 40, "Q1_0"), ("q2_0", 41, "Q2_0"),
)  # fmt: skip
MIXES = {row[0]: Mix(*row) for row in _ROWS}
# llama-quantize takes these words too.
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

_FLOATS = ("F32", "F16", "BF16")
_BELOW_3_BITS = ("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m")
_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
# Where a row is no multiple of 256: a type of blocks of 32.
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def is_mix(name: str) -> bool:
    """Whether the word names a mix, in whatever case."""
    return name.lower() in MIXES or name.lower() in _ALIASES


def get_mix(name: str) -> Mix:
    """The mix of that name, in whatever case. Raises: QlabError naming the nearest known ones."""
    word = name.lower()
    word = _ALIASES.get(word, word)
    if word not in MIXES:
        near = difflib.get_close_matches(word, MIXES, n=3, cutoff=0.3) or list(MIXES)
        raise QlabError(f"no GGUF mix is called '{name}': did you mean {', '.join(near)}?")
    return MIXES[word]


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a model.

    Attributes:
        layers: number of layers.
        heads_per_kv: query heads that share a key and a value.
        tied: whether the token embeddings are the output matrix too.
        importance: whether there is an importance matrix.
        seventy: whether llama.cpp takes it for a 70B (80 layers, see ``architectures``).
    """

    layers: int
    heads_per_kv: int
    tied: bool
    importance: bool = False
    seventy: bool = False


def choose_types(mix: Mix, shapes: Mapping[str, tuple[int, ...]], facts: Facts) -> dict[str, str]:
    """The block type of each tensor.

    Args:
        mix: the recipe.
        shapes: GGUF's name of each tensor, such as ``blk.0.attn_v.weight``, to its shape as NumPy
            says it, (rows, columns).
        facts: of the model.

    Returns: name -> block type.

    Raises: QlabError if the mix needs an importance matrix and there is none, or rows divide into
        no type that could stand in.

    Chapter: k-quants and the importance matrix.
    """
    types = {}
    for name, shape in shapes.items():
        if not _is_matrix(name, shape):
            types[name] = "F32"
        elif mix.base in _FLOATS:
            types[name] = mix.base
        else:
            kind = _choose(mix, name, shape[-1], facts)
            types[name] = _that_fits(kind, shape[-1], f"mix '{mix.name}': {name}")
        if not facts.importance and needs_importance(mix, name, types[name]):
            raise QlabError(
                f"mix '{mix.name}' stores {name} as {types[name]}, which needs an importance "
                "matrix: compute one on a text first, or choose a mix of more bits"
            )
    return types


def needs_importance(mix: Mix, name: str, kind: str) -> bool:
    """Whether llama.cpp refuses to store this tensor so without an importance matrix."""
    if name in ("token_embd.weight", "output.weight"):
        return False
    return kind in _NEED_IMPORTANCE or (kind == "Q2_K" and mix.name == "q2_k_s")


def use_more_bits(layer: int, layers: int) -> bool:
    """The first eighth of the layers, the last eighth, and every third between."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    matrix = len(shape) > 1 and shape[0] > 1
    return matrix and name.endswith("weight") and not name.endswith("_norm.weight")


def _that_fits(kind: str, columns: int, what: str) -> str:
    """The type, or one of smaller blocks if a row is not whole blocks."""
    size = block_type(kind).block_size
    if columns % size == 0:
        return kind
    if kind not in _FALLBACK and size > 32:
        raise QlabError(
            f"{what} has rows of {columns} weights, no multiple of {kind}'s {size}, and no other "
            "type takes its place: choose another mix"
        )
    kind = _FALLBACK.get(kind, kind)
    return kind if columns % block_type(kind).block_size == 0 else "F16"


def _choose(mix: Mix, name: str, columns: int, facts: Facts) -> str:
    """The type that the recipe wants, whether it fits or not."""
    if name == "output.weight" or (facts.tied and name == "token_embd.weight"):
        return _output(mix, columns)
    if name == "token_embd.weight":
        return _embedding(mix)
    layer, role = int(name.split(".")[1]), name.split(".")[2]
    if role == "attn_v":
        return _attn_v(mix, layer, facts)
    if role == "attn_output":
        return _attn_output(mix)
    if role == "ffn_down":
        return _ffn_down(mix, layer, facts)
    if role in ("attn_q", "attn_k"):
        return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(mix.name, mix.base)
    # ffn_gate and ffn_up
    middle = facts.layers // 8 <= layer < 7 * facts.layers // 8
    return "IQ3_XXS" if mix.name == "iq3_xs" and middle else mix.base


def _output(mix: Mix, columns: int) -> str:
    if mix.base == "Q8_0" or columns % block_type(mix.base).block_size:
        return "Q8_0"
    return "Q5_K" if mix.name in (*_BELOW_3_BITS, "iq3_xxs") else "Q6_K"


def _embedding(mix: Mix) -> str:
    if mix.name in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
        return "Q2_K"
    if mix.name in ("iq2_s", "iq2_m", "iq3_xxs"):
        return "IQ3_S"
    return "Q4_K" if mix.name in ("tq1_0", "tq2_0", "q2_0") else mix.base


def _attn_v(mix: Mix, layer: int, facts: Facts) -> str:
    shared = facts.heads_per_kv >= 4  # then attn_v is small, and bits are cheap
    if mix.name in _BELOW_3_BITS:
        low = "IQ3_S" if mix.name in ("iq2_s", "iq2_m") else "Q2_K"
        return "Q4_K" if shared else low
    if mix.name == "q2_k":
        kind = "Q4_K" if shared else "Q3_K"
    elif mix.name == "iq3_xxs":
        kind = "Q4_K" if shared else "IQ3_XXS" if facts.importance else "IQ3_S"
    elif mix.name in ("q2_k_s", "iq3_xs", "iq3_s") and shared:
        kind = "Q4_K"
    elif mix.name == "iq3_m":
        kind = "Q4_K"
    elif mix.name == "q3_k_m":
        kind = "Q5_K" if layer < 2 else "Q4_K"
    elif mix.name == "q3_k_l" or (mix.name in ("iq4_nl", "iq4_xs") and shared):
        kind = "Q5_K"
    elif mix.name in ("q4_k_m", "q5_k_m") and use_more_bits(layer, facts.layers):
        kind = "Q6_K"
    elif mix.name == "q4_k_s" and layer < 4:
        kind = "Q5_K"
    else:
        kind = mix.base
    return "Q5_K" if facts.seventy and kind in ("Q3_K", "Q4_K") else kind


def _attn_output(mix: Mix) -> str:
    return {
        "iq1_s": "IQ2_XXS",
        "iq1_m": "IQ2_XXS",
        "iq2_s": "IQ3_S",
        "iq2_m": "IQ3_S",
        "iq3_xxs": "IQ3_S",
        "q2_k": "Q3_K",
        "q3_k_m": "Q4_K",
        "iq3_m": "Q4_K",
        "q3_k_l": "Q5_K",
    }.get(mix.name, mix.base)


def _ffn_down(mix: Mix, layer: int, facts: Facts) -> str:
    first = layer < facts.layers // 8
    if mix.name in ("q4_k_m", "q5_k_m"):
        return "Q6_K" if use_more_bits(layer, facts.layers) else mix.base
    if mix.name == "q3_k_m":
        return "Q5_K" if layer < facts.layers // 16 else "Q4_K"
    if mix.name == "iq3_xxs" and not facts.importance:
        return "Q4_K" if first else "Q3_K"
    always = {"q2_k": "Q3_K", "q3_k_l": "Q5_K"}
    if mix.name in always:
        return always[mix.name]
    if not first:
        return mix.base
    # What follows is about the first eighth of the layers.
    if mix.name in _BELOW_3_BITS:
        return "IQ3_S" if mix.name in ("iq2_s", "iq2_m") else "Q2_K"
    if mix.name in ("iq4_nl", "iq4_xs") and not facts.importance:
        return "Q5_K"
    # An importance matrix may tell Q4_0 to spend its one scale on few columns: a minimum helps.
    if mix.name in ("q4_0", "q5_0") and facts.importance:
        return {"q4_0": "Q4_1", "q5_0": "Q5_1"}[mix.name]
    return {"q2_k_s": "Q4_K", "iq3_m": "Q4_K", "q4_k_s": "Q5_K"}.get(mix.name, mix.base)
