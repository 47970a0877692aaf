"""Rows of a study: figures with their intervals, and which rows no other beats.

Every interval holds 95% of the resamples of a bootstrap over pieces (texts, openings or stories).
Where a row is compared with the model as it is, both are drawn together: the paired bootstrap.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; Koehn 2004, "Statistical
significance tests for machine translation evaluation", for the paired form.

Chapter: The case study, whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.evaluate.bootstrap import Interval, perplexity_interval, perplexity_ratio
from qlab.evaluate.perplexity import TextScore
from qlab.study.lines import Line
from qlab.study.quality import Judge, Scores

RESAMPLES = 1000

# Measure -> (label, whether more is better).
MEASURES = {
    "ratio": ("perplexity, times the whole model's", False),
    "perplexity": ("perplexity", False),
    "kl": ("KL divergence (nats)", False),
    "agreement": ("same likeliest token", True),
    "rouge1": ("ROUGE-1 to the whole model's stories", True),
    "rouge2": ("ROUGE-2 to the whole model's stories", True),
    "rougeL": ("ROUGE-L to the whole model's stories", True),
    "bleu": ("BLEU to the whole model's stories", True),
    "rougeL_human": ("ROUGE-L to the true endings", True),
    "bleu_human": ("BLEU to the true endings", True),
    "consistency": ("consistency score", True),
}
# Cost -> (label, whether more is better).
COSTS = {
    "file_bytes": ("file (MB)", False),
    "bits_per_weight": ("bits per weight (of a GGUF file: of all tensors)", False),
    "memory_bytes": ("memory while it tells (MB)", False),
    "speed": ("speed in qlab's engine, times float32", True),
    "llama_speed": ("speed in llama.cpp, times float32", True),
}


@dataclass(frozen=True)
class Row:
    """One configuration and what was measured.

    Attributes:
        line: what made it, as a dict.
        bits_per_weight, file_bytes, schemes: as of ``Made``.
        measures: name of ``MEASURES`` -> (value, low, high); NaN-free. The row of the model as it
            is has KL 0, agreement 1 and so on.
        memory_bytes: what the resident set of a process grows by when the engine loads the model
            and writes with it; None where it was not measured.
        speed: tokens a second of the engine over those with float32 weights, in one run; None
            where it was not measured or the engine does not run such a model.
        llama_speed: the same of llama.cpp, for GGUF.
        note: why a figure is missing.
        tokens, nll, kl: of each piece, for paired comparisons.
        told: continuations of the openings.
        consistency: of each story of the world.
    """

    line: dict[str, Any]
    bits_per_weight: float | None
    file_bytes: int
    schemes: dict[str, str]
    measures: dict[str, list[float]]
    memory_bytes: int | None = None
    speed: float | None = None
    llama_speed: float | None = None
    note: str = ""
    tokens: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    consistency: list[float | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.line["name"])

    @property
    def family(self) -> str:
        return str(self.line["family"])

    @property
    def text_scores(self) -> list[TextScore]:
        """As ``perplexity_ratio`` takes them."""
        return [TextScore(a, b) for a, b in zip(self.nll, self.tokens, strict=True)]

    def value(self, key: str) -> float | None:
        """A measure's value, or a cost."""
        if key in MEASURES:
            return self.measures[key][0] if key in self.measures else None
        found: float | None = getattr(self, key)
        return found


def row_of(line: Line, made: Any, scores: Scores, base: Scores, judge: Judge) -> Row:
    """A row of what was measured of a model and of the model as it is."""
    of_line = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(line).items()}
    measures = {
        "ratio": _of(perplexity_ratio(_texts(scores), _texts(base))),
        "perplexity": _of(perplexity_interval(_texts(scores))),
        "kl": mean_interval(scores.kl, scores.tokens),
        "agreement": mean_interval(scores.same, scores.tokens),
    }
    if len(scores.told) > 1:
        measures |= _overlaps(scores.told, base.told)
    if len(scores.told) > 1 and any(judge.endings):
        measures |= {
            f"{key}_human": v
            for key, v in _overlaps(scores.told, judge.endings).items()
            if key in ("rougeL", "bleu")
        }
    kept = [s for s in scores.consistency if s is not None]
    if len(kept) > 1:
        measures["consistency"] = mean_interval(kept, [1] * len(kept))
    return Row(
        of_line,
        made.bits_per_weight,
        made.file_bytes,
        dict(made.schemes),
        {key: [_short(v) for v in values] for key, values in measures.items()},
        tokens=scores.tokens,
        nll=[_short(v, 7) for v in scores.nll],
        kl=[_short(v) for v in scores.kl],
        told=scores.told,
        consistency=scores.consistency,
    )


def mean_interval(sums: Sequence[float], counts: Sequence[int]) -> list[float]:
    """[Σ sums / Σ counts, low, high] over resampled pieces."""
    a, n = np.asarray(sums, float), np.asarray(counts, float)
    draws = _draws(len(a))
    low, high = np.quantile(a[draws].sum(1) / n[draws].sum(1), [0.025, 0.975])
    return [float(a.sum() / n.sum()), float(low), float(high)]


def _overlaps(told: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE and BLEU with their intervals. BLEU is of all texts of a draw together: their counts
    are summed, and the score is computed of the sums."""
    from rouge_score import rouge_scorer
    from sacrebleu.metrics import BLEU

    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(list(names), use_stemmer=True)
    found = [scorer.score(r, t) for r, t in zip(references, told, strict=True)]
    result = {n: mean_interval([f[n].fmeasure for f in found], [1] * len(found)) for n in names}
    bleu = BLEU(effective_order=True)
    parts = [bleu.sentence_score(t, [r]) for t, r in zip(told, references, strict=True)]
    counts = np.array([[*p.counts, *p.totals, p.sys_len, p.ref_len] for p in parts])

    def score(total: np.ndarray) -> float:
        right, of, ours, theirs = total[:4].tolist(), total[4:8].tolist(), *total[8:].tolist()
        return float(
            BLEU.compute_bleu(
                right, of, ours, theirs, smooth_method="exp", effective_order=True
            ).score
        )

    values = [score(counts[draw].sum(0)) for draw in _draws(len(parts), 200)]
    low, high = np.quantile(values, [0.025, 0.975])
    return {**result, "bleu": [score(counts.sum(0)), float(low), float(high)]}


def compare_rows(a: Row, b: Row) -> Interval:
    """Perplexity of ``a`` over that of ``b``, by the paired bootstrap.

    Raises: QlabError unless both were scored on the same texts.

    Chapter: The case study, whole.
    """
    return perplexity_ratio(a.text_scores, b.text_scores)


def front(rows: Sequence[Row], quality: str = "ratio", cost: str = "file_bytes") -> list[Row]:
    """The rows that no other beats in both, cheapest first. Rows without one of the two are left
    out, and so is the model as it is.

    Raises: QlabError for an unknown measure or cost.

    Chapter: The case study, whole.
    """
    if quality not in MEASURES or cost not in COSTS:
        raise QlabError(f"no measure '{quality}' or no cost '{cost}': see MEASURES and COSTS")
    signs = [-1.0 if more else 1.0 for more in (MEASURES[quality][1], COSTS[cost][1])]
    points = []
    for row in rows:
        q, c = row.value(quality), row.value(cost)
        if q is not None and c is not None and row.line["scheme"] + "".join(row.line["among"]):
            points.append((signs[1] * c, signs[0] * q, row))
    points.sort(key=lambda p: p[:2])
    best, found = math.inf, []
    for _, q, row in points:
        if q < best:
            best = q
            found.append(row)
    return found


def rows_from(tables: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of JSON. Raises: TypeError for another layout."""
    return [Row(**table) for table in tables]


def _texts(scores: Scores) -> list[TextScore]:
    return [TextScore(a, b) for a, b in zip(scores.nll, scores.tokens, strict=True)]


def _of(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _draws(count: int, resamples: int = RESAMPLES) -> np.ndarray:
    if count < 2:
        raise QlabError("an interval needs at least two texts, or one of some hundred words")
    return np.random.default_rng(0).integers(0, count, (resamples, count))


def _short(value: float, digits: int = 6) -> float:
    """What a record keeps of a number."""
    return float(f"{value:.{digits}g}")
