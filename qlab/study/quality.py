"""The judge of a study: how well does a model predict, and what does it tell?

Every model reads the same texts and continues the same openings. What the model as it is predicts
and tells is kept, so that each other model costs one pass through the texts and one batch of
continuations.

Chapter: The case study, whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.evaluate.study import continue_greedily, split_opening
from qlab.study.lines import Settings

KEPT_BYTES = 1 << 30  # predictions of the model as it is; more are computed again for each row
BLOCK = 64  # tokens of a piece, where there is only one text


@dataclass(frozen=True)
class Scores:
    """What was measured of one model, piece by piece.

    A piece is a text; of a single text, 64 tokens in a row. Pieces are what the bootstrap draws.

    Attributes:
        tokens: scored in each piece.
        nll: their negative log-likelihood in nats, summed.
        kl: their KL divergence from the model as it is in nats, summed.
        same: at how many of them both models find the same token likeliest.
        told: the continuation of each opening.
        consistency: score of each story of the world, None without evidence.
    """

    tokens: list[int]
    nll: list[float]
    kl: list[float]
    same: list[int]
    told: list[str]
    consistency: list[float | None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Judge:
    """Texts, openings, and what the model as it is makes of them.

    Args:
        source: what ``qlab.load`` returns.
        texts: what is scored; continued are the ``openings_of`` them.
        settings: counts; ``world`` 0 leaves the consistency score out.

    Raises: QlabError for texts without words.

    Chapter: The case study, whole.
    """

    def __init__(self, source: Any, texts: Sequence[str], settings: Settings) -> None:
        from qlab.evaluate.perplexity import cut
        from qlab.story.world import opening, stream

        self.tokenizer, self.model, self.settings = source.tokenizer, source.model, settings
        context = int(getattr(source.model.config, "max_position_embeddings", 0) or 2048)
        self.windows = [
            (i, w.ids) for i, text in enumerate(texts) for w in cut(self.tokenizer, text, context)
        ]
        if not texts or {i for i, _ in self.windows} != set(range(len(texts))):
            raise QlabError("a text has too few tokens to score: give longer ones")
        cuts = openings_of(texts, settings.openings)
        self.openings = [first for first, _ in cuts]
        self.endings = [rest for _, rest in cuts]
        stories = list(islice(stream(11, "validation"), settings.world))
        self.world = [(story, opening(story, 5)[0]) for story in stories]
        self._kept: list[Any] | None = None

    def measure(self, model: Any) -> Scores:
        """Scores of a model with the same tokenizer. Raises: QlabError for another vocabulary."""
        from qlab.story.consistency import consistency

        if model.config.vocab_size != self.model.config.vocab_size:
            raise QlabError("another vocabulary: a study compares models with one tokenizer")
        tokens, nll, kl, same = self._predictions(model)
        starts = [*self.openings, *(first for _, first in self.world)]
        told = continue_greedily(model, self.tokenizer, starts, self.settings.tokens)
        kept = [
            consistency(text, story, first).score
            for text, (story, first) in zip(told[len(self.openings) :], self.world, strict=True)
        ]
        return Scores(tokens, nll, kl, same, told[: len(self.openings)], kept)

    def _predictions(self, model: Any) -> tuple[list[int], list[float], list[float], list[int]]:
        of_text: dict[int, list[np.ndarray]] = {}
        for (i, ids), q, p in zip(self.windows, self._logs(model), self._exact(), strict=True):
            nll = -q.gather(1, ids_after(ids)).squeeze(1)
            kl = (p.exp() * (p - q)).sum(-1)
            same = p.argmax(-1) == q.argmax(-1)
            rows = np.stack([nll.double().numpy(), kl.double().numpy(), same.double().numpy()])
            of_text.setdefault(i, []).append(rows)
        pieces = [np.concatenate(rows, axis=1) for rows in of_text.values()]
        if len(pieces) == 1:  # one text: its blocks stand in for texts
            cuts = range(BLOCK, pieces[0].shape[1] - BLOCK // 2, BLOCK)
            pieces = np.split(pieces[0], list(cuts), axis=1)
        sums = np.array([piece.sum(1) for piece in pieces])
        tokens = [piece.shape[1] for piece in pieces]
        return tokens, sums[:, 0].tolist(), sums[:, 1].tolist(), sums[:, 2].astype(int).tolist()

    def _logs(self, model: Any) -> Iterator[Any]:
        """Log-probabilities of each window, float32 (tokens - 1, vocabulary)."""
        import torch

        from qlab.nn import dequantize_model

        plain = dequantize_model(model)
        for _, ids in self.windows:
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            yield torch.log_softmax(logits, -1)

    def _exact(self) -> Iterator[Any]:
        """The same of the model as it is; kept if there is room."""
        positions = sum(len(ids) - 1 for _, ids in self.windows)
        if 4 * positions * self.model.config.vocab_size > KEPT_BYTES:
            return self._logs(self.model)
        if self._kept is None:
            self._kept = list(self._logs(self.model))
        return iter(self._kept)


def openings_of(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(two sentences, the rest) of the first ``count`` texts that have a third sentence.

    A single text is taken apart at its blank lines, or, where it has none, after every eighth
    sentence. Without any third sentence the first twelve words are the opening.
    """
    parts = list(texts)
    if len(parts) == 1:
        parts = [" ".join(p.split()) for p in re.split(r"\n\s*\n", parts[0]) if p.strip()]
    if len(parts) == 1:
        sentences = re.split(r"(?<=[.!?])\s+", parts[0])
        parts = [" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8)]
    cuts = [cut for cut in map(split_opening, parts) if cut[1]]
    return cuts[:count] or [(" ".join(parts[0].split()[:12]), "")]


def ids_after(ids: list[int]) -> Any:
    """The token that follows each but the last, int64 (tokens - 1, 1)."""
    import torch

    return torch.tensor(ids[1:])[:, None]
