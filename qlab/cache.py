"""A quantized key-value cache for models of transformers: KIVI, and other schemes beside it.

A decoder keeps the keys and values of all earlier tokens. Seen as a matrix (tokens, head_dim) for
each head, keys have channels that are far from zero for every token, and values have none. So keys
share a scale along tokens within a channel, and values along channels within a token:

    keys    int4-asym-b32x1    a block of 32 tokens of one channel
    values  int4-asym-g32      32 channels of one token

With X the numbers of one block, B bits, and m and s kept beside the codes,

    m = min X     s = (max X - min X) / (2^B - 1)     Q = round((X - m) / s)     X' = Q · s + m

The most recent ``residual`` tokens stay in full precision, and a block of keys waits until it is
whole. A query attends to its own chunk of tokens exactly, and to what was stored before it.

Source: Liu et al. 2024, KIVI, arXiv 2402.02750, section 3.2 and algorithm 1.

Chapter: The KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from qlab.core import IntFormat, Scheme, from_params, quantize
from qlab.core import granularity as gran
from qlab.core._array import cast_to_float32, dtype_name
from qlab.core.formats import LearnedFormat
from qlab.core.packing import pack, unpack
from qlab.core.qtensor import block_range
from qlab.core.scheme import SCALE_DTYPES
from qlab.errors import QlabError
from qlab.evaluate.perplexity import Window, cut

KEYS, VALUES = "int4-asym-b32x1-sfp16", "int4-asym-g32-sfp16"


@dataclass(frozen=True, eq=False)
class OffsetTensor:
    """Codes whose zero is a number, not a code: x̂ = codes · scale + minimum. Immutable.

    Attributes:
        packed: uint8 (..., bytes a row), codes from 0 to 2^bits - 1 packed along the last axis.
        scale, minimum: one a block; float32, or float16 for ``sfp16``.
        scheme: an asymmetric integer scheme.
        shape: of what was quantized: whole blocks.
        dtype: name of the dtype that ``dequantize`` returns.

    Chapter: The KV cache.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str

    @property
    def codes(self) -> torch.Tensor:
        """The codes, uint8, in the original shape."""
        codes: torch.Tensor = unpack(self.packed, self.scheme.format.bits, self.shape[-1])
        return codes

    def dequantize(self) -> torch.Tensor:
        """x̂ in the original shape and dtype, computed in float32; finite."""
        block = self.scheme.granularity.block_shape(self.shape)
        codes, _ = gran.to_blocks(self.codes.float(), block)
        s, m = (gran.expand(p.float(), block) for p in (self.scale, self.minimum))
        dtype = getattr(torch, self.dtype)
        limit = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
        x: torch.Tensor = (codes * s + m).clamp(-limit, limit)
        return x.reshape(self.shape).to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minima."""
        params = self.scale.nbytes + self.minimum.nbytes
        return self.packed.nbytes + params


def quantize_offset(x: torch.Tensor, scheme: str | Scheme) -> OffsetTensor:
    """Quantize ``x`` (..., tokens, head_dim) as KIVI does, with the minimum of each block as zero.

    With ``sfp16`` scale and minimum are rounded to float16 before the codes are chosen. A block of
    equal numbers gets the scale 1 and code 0.

    Raises: QlabError unless the scheme is an asymmetric integer one with scales in float32 or
        float16; for NaN or infinity; for a minimum beyond float16.

    Chapter: The KV cache.
    """
    scheme = Scheme.parse(scheme)
    fmt = scheme.format
    if not isinstance(fmt, IntFormat) or scheme.symmetric:
        raise QlabError(f"scheme '{scheme}' has no minimum: use one such as '{KEYS}'")
    if scheme.scale_word not in ("sfp32", "sfp16"):
        raise QlabError(f"scheme '{scheme}': scale and minimum are kept as sfp32 or sfp16")
    x32 = cast_to_float32(x)
    scheme.granularity.check_divides(tuple(x.shape))
    block = scheme.granularity.block_shape(tuple(x.shape))
    low, high = block_range(x32, block)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise QlabError("keys or values are not finite: look for the layer that made them so")
    top = 2**fmt.bits - 1
    span = high - low
    # Where the difference overflows, each is divided first.
    s = torch.where(span.isfinite(), span / top, high / top - low / top)
    _, _, smallest, largest = SCALE_DTYPES[scheme.scale_word]
    s = torch.where(high == low, torch.ones_like(s), s.clamp(smallest, largest))
    dtype = torch.float16 if scheme.scale_word == "sfp16" else torch.float32
    s, m = s.to(dtype), low.to(dtype)
    if not bool(torch.isfinite(m).all()):
        raise QlabError(f"scheme '{scheme}': a minimum is beyond float16: leave out '-sfp16'")
    blocks, _ = gran.to_blocks(x32, block)
    s32, m32 = gran.expand(s.float(), block), gran.expand(m.float(), block)
    codes = ((blocks - m32) / s32).round().clamp(0, top).reshape(x32.shape).to(torch.uint8)
    return OffsetTensor(pack(codes, fmt.bits), s, m, scheme, tuple(x.shape), dtype_name(x))


class QuantizedStates:
    """The keys, or the values, of one layer: codes of the old tokens, numbers of the recent ones.

    Args:
        scheme: see ``QuantizedCache``; None keeps everything as it is.
        residual: how many recent tokens stay in full precision, at least.
        zero: see ``QuantizedCache``.

    Chapter: The KV cache.
    """

    def __init__(self, scheme: Scheme | None, residual: int, zero: str = "real") -> None:
        self.scheme, self.residual, self.zero = scheme, residual, zero
        self.stored: Any = None  # QTensor or OffsetTensor (batch, heads, old tokens, head_dim)
        self.recent: torch.Tensor | None = None  # (batch, heads, recent tokens, head_dim)

    @property
    def step(self) -> int:
        """Tokens that are quantized together."""
        assert self.scheme is not None
        kind = self.scheme.granularity.kind
        return self.scheme.granularity.size[0] if kind == "block" else 1

    def append(self, x: torch.Tensor) -> None:
        """Add x (batch, heads, tokens, head_dim), and quantize what is no longer recent."""
        self.recent = x if self.recent is None else torch.cat([self.recent, x], dim=-2)
        if self.scheme is None:
            return
        old = max(0, self.recent.shape[-2] - self.residual) // self.step * self.step
        if old:
            now = self._quantize(self.recent[..., :old, :].contiguous(), self.scheme)
            self.stored = now if self.stored is None else _joined(self.stored, now)
            self.recent = self.recent[..., old:, :].clone()  # lets go of the numbers before

    def _quantize(self, x: torch.Tensor, scheme: Scheme) -> Any:
        shared = scheme.granularity.kind == "tensor"
        integer = isinstance(scheme.format, IntFormat)
        if self.zero == "real" and integer and not (scheme.symmetric or shared):
            return quantize_offset(x, scheme)
        if shared and self.stored is not None:
            # One scale for all: that of the tokens that came first.
            q = self.stored
            return from_params(
                cast_to_float32(x), q.scale, q.zero_point, scheme, dtype=dtype_name(x)
            )
        return quantize(x, scheme)

    def read(self) -> torch.Tensor | None:
        """Everything stored, x̂ (batch, heads, tokens, head_dim) in the dtype that came in."""
        if self.stored is None:
            return self.recent
        assert self.recent is not None
        return torch.cat([self.stored.dequantize(), self.recent], dim=-2)

    def __len__(self) -> int:
        old = self.stored.shape[-2] if self.stored is not None else 0
        return old + (self.recent.shape[-2] if self.recent is not None else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes with their parameters, and of the recent tokens in their dtype."""
        old = self.stored.nbytes if self.stored is not None else 0
        return old + (self.recent.nbytes if self.recent is not None else 0)

    def select(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch, in this order."""
        if self.recent is not None:
            self.recent = self.recent.index_select(0, indices.to(self.recent.device))
        q = self.stored
        if q is not None:
            parts = {"packed": q.packed.index_select(0, indices)}
            for name in _params(q):
                value = getattr(q, name)
                shared = value.shape[0] == 1 and q.shape[0] > 1
                parts[name] = value if shared else value.index_select(0, indices)
            self.stored = replace(q, **parts, shape=(len(indices), *q.shape[1:]))


class QuantizedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The cache of one layer: its keys and its values, as transformers' attention calls it.

    Chapter: The KV cache.
    """

    is_sliding = False

    def __init__(
        self, key_scheme: Scheme | None, value_scheme: Scheme | None, residual: int, zero: str
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key_states = QuantizedStates(key_scheme, residual, zero)
        self.value_states = QuantizedStates(value_scheme, residual, zero)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add (batch, heads, tokens, head_dim) each; return all, the new ones exactly."""
        self.is_initialized = True
        found = []
        for states, new in ((self.key_states, key_states), (self.value_states, value_states)):
            before = states.read()
            found.append(new if before is None else torch.cat([before, new], dim=-2))
            states.append(new)
        return found[0], found[1]

    def get_seq_length(self) -> int:
        return len(self.key_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1  # grows without bound

    def reset(self) -> None:
        for states in (self.key_states, self.value_states):
            states.stored = states.recent = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -``tokens_to_remove`` tokens, as long as they are recent ones."""
        n = -tokens_to_remove
        for states in (self.key_states, self.value_states) if n else ():
            have = 0 if states.recent is None else states.recent.shape[-2]
            if not 0 < n <= have:
                raise QlabError(
                    f"{n} tokens to take back, and {have} are still in full precision: "
                    "make the cache with a larger residual"
                )
        if n:
            for states in (self.key_states, self.value_states):
                assert states.recent is not None
                states.recent = states.recent[..., : states.recent.shape[-2] - n, :].clone()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.get_seq_length():
            self.key_states.select(indices)
            self.value_states.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.key_states.recent is not None:
            batch = torch.arange(self.key_states.recent.shape[0])
            self.batch_select_indices(batch.repeat_interleave(repeats))


class QuantizedCache(Cache):
    """Keys and values in few bits: ``model.generate(ids, past_key_values=QuantizedCache(config))``.

    Args:
        config: of the model; all its layers must use full attention.
        key_scheme, value_scheme: of a matrix (tokens, head_dim). ``b32x1`` shares a scale along 32
            tokens of a channel, ``g32`` along 32 channels of a token, ``token`` along all channels
            of a token; ``tensor`` has one scale, that of the first tokens that were quantized.
            None: as they are.
        residual: how many recent tokens stay in full precision, at least.
        zero: ``real``: in asymmetric integer schemes the minimum of a block is kept as a number, as
            KIVI does; ``integer``: as a code, and 0 always has one, as ``qlab.quantize`` does.

    Raises: QlabError for a scheme that cannot grow by tokens; layers of another kind.

    Chapter: The KV cache.
    """

    def __init__(
        self,
        config: Any,
        key_scheme: str | Scheme | None = KEYS,
        value_scheme: str | Scheme | None = VALUES,
        residual: int = 32,
        zero: str = "real",
    ) -> None:
        if zero not in ("real", "integer"):
            raise QlabError(f"zero is '{zero}': choose 'real' or 'integer'")
        if residual < 0:
            raise QlabError(f"residual {residual}: keep 0 or more recent tokens")
        config = config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or (
            ["full_attention"] if getattr(config, "sliding_window", None) is None else ["sliding"]
        )
        if set(kinds) != {"full_attention"}:
            other = sorted(set(kinds) - {"full_attention"})
            raise QlabError(f"the cache knows layers of full attention, not {', '.join(other)}")
        keys, values = _checked(key_scheme, config), _checked(value_scheme, config)
        layers: list[Any] = [
            QuantizedLayer(keys, values, residual, zero) for _ in range(config.num_hidden_layers)
        ]
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values as they are stored now."""
        layers: list[Any] = self.layers
        return sum(layer.key_states.nbytes + layer.value_states.nbytes for layer in layers)


def cache_bytes(config: Any, tokens: int, bits: float = 16) -> float:
    """Bytes of keys and values of one sequence: 2 · layers · kv_heads · head_dim · tokens · bits/8.

    ``config``: of a transformers decoder, whose layers all attend to everything.

    Chapter: The KV cache.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(2 * config.num_hidden_layers * heads * size * tokens * bits / 8)


@torch.no_grad()
def cached_logits(model: Any, ids: torch.Tensor, cache: Cache, chunk: int = 1) -> torch.Tensor:
    """What a model predicts after each token, read ``chunk`` tokens at a time through a cache.

    Args:
        ids: token ids, int64 (batch, tokens).
        cache: an empty one, or one that has read what comes before; it grows.

    Returns: logits, float32 (batch, tokens, vocabulary).

    Raises: QlabError for a chunk below 1.

    Chapter: The KV cache.
    """
    if chunk < 1:
        raise QlabError(f"chunk {chunk}: read at least 1 token at a time")
    parts = [
        model(input_ids=part, past_key_values=cache, use_cache=True).logits.float()
        for part in torch.split(ids, chunk, dim=1)
    ]
    return torch.cat(parts, dim=1)


def cache_perplexity(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str],
    cache: Callable[[], Cache],
    chunk: int = 1,
    context: int | None = None,
    batch: int = 8,
) -> float:
    """Perplexity of texts that are read ``chunk`` tokens at a time, through a cache.

    A token sees its own chunk exactly, and all that came before as the cache gives it back. So with
    ``chunk=1`` each token is predicted as in generation. Windows are those of ``qlab.perplexity``
    without overlap.

    Args:
        cache: makes an empty cache, such as ``lambda: QuantizedCache(model.config)``.
        batch: windows at a time.

    Raises: QlabError for empty text or a bad chunk.

    Chapter: The KV cache.
    """
    from qlab.nn import dequantize_model

    texts = [texts] if isinstance(texts, str) else list(texts)
    limit = context or int(model.config.max_position_embeddings)
    windows = [w for text in texts for w in cut(tokenizer, text, limit)]
    if not windows:
        raise QlabError("the text has too few tokens to score: give a longer one")
    windows.sort(key=lambda w: -len(w.ids))  # like lengths together: little padding
    plain = dequantize_model(model)
    nll = 0.0
    for start in range(0, len(windows), batch):
        nll += _chunked_loss(plain, windows[start : start + batch], cache(), chunk)
    return math.exp(nll / sum(w.scored for w in windows))


def _chunked_loss(model: Any, windows: list[Window], cache: Cache, chunk: int) -> float:
    """Summed negative log-likelihood of the scored tokens of some windows."""
    longest = max(len(w.ids) for w in windows)
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    scored = torch.zeros(len(windows), longest, dtype=torch.bool)
    for i, window in enumerate(windows):
        ids[i, : len(window.ids)] = torch.tensor(window.ids)
        scored[i, len(window.ids) - window.scored : len(window.ids)] = True
    # Padding comes last, where it can be in no block that a token before it sees.
    logits = cached_logits(model, ids[:, :-1].to(model.device), cache, chunk)
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids[:, 1:].to(logits.device), reduction="none"
    )
    return float(loss[scored[:, 1:]].double().sum())


def _checked(scheme: str | Scheme | None, config: Any) -> Scheme | None:
    """The scheme, if tokens can be added to what it quantized."""
    if scheme is None:
        return None
    scheme = Scheme.parse(scheme)
    kind = scheme.granularity.kind
    if isinstance(scheme.format, LearnedFormat) or scheme.has_tensor_scale:
        raise QlabError(f"scheme '{scheme}' learns from all of a tensor, and a cache grows")
    if kind not in ("token", "group", "block", "tensor"):
        raise QlabError(
            f"a cache in '{scheme}' cannot grow: share scales along tokens by b32x1, along "
            "channels by g32 or token"
        )
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind in ("group", "block") and size % scheme.granularity.size[-1]:
        raise QlabError(f"scheme '{scheme}' does not divide heads of {size} channels")
    return scheme


def _params(q: Any) -> list[str]:
    """Names of the parameters of a block."""
    names = ["scale", "minimum"] if isinstance(q, OffsetTensor) else ["scale", "zero_point"]
    return [name for name in names if getattr(q, name) is not None]


def _joined(a: Any, b: Any) -> Any:
    """The tokens of ``a``, then those of ``b``, both QTensor or OffsetTensor.

    Codes are packed within a token, so nothing is packed anew.
    """
    parts = {"packed": torch.cat([a.packed, b.packed], dim=-2)}
    if a.scheme.granularity.kind != "tensor":
        for name in _params(a):
            parts[name] = torch.cat([getattr(a, name), getattr(b, name)], dim=-2)
    shape = (*a.shape[:-2], a.shape[-2] + b.shape[-2], a.shape[-1])
    return replace(a, **parts, shape=shape)
