"""The importance matrix: how large each input of each linear layer is, on average.

An error e in weight w_ij of a layer changes its output i by e · x_j. Over many inputs the squared
change is e² · mean(x_j²), so that mean is what an error in column j costs. It takes one number for
each column of each matrix: a small file, computed once on a text.

llama.cpp's tool ``llama-imatrix`` (``tools/imatrix/imatrix.cpp``) keeps for each matrix the sum of
x_j² over all tokens and the number of tokens. It has two formats:

``gguf``::

    general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
    NAME.in_sum2   F32 (columns,)   the sums
    NAME.counts    F32 (1,)         the tokens

``dat``, the older one; all integers are int32, little-endian::

    entries, then for each: length of its name, name, chunks, columns, float32 mean · chunks
    chunks of all, length of the dataset's name, name of the dataset

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.files import new_file
from qlab.gguf import architectures
from qlab.gguf.arithmetic import Array
from qlab.gguf.errors import GGUFError
from qlab.gguf.reader import MAGIC, GGUFFile
from qlab.gguf.writer import GGUFWriter

CHUNK = 512  # tokens, llama-imatrix's default
FORMATS = ("gguf", "dat")
_SUMS, _COUNTS = ".in_sum2", ".counts"
_I32 = struct.Struct("<i")


@dataclass(frozen=True, eq=False)
class Entry:
    """What was seen of one matrix.

    Attributes:
        sums: float32 (matrices, columns), of the squared inputs; one matrix but in models with
            experts, whose matrices are stored together.
        counts: int64 (matrices,), how many inputs were summed; in chunks where it comes from a
            ``dat`` file, which does not tell tokens.
    """

    sums: Array
    counts: Array

    @property
    def mean(self) -> Array:
        """Mean square of each input, float32: (columns,), or (matrices, columns) for experts.

        1 for an expert that saw nothing, as in llama.cpp.
        """
        counts = self.counts[:, None].astype(np.float32)
        seen = counts > 0
        found = np.where(seen, self.sums / np.where(seen, counts, np.float32(1)), np.float32(1))
        return found[0] if len(found) == 1 else found


class Imatrix(Mapping[str, Array]):
    """GGUF's name of a matrix, such as ``blk.0.attn_q.weight``, to the mean square of its inputs.

    This is what ``gguf.quantize`` and ``to_gguf`` take as importance.

    Attributes:
        entries: name -> Entry.
        chunk_size: tokens a chunk; 0 where it comes from a ``dat`` file, which does not tell.
        chunks: how many chunks were seen.
        datasets: names of the texts.

    Chapter: k-quants and the importance matrix.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        chunk_size: int,
        chunks: int,
        datasets: Sequence[str] = (),
    ) -> None:
        self.entries = dict(sorted(entries.items()))
        self.chunk_size, self.chunks, self.datasets = chunk_size, chunks, tuple(datasets)

    def __getitem__(self, name: str) -> Array:
        return self.entries[name].mean

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Imatrix({len(self)} matrices, {self.chunks} chunks of {self.chunk_size} tokens)"


def compute_imatrix(
    model: Any,
    calibration: Iterable[Any],
    *,
    output: bool = False,
    datasets: Sequence[str] = (),
) -> Imatrix:
    """Run the model over a text and add up the squares of what its linear layers read.

    Equal to llama-imatrix's to rounding: it adds in float32, token after token, and this in
    float64.

    Args:
        model: a transformers model of the Llama family, on any device.
        calibration: chunks of token ids, int (length,) or (batch, length), NumPy, torch or lists;
            ``cut_chunks`` cuts a text as llama-imatrix does.
        output: also the output matrix, if it is not the embeddings; llama-imatrix's
            ``--process-output``.
        datasets: names of the texts, to be written into the file.

    Returns: one entry for each matrix of each layer, whose chunk size is the longest chunk's.

    Raises: QlabError for an unknown architecture, no tokens, ids that the model does not have, or
        an input that is not finite.

    Chapter: k-quants and the importance matrix.
    """
    import torch

    arch = architectures.of_model_type(model.config.model_type)
    modules = {}
    for ours, theirs in architectures.tensor_names(arch, model.config.num_hidden_layers).items():
        module = model.get_submodule(theirs)
        matrix = ours.startswith("blk.") and not ours.endswith("_norm")
        if matrix or (output and ours == "output" and not _tied(model, module)):
            modules[f"{ours}.weight"] = module
    sums: dict[str, Any] = {}
    counts = dict.fromkeys(modules, 0)

    def watch(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1])
            # x · x in float32, as in the C; only the sum is wider.
            found = x.float().square().sum(dim=0, dtype=torch.float64).cpu()
            if not bool(torch.isfinite(found).all()):
                raise QlabError(f"an input of {name} is not finite: repair the model first")
            sums[name] = sums[name] + found if name in sums else found
            counts[name] += len(x)

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    longest = 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for chunk in calibration:
                ids = _token_ids(chunk, model)
                if ids.numel():
                    longest = max(longest, ids.shape[1])
                    # Without the output matrix the logits are of no use: leave them out.
                    (model if output else model.model)(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not longest:
        raise QlabError("no tokens to compute an importance matrix from: give a longer text")
    entries = {
        name: Entry(
            total.numpy().astype(np.float32)[None], np.array([counts[name]], dtype=np.int64)
        )
        for name, total in sums.items()
    }
    return Imatrix(entries, longest, max(counts.values()) // longest, datasets)


def cut_chunks(tokenizer: Any, text: str, size: int = CHUNK) -> list[list[int]]:
    """Token ids of a text in chunks of equal length, as llama-imatrix cuts them.

    If the tokenizer begins a text with BOS, then BOS takes the place of the first token of every
    chunk. What is left at the end is dropped; a text that is shorter than a chunk is one chunk.

    Raises: QlabError for a size below 2, or a text without tokens.
    """
    if size < 2:
        raise QlabError(f"chunks of {size} tokens: give at least 2")
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if not ids:
        raise QlabError("the text has no tokens: give a text with words in it")
    whole = len(ids) - len(ids) % size
    chunks = [ids[i : i + size] for i in range(0, whole, size)] or [ids]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[0] == bos:
        chunks = [[bos, *chunk[1:]] for chunk in chunks]
    return chunks


def read_imatrix(path: str | Path) -> Imatrix:
    """Read an importance matrix in either format; the file's beginning tells which.

    Raises: GGUFError, with the offset, for a file that is cut, or holds what no importance matrix
        holds: values that are not finite or below zero, sums without counts, names twice; QlabError
        for one that cannot be read.

    Chapter: k-quants and the importance matrix.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                return _read_dat(magic + file.read())
    except FileNotFoundError:
        raise QlabError(f"no file at '{path}': check the path") from None
    except OSError as error:
        if isinstance(error, QlabError):
            raise
        raise QlabError(f"'{path}' cannot be read: {error.strerror or error}") from None
    return _read_gguf(path)


def write_imatrix(imatrix: Imatrix, path: str | Path, format: str | None = None) -> None:
    """Write an importance matrix as llama-imatrix would; all of it or nothing.

    Args:
        imatrix: what to write.
        path: the file; an old one is replaced.
        format: ``gguf`` or ``dat``; default by the suffix, ``gguf`` unless it is ``.dat``. The
            older one keeps one count for all experts and one dataset, and rounds once more.

    Raises: QlabError for another format, or nothing to write.

    Chapter: k-quants and the importance matrix.
    """
    path = Path(path)
    format = format or ("dat" if path.suffix == ".dat" else "gguf")
    if format not in FORMATS:
        raise QlabError(f"no format '{format}' of an importance matrix: choose gguf or dat")
    if not imatrix.entries:
        raise QlabError("an importance matrix without entries: compute one on a text first")
    if format == "dat":
        with new_file(path) as fresh:
            fresh.write_bytes(_dat(imatrix))
    else:
        _write_gguf(imatrix, path)


def _tied(model: Any, output: Any) -> bool:
    return getattr(output, "weight", None) is model.get_input_embeddings().weight


def _token_ids(chunk: Any, model: Any) -> Any:
    import torch

    ids = torch.as_tensor(chunk)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.is_floating_point():
        raise QlabError(f"token ids of shape {tuple(ids.shape)}, {ids.dtype}: give integers (n,)")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise QlabError(f"token ids beyond the model's {vocabulary}: use its own tokenizer")
    return ids.to(model.device, torch.int64)


def _write_gguf(imatrix: Imatrix, path: Path) -> None:
    # A dat file counts chunks. llama-imatrix takes its own chunk size to make tokens of them.
    size = imatrix.chunk_size or CHUNK
    times = 1 if imatrix.chunk_size else size
    with GGUFWriter(path) as out:
        out.add("general.type", "imatrix")
        out.add("imatrix.datasets", list(imatrix.datasets), "array[string]")
        out.add("imatrix.chunk_count", imatrix.chunks, "uint32")
        out.add("imatrix.chunk_size", size, "uint32")
        for name, entry in imatrix.entries.items():
            sums, counts = entry.sums * np.float32(times), entry.counts[:, None] * times
            one = len(counts) == 1  # llama.cpp leaves out a dimension of 1
            out.add_weights(name + _SUMS, sums[0] if one else sums)
            out.add_weights(name + _COUNTS, counts[0] if one else counts)


def _read_gguf(path: Path) -> Imatrix:
    with GGUFFile(path) as file:
        kind = file.metadata.get("general.type")
        if kind != "imatrix":
            raise GGUFError(
                f"'{path}' is no importance matrix: its general.type is {kind!r:.40}; make one "
                "with `qlab gguf imatrix`"
            )
        # Without its length and number of chunks llama-quantize refuses a file.
        size = _whole(file, "imatrix.chunk_size")
        chunks = _whole(file, "imatrix.chunk_count")
        datasets = file.metadata.get("imatrix.datasets")
        if not isinstance(datasets, list) or not all(isinstance(d, str) for d in datasets):
            raise GGUFError("imatrix.datasets is missing, or no list of names")
        entries = {}
        for name in file.tensors:
            base = name.removesuffix(_SUMS).removesuffix(_COUNTS)
            if base != name and base not in entries:
                entries[base] = _gguf_entry(file, base)
        if not entries:
            raise GGUFError("an importance matrix without entries", file.data_start)
        return Imatrix(entries, size, chunks, datasets)


def _gguf_entry(file: GGUFFile, name: str) -> Entry:
    sums, counts = (file.tensors.get(name + end) for end in (_SUMS, _COUNTS))
    if sums is None or counts is None:
        raise GGUFError(f"{name!r:.80} has sums or counts, and not both")
    for tensor in (sums, counts):
        if tensor.kind.name != "F32":
            raise GGUFError(f"{tensor.name!r:.80} is {tensor.kind.name}, not F32", tensor.offset)
        _check(tensor.dequantize().reshape(-1), name, tensor.offset)
    if sums.size % counts.size:
        raise GGUFError(f"{name!r:.80} has {sums.size} sums and {counts.size} counts", sums.offset)
    numbers = counts.dequantize().reshape(-1)
    if (numbers != np.round(numbers)).any() or (numbers >= 2.0**63).any():
        raise GGUFError(f"the counts of {name!r:.80} are no whole numbers", counts.offset)
    rows = sums.dequantize().reshape(counts.size, -1)
    return Entry(rows, numbers.astype(np.int64))


def _whole(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key)
    if file.types.get(key) != "uint32" or not isinstance(value, int):
        raise GGUFError(f"{key} is missing, or no uint32: the file is no importance matrix")
    return value


def _dat(imatrix: Imatrix) -> bytes:
    size = imatrix.chunk_size or 1  # a dat file's counts are chunks already
    parts = [_I32.pack(len(imatrix.entries))]
    for name, entry in imatrix.entries.items():
        chunks = -(-int(entry.counts.max()) // size)
        # (sum / count) · chunks; for what was read from a dat file that is what stood there.
        values = entry.sums if not imatrix.chunk_size else entry.mean * np.float32(chunks)
        raw = name.encode()
        parts += [_I32.pack(len(raw)), raw, struct.pack("<ii", chunks, values.size)]
        parts.append(values.astype("<f4").tobytes())
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode()
    return b"".join([*parts, struct.pack("<ii", imatrix.chunks, len(dataset)), dataset])


def _read_dat(data: bytes) -> Imatrix:
    at = 0

    def take(n: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= n <= len(data) - at:
            raise GGUFError(
                f"no importance matrix, or a part of one: {what} needs {n} bytes, "
                f"{len(data) - at} are left",
                at,
            )
        at += n
        return data[at - n : at]

    def number(what: str, least: int) -> int:
        (value,) = _I32.unpack(take(4, what))
        if value < least:
            raise GGUFError(f"no importance matrix: {what} is {value}", at - 4)
        return int(value)

    def name(what: str, least: int) -> str:
        raw = take(number(f"the length of {what}", least), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise GGUFError(f"{what} is not UTF-8: {raw[:20]!r}", at - len(raw)) from None

    entries: dict[str, Entry] = {}
    for _ in range(number("the number of entries", 1)):
        start = at
        key = name("a name", 1)
        if key in entries:
            raise GGUFError(f"{key!r:.80} is there twice", start)
        chunks = number(f"the number of chunks of {key!r:.80}", 0)
        n = number(f"the number of columns of {key!r:.80}", 1)
        start = at
        values = np.frombuffer(take(4 * n, f"the values of {key!r:.80}"), "<f4")
        _check(values, key, start)
        # Without a count llama-quantize takes the values as they are.
        entries[key] = Entry(values[None].astype(np.float32), np.array([max(1, chunks)]))
    if at == len(data):  # the oldest files end here
        return Imatrix(entries, 0, int(max(e.counts[0] for e in entries.values())))
    total = number("the number of chunks", 0)
    dataset = name("the dataset's name", 0)
    if at < len(data):
        raise GGUFError(f"{len(data) - at} bytes too many: the file was altered", at)
    return Imatrix(entries, 0, total, (dataset,) if dataset else ())


def _check(values: Array, name: str, offset: int) -> None:
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise GGUFError(
            f"{name!r:.80} has a value of {values[wrong[0]]}: the file was altered, or the model "
            "it was made on is broken",
            offset + 4 * int(wrong[0]),
        )
