"""The case study: one model, a list of configurations, one row of figures each.

A configuration is a method and a scheme (or neither: the baseline). ``run_study`` measures each and
keeps the row in a cache file whose name is a hash of everything the row depends on: the
configuration, the weights, the texts, the openings and qlab's own source. So adding a configuration
to the list computes one row, and a change in the code computes all of them again.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qlab
from qlab.errors import QlabError
from qlab.evaluate.perplexity import TextScore
from qlab.files import new_file


@dataclass(frozen=True)
class Configuration:
    """One line of the case study.

    Attributes:
        name: what the table shows.
        method: such as ``rtn``; None for the model as it is.
        scheme: such as ``int4-channel``, or a mix of GGUF, such as ``q4_k_m`` (then without a
            method); None for the model as it is.
        activations: scheme of the layers' inputs, such as ``int8-token``; None leaves them.
        importance: for a mix of GGUF: compute an importance matrix on the calibration texts. Mixes
            below three bits need one.
    """

    name: str
    method: str | None = None
    scheme: str | None = None
    activations: str | None = None
    importance: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured for one configuration.

    Attributes:
        perplexity: on the validation texts.
        kl: mean KL divergence to the baseline in nats; None for the baseline.
        bits_per_weight: of the quantized layers, metadata counted; None for the baseline.
        memory_bytes: bytes of the model's tensors as they are held.
        disk_bytes: bytes of the folder's safetensors file.
        tokens_per_second: greedy decoding with qlab's reference kernel, one sequence; None where
            it was not measured, and for GGUF, whose weights were restored to floating point.
        rougeL_baseline, bleu_baseline: greedy continuations against the baseline's.
        rougeL_human, bleu_human: greedy continuations against the human endings.
        continuations: the greedy continuation of each opening.
        scores: negative log-likelihood (nats) and number of tokens of each validation text, for
            the bootstrap.
        activations: scheme of the layers' inputs, or None.
        importance: whether there was an importance matrix.
    """

    name: str
    method: str | None
    scheme: str | None
    perplexity: float
    kl: float | None
    bits_per_weight: float | None
    memory_bytes: int
    disk_bytes: int
    tokens_per_second: float | None
    rougeL_baseline: float
    bleu_baseline: float
    rougeL_human: float
    bleu_human: float
    continuations: list[str]
    scores: list[tuple[float, int]]
    activations: str | None = None
    importance: bool = False

    @property
    def text_scores(self) -> list[TextScore]:
        """``scores`` as ``perplexity_ratio`` takes them."""
        return [TextScore(nll, tokens) for nll, tokens in self.scores]


def split_opening(text: str, sentences: int = 2) -> tuple[str, str]:
    """(the first sentences, the rest) of a story."""
    ends = [m.end() for m in re.finditer(r"[.!?][\"']?(?=\s)", text)]
    cut = ends[min(sentences, len(ends)) - 1] if ends else len(text)
    return text[:cut], text[cut:].strip()


def continue_greedily(
    model: Any, tokenizer: Any, openings: Sequence[str], max_tokens: int = 80
) -> list[str]:
    """The likeliest continuation of each opening, up to the end of the story; without the opening.

    All openings run in one batch, padded at the left.
    """
    import torch

    from qlab.nn import dequantize_model

    plain = dequantize_model(model)
    rows = [tokenizer(text)["input_ids"] for text in openings]
    longest = max(len(r) for r in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    with torch.no_grad():
        out = plain.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_length=None,
            max_new_tokens=max_tokens,
            pad_token_id=pad,
        )
    return [t.strip() for t in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]


def run_study(
    source: Any,
    configurations: Sequence[Configuration],
    texts: Sequence[str],
    *,
    openings: int = 16,
    max_tokens: int = 80,
    speed: bool = True,
    calibration: int | None = None,
    cache: str | Path | None = None,
) -> list[Row]:
    """Measure every configuration of a model, in order.

    Args:
        source: a Storyteller, as ``qlab.load`` returns.
        configurations: the lines of the study; names are unique.
        texts: whole stories. Perplexity and KL are of all of them. The first ``openings`` are also
            cut after their second sentence; the model continues, and the rest is the human ending.
        openings: how many stories are continued.
        max_tokens: length of the continuations.
        speed: measure tokens per second, which takes half of the time.
        calibration: how many calibration texts methods see (default: all).
        cache: folder for finished rows (default: ``qlab/study`` in the user's cache folder, or in
            ``$QLAB_CACHE``).

    What the model as it is predicts is kept while the rows are measured: 4 bytes for each token of
    the texts and each word of the vocabulary.

    Raises: qlab.QlabError for a bad scheme, method or empty text.
    """
    cache = Path(cache) if cache else default_cache()
    weights = _fingerprint(source.model)
    cuts = [split_opening(t) for t in texts[:openings]]
    baseline: list[str] | None = None
    exact: list[Any] = []  # the predictions of the model as it is, once they were needed
    rows = []
    for configuration in configurations:
        what = [*texts, str(speed), str(calibration)]
        key = _key(configuration, weights, what, openings, max_tokens)
        row = _read(cache / f"{key}.json")
        if row is None:
            if baseline is None:
                starts = [o for o, _ in cuts]
                baseline = continue_greedily(source.model, source.tokenizer, starts, max_tokens)
            if not exact:
                exact, _ = _predictions(source.model, source.tokenizer, texts)
            row = _measure(
                source,
                configuration,
                list(texts),
                cuts,
                baseline,
                max_tokens,
                speed,
                exact,
                calibration,
            )
            with new_file(cache / f"{key}.json") as file:
                file.write_text(json.dumps(asdict(row)), encoding="utf-8")
        rows.append(row)
    return rows


def default_cache() -> Path:
    """Where finished rows are kept."""
    root = (
        os.environ.get("QLAB_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    )
    return Path(root) / "qlab" / "study"


def _measure(
    source: Any,
    configuration: Configuration,
    texts: list[str],
    cuts: list[tuple[str, str]],
    baseline: list[str],
    max_tokens: int,
    speed: bool,
    exact: list[Any],
    calibration: int | None,
) -> Row:
    from qlab.evaluate import model_size, overlap, tokens_per_second

    model, file_bits, file_bytes = _quantized(source, configuration, calibration)
    size = model_size(model)
    said = continue_greedily(model, source.tokenizer, [o for o, _ in cuts], max_tokens)
    near, human = overlap(said, baseline), overlap(said, [rest for _, rest in cuts])
    found, scores = _predictions(model, source.tokenizer, texts)
    kl = _kl(exact, found) if configuration.scheme else None
    tokens = sum(s.tokens for s in scores)
    return Row(
        name=configuration.name,
        method=configuration.method,
        scheme=configuration.scheme,
        perplexity=math.exp(sum(s.nll for s in scores) / tokens),
        kl=kl,
        bits_per_weight=size.bits_per_weight if file_bits is None else file_bits,
        memory_bytes=size.total if file_bytes is None else file_bytes,
        disk_bytes=_disk_bytes(model, source.tokenizer) if file_bytes is None else file_bytes,
        tokens_per_second=tokens_per_second(model, tokens=20, repeats=2)
        if speed and file_bytes is None
        else None,
        rougeL_baseline=near.rougeL,
        bleu_baseline=near.bleu,
        rougeL_human=human.rougeL,
        bleu_human=human.bleu,
        continuations=said,
        scores=[(s.nll, s.tokens) for s in scores],
        activations=configuration.activations,
        importance=configuration.importance,
    )


def _predictions(
    model: Any, tokenizer: Any, texts: Sequence[str]
) -> tuple[list[Any], list[TextScore]]:
    """Log-probabilities of each text's windows, float32 (tokens, vocabulary), and its scores.

    They are what ``divergence`` and ``score_texts`` compute, in one pass through the model.
    """
    import torch

    from qlab.evaluate.perplexity import cut
    from qlab.nn import dequantize_model

    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    plain = dequantize_model(model)
    found, scores = [], []
    with torch.no_grad():
        for text in texts:
            nll, tokens = 0.0, 0
            for window in cut(tokenizer, text, context):
                ids = torch.tensor([window.ids])
                logs = torch.log_softmax(plain(input_ids=ids).logits[0, :-1].float(), -1)
                of_tokens = logs.gather(1, ids[0, 1:, None])[-window.scored :]
                nll -= float(of_tokens.double().sum())
                tokens += window.scored
                found.append(logs)
            scores.append(TextScore(nll, tokens))
    if not found or not all(s.tokens for s in scores):
        raise QlabError("a text has too few tokens to score: give longer ones")
    return found, scores


def _kl(exact: list[Any], found: list[Any]) -> float:
    """Mean KL divergence in nats, over all positions."""
    total = sum(
        float((p.exp() * (p - q)).sum(-1).double().sum()) for p, q in zip(exact, found, strict=True)
    )
    return total / sum(len(p) for p in exact)


def _quantized(
    source: Any, configuration: Configuration, calibration: int | None
) -> tuple[Any, float | None, int | None]:
    """The model; of GGUF, which becomes a file and is read back, bits per weight and bytes too."""
    from qlab.gguf.mixes import is_mix

    if not configuration.scheme:
        return source.model, None, None
    if not configuration.method and is_mix(configuration.scheme):
        from qlab.gguf import GGUFFile
        from qlab.gguf.convert import to_gguf
        from qlab.gguf.imatrix import compute_imatrix
        from qlab.gguf.load import load_gguf

        use = configuration.importance

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            seen = source.calibration()[:calibration]
            rows = compute_imatrix(source.model, seen) if use else None
            to_gguf(source.model, source.tokenizer, path, configuration.scheme, rows)
            with GGUFFile(path) as file:
                bits, nbytes = file.bits_per_weight, file.size
            return load_gguf(path)[0], bits, nbytes
    model, _ = qlab.quantize_model(
        source.model,
        configuration.method or "rtn",
        configuration.scheme,
        source.calibration()[:calibration],
        activations=configuration.activations,
    )
    return model, None, None


def _disk_bytes(model: Any, tokenizer: Any) -> int:
    """Write the model as a reader would, and weigh the safetensors file."""
    from qlab.export import save_folder

    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, tokenizer, Path(folder) / "model")
        return (Path(folder) / "model" / "model.safetensors").stat().st_size


def _key(
    configuration: Configuration, weights: str, texts: list[str], openings: int, max_tokens: int
) -> str:
    parts = [asdict(configuration), weights, texts, openings, max_tokens, _source_hash()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _source_hash() -> str:
    """Of qlab's Python files: a row computed by other code is another row."""
    root = Path(qlab.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if "viz" not in file.parts:
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> Row | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["scores"] = [(nll, tokens) for nll, tokens in found["scores"]]  # JSON has no tuples
        row = Row(**found)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ):  # absent, cut, or of an older layout: compute it
        return None
    return row if math.isfinite(row.perplexity) else None
