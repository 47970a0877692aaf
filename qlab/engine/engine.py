"""Engine: a model that reads and writes tokens through one compiled function.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from qlab.engine import compiled
from qlab.engine.cache import KVCache
from qlab.engine.forward import Counts
from qlab.engine.kernels import attend_address, embed_address, prepare_address
from qlab.engine.sample import choice
from qlab.engine.sizes import Sizes
from qlab.engine.weights import FileSource, Loaded, ModelSource, collect
from qlab.errors import QlabError

CHUNK = 256  # tokens of a prompt that are read at a time
BURST_BYTES = 1 << 26  # weights that are read before Python looks at what was written
MOST_CONTEXT = 1 << 15  # positions in RoPE's table where nobody says how many


def load(
    source: Any = None,
    *,
    exact: bool = False,
    context: int | None = None,
    progress: bool | None = None,
) -> Engine:
    """An engine for a model.

    Args:
        source: a storyteller, a transformers model (its linear layers may be ``QuantLinear``), the
            path of a GGUF file or of a model folder, ``"story"``, or a hub id.
        exact: compute with the dequantized weights in float32. Kernels for few bits may round
            their inputs to 8 bits; this never does, and takes the memory of floats.
        context: the most tokens of a text (default: the model's, at most 32,768).
        progress: whether to say on standard error that the engine is being compiled, at its first
            use on a machine (default: where standard error is a terminal).

    Raises: QlabError for a model that the engine does not compute, with its reason in one line.

    Chapter: An engine in one file's worth of Python.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_file() or path.suffix == ".gguf":
            return _load_file(path, exact, context, progress)
    if source is None or isinstance(source, str | Path):
        from qlab.sources import load as load_model

        source = load_model(source)
    tokenizer = getattr(source, "tokenizer", None)
    model = source.model if tokenizer is not None and hasattr(source, "model") else source
    if not hasattr(model, "config") or not hasattr(model, "get_submodule"):
        raise QlabError(
            f"an engine of a {type(source).__name__}: give a storyteller, a transformers model, a "
            "GGUF file or a model folder"
        )
    parts = ModelSource(model)
    room = _context(parts.sizes, context)
    return Engine(collect(parts, room, exact), room, tokenizer, progress=progress)


def _load_file(path: Path, exact: bool, context: int | None, progress: bool | None) -> Engine:
    from qlab.gguf.reader import GGUFFile

    with GGUFFile(path) as file:
        parts = FileSource(file)
        room = _context(parts.sizes, context)
        loaded = collect(parts, room, exact)
    return Engine(loaded, room, None, path, progress)


def _context(sizes: Sizes, context: int | None) -> int:
    if context is None:
        return min(sizes.context, MOST_CONTEXT)
    if not 1 <= context <= sizes.context:
        raise QlabError(f"context {context}: this model takes 1 to {sizes.context} tokens")
    return context


class Engine:
    """A compiled decoder with its weights. Make one with ``qlab.engine.load``.

    Attributes:
        sizes: of the model.
        context: the most tokens of a text.
        kinds: the kernel of each matrix, by GGUF's name of it.
        nbytes: bytes of matrices, vectors and embedding in memory.

    Chapter: An engine in one file's worth of Python.
    """

    is_engine = True  # so that others can tell without importing the compiler

    def __init__(
        self,
        loaded: Loaded,
        context: int,
        tokenizer: Any = None,
        path: Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.sizes, self.context, self._loaded = loaded.sizes, context, loaded
        self.threads = numba.get_num_threads()
        self.kinds, self.nbytes = loaded.kinds, loaded.nbytes
        self._tokenizer, self._path, self._progress = tokenizer, path, progress

    def __repr__(self) -> str:
        kinds = ", ".join(sorted(set(self.kinds.values())))
        return f"Engine({self.sizes.model_type}, {kinds}, {self.nbytes:,} bytes)"

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; that of a GGUF file is read when it is first asked for.

        Raises: QlabError where the source had none.
        """
        if self._tokenizer is None and self._path is not None:
            from qlab.gguf.reader import GGUFFile
            from qlab.gguf.tokenizers import read_tokenizer

            with GGUFFile(self._path) as file:
                self._tokenizer = read_tokenizer(file.metadata, self.sizes.context)
        if self._tokenizer is None:
            raise QlabError("the engine was made from a model alone: give a storyteller instead")
        return self._tokenizer

    @property
    def arrays(self) -> Any:
        """The arrays of the model, as the compiled functions take them (``forward.Weights``)."""
        return self._loaded.weights

    def cache(self, context: int | None = None, sequences: int = 1, kind: str = "fp32") -> KVCache:
        """An empty cache for some sequences of at most ``context`` tokens; fp32 or int8."""
        room = self.context if context is None else context
        if room > self.context:
            raise QlabError(f"a cache of {room} tokens: this engine takes 1 to {self.context}")
        return KVCache(self.sizes, room, sequences, kind)

    def prefill(self, ids: Any, cache: KVCache | None = None, sequence: int = 0) -> np.ndarray:
        """Read tokens into a cache. Returns: logits of what may come next, float32 (vocabulary,).

        Args:
            ids: token ids, (tokens,) or (1, tokens), NumPy, torch or a list; not empty.
            cache: what was read before; it grows. None: an empty one, that is dropped.
            sequence: which of the cache.

        Raises: QlabError for no tokens, one out of range, or more than the cache has room for.
        """
        tokens = self._checked(ids)
        cache = self.cache(len(tokens)) if cache is None else cache
        return self._read(tokens, cache, sequence, last_only=True)[0]

    def logits(self, ids: Any, cache: KVCache | None = None, sequence: int = 0) -> np.ndarray:
        """The same for each token: float32 (tokens, vocabulary)."""
        tokens = self._checked(ids)
        cache = self.cache(len(tokens)) if cache is None else cache
        return self._read(tokens, cache, sequence, last_only=False)

    def states(self, ids: Any) -> np.ndarray:
        """What stands before and after each layer: float32 (layers + 1, tokens, hidden)."""
        tokens = self._checked(ids)
        cache = self.cache(len(tokens))
        trace = np.empty((self.sizes.layers + 1, len(tokens), self.sizes.hidden), np.float32)
        self._forward(self._rows(tokens, cache, 0), np.empty(0, np.int64), cache, trace)
        return trace

    def generate(
        self,
        ids: Any,
        max_new_tokens: int = 200,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        cache: str = "fp32",
        stop: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Write tokens after those of a prompt, one by one as they come.

        Args:
            ids: as for ``prefill``.
            max_new_tokens: at most this many.
            temperature, top_k, top_p, min_p, repetition_penalty: see ``qlab.engine.sample``;
                temperature 0 is greedy.
            seed: of the draws. The same seed gives the same tokens.
            cache: how keys and values are kept, ``fp32`` or ``int8``.
            stop: ids that end the text, and are not given (default: the model's).

        Raises: QlabError, at once, for bad settings or tokens, or a text that would not fit.
        """
        found = self.generate_batch(
            [self._checked(ids)],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            cache=cache,
            stop=stop,
        )
        return (step[0] for step in found if step[0] is not None)

    def generate_batch(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int = 200,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        cache: str = "fp32",
        stop: Sequence[int] | None = None,
    ) -> Iterator[list[int | None]]:
        """The same for several prompts at once: a list a step, None where a text has ended.

        A weight that was read serves all sequences. Sequence i draws with the seed ``seed + i``, so
        a text does not depend on the others.
        """
        how = choice(temperature, top_k, top_p, min_p, repetition_penalty)
        texts = [self._checked(ids) for ids in prompts]
        if not texts:
            raise QlabError("no prompts: give at least one")
        if max_new_tokens < 1:
            raise QlabError(f"max_new_tokens {max_new_tokens}: at least 1")
        longest = max(map(len, texts)) + max_new_tokens
        if longest > self.context:
            raise QlabError(
                f"{longest - max_new_tokens} tokens of prompt and {max_new_tokens} new ones: this "
                f"engine takes {self.context} in all; ask for fewer"
            )
        ends = np.array(self.sizes.ends if stop is None else list(stop), np.int64)
        state = np.array([(seed + i) % 2**64 for i in range(len(texts))], np.uint64)
        store = self.cache(longest, len(texts), cache)
        return self._written(texts, max_new_tokens, how, ends, state, store)

    def perplexity(
        self, texts: Any, context: int | None = None, stride: int | None = None
    ) -> float:
        """Perplexity of texts, as ``qlab.perplexity`` computes it. Needs the tokenizer."""
        from qlab.engine.model import EngineModel
        from qlab.evaluate import perplexity

        return perplexity(EngineModel(self), self.tokenizer, texts, context, stride)

    # --- below: how ---------------------------------------------------------------------------

    def _checked(self, ids: Any) -> np.ndarray:
        """int64 (tokens,). Raises: QlabError."""
        ids = ids.detach().cpu().numpy() if hasattr(ids, "detach") else ids
        found = np.asarray(ids)
        if found.ndim == 2 and len(found) == 1:
            found = found[0]
        if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu":
            raise QlabError(
                f"token ids of shape {found.shape} and type {found.dtype}: give whole numbers, "
                "(tokens,), at least one"
            )
        tokens = found.astype(np.int64)
        wrong = tokens[(tokens < 0) | (tokens >= self.sizes.vocabulary)]
        if wrong.size:
            raise QlabError(f"token {wrong[0]}: this model knows 0 to {self.sizes.vocabulary - 1}")
        return tokens

    def _rows(self, tokens: np.ndarray, cache: KVCache, sequence: int) -> np.ndarray:
        """Rows for ``forward``, and their place in the cache taken."""
        if not 0 <= sequence < len(cache.lengths):
            raise QlabError(f"sequence {sequence}: the cache has 0 to {len(cache.lengths) - 1}")
        start = cache.lengths[sequence]
        if start + len(tokens) > cache.context:
            raise QlabError(
                f"{len(tokens)} tokens after {start}: the cache has room for {cache.context}"
            )
        cache.lengths[sequence] = start + len(tokens)
        places = np.arange(start, start + len(tokens))
        return np.stack([tokens, np.full_like(tokens, sequence), places], axis=1)

    def _read(
        self, tokens: np.ndarray, cache: KVCache, sequence: int, last_only: bool
    ) -> np.ndarray:
        rows, found = self._rows(tokens, cache, sequence), []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            wanted = np.arange(len(part))
            if last_only:
                wanted = wanted[-1:] if start + CHUNK >= len(rows) else wanted[:0]
            found.append(self._forward(part, wanted, cache))
        return found[-1] if last_only else np.concatenate(found)

    def _forward(
        self,
        rows: np.ndarray,
        wanted: np.ndarray,
        cache: KVCache,
        trace: np.ndarray | None = None,
    ) -> np.ndarray:
        logits = np.empty((len(wanted), self.sizes.vocabulary), np.float32)
        trace = np.empty((0, 0, 0), np.float32) if trace is None else trace
        compiled.call(
            compiled.forward,
            self._progress,
            rows,
            wanted,
            self.counts(cache),
            np.float32(self.sizes.eps),
            self._loaded.weights,
            cache.store,
            trace,
            logits,
        )
        return logits

    def counts(self, cache: KVCache) -> Counts:
        """What the compiled functions must know of the model and a cache."""
        s = self.sizes
        return Counts(
            *(s.layers, s.hidden, s.inner, s.heads, s.kv_heads, s.head_dim, s.vocabulary),
            cache.room,
            cache.kind == "int8",
            self.threads,
            embed_address(self._loaded.table),
            prepare_address(),
            attend_address(cache.kind == "int8"),
        )

    def _written(
        self,
        texts: list[np.ndarray],
        count: int,
        how: Any,
        ends: np.ndarray,
        state: np.ndarray,
        cache: KVCache,
    ) -> Iterator[list[int | None]]:
        logits = np.stack([self.prefill(t, cache, i) for i, t in enumerate(texts)])
        rows = np.array([[0, i, len(t)] for i, t in enumerate(texts)], np.int64)
        over = np.zeros(len(texts), np.bool_)
        seen = np.zeros((len(texts), self.sizes.vocabulary), np.bool_)
        for i, text in enumerate(texts):
            seen[i, text] = True
        # Small models write some tokens before Python looks: it takes longer than a layer of them.
        burst = max(1, min(16, BURST_BYTES // max(self._loaded.weights.arena.nbytes, 1)))
        done = 0
        while done < count and not over.all():
            out = np.full((min(burst, count - done), len(texts)), -1, np.int64)
            compiled.call(
                compiled.write,
                self._progress,
                rows,
                logits,
                over,
                done + len(out) == count,
                self.counts(cache),
                np.float32(self.sizes.eps),
                self._loaded.weights,
                cache.store,
                how,
                state,
                seen,
                ends,
                out,
            )
            done += len(out)
            for step in out:
                if (step < 0).all():
                    return
                yield [int(t) if t >= 0 else None for t in step]
