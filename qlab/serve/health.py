"""Is a model that serves still the model that was shipped?

Three kinds of checks, from cheap to thorough:

- ``check_answer`` looks at the tokens of one answer: the same few again and again are a symptom;
- ``examine`` asks known questions: the answers, and how surprised the model is by known texts, were
  written down when all was well (``make_probes``);
- ``fingerprint`` is a hash of the weights in memory: it misses no changed bit, and says nothing of
  a model that was bad from the beginning.

Chapter: Keeping it good: monitoring, fallback, canary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.errors import QlabError


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, and why it did or did not, in a few words."""

    check: str
    passed: bool
    why: str


@dataclass(frozen=True)
class Health:
    """All checks of one examination."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether all passed."""
        return all(f.passed for f in self.findings)

    @property
    def why(self) -> str:
        """What the failed checks say; "all passed" if none failed."""
        failed = [f"{f.check}: {f.why}" for f in self.findings if not f.passed]
        return "; ".join(failed) or "all passed"


@dataclass(frozen=True)
class Probe:
    """A known question.

    Attributes:
        prompt: token ids.
        answer: the greedy tokens that followed when all was well.
        surprise: what the model found of prompt and answer then, nats a token.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    surprise: float


def make_probes(engine: Any, prompts: Sequence[Sequence[int]], tokens: int = 12) -> list[Probe]:
    """Write down the answers of a model while all is well.

    Args:
        engine: with ``logits(ids)`` and ``generate(ids, tokens)``.
        prompts: token ids, at least two each.
        tokens: length of the answers.

    Raises: QlabError for no prompts, one of fewer than two tokens, or a model whose logits are not
        finite now.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if not prompts or min(map(len, prompts)) < 2:
        raise QlabError("probes need prompts of at least two tokens: give some")
    probes = []
    for prompt in prompts:
        answer = tuple(int(t) for t in engine.generate(prompt, tokens))
        ids = [*map(int, prompt), *answer]
        logits = engine.logits(ids)
        if not np.isfinite(logits).all():
            raise QlabError("the model's logits are not finite: make probes of a healthy one")
        probes.append(Probe(tuple(ids[: len(prompt)]), answer, _surprise(logits, ids)))
    return probes


def _surprise(logits: np.ndarray, ids: Sequence[int]) -> float:
    """Mean nats of each token but the first."""
    with np.errstate(all="ignore"):
        x = logits[:-1].astype(np.float64)
        x = x - x.max(1, keepdims=True)
        chosen = x[np.arange(len(x)), list(ids[1:])]
        return float((np.log(np.exp(x).sum(1)) - chosen).mean())


def examine(
    engine: Any, probes: Sequence[Probe], agreement: float = 0.9, rise: float = 0.05
) -> Health:
    """Ask the known questions: one pass of the model for each.

    The model reads prompt and answer at once. Its likeliest token is compared with the answer's at
    each place, so that a first different token does not spoil the rest.

    Args:
        engine: with ``logits(ids)``.
        probes: of ``make_probes``.
        agreement: least share of answer tokens that must still be the likeliest. Other kernels or
            machines round otherwise, and may turn a tie: that is why it is not 1.
        rise: nats a token by which the mean surprise may have grown.

    Returns: findings ``finite``, ``answers`` and ``surprise``.

    Raises: QlabError without probes.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if not probes:
        raise QlabError("no probes: make some with make_probes while all is well")
    same = total = bad = 0
    found = []
    for probe in probes:
        ids = [*probe.prompt, *probe.answer]
        logits = engine.logits(ids)
        if not np.isfinite(logits).all():
            bad += 1
            continue
        guess = logits[len(probe.prompt) - 1 : -1].argmax(1)
        same += int((guess == np.array(probe.answer)).sum()) if probe.answer else 0
        total += len(probe.answer)
        found.append(_surprise(logits, ids) - probe.surprise)
    if bad:
        why = f"logits of {bad} of {len(probes)} probes are NaN or infinite"
        return Health((Finding("finite", False, why),))
    share, grown = same / total if total else 1.0, float(np.mean(found))
    return Health(
        (
            Finding("finite", True, "all logits are finite"),
            Finding("answers", share >= agreement, f"{same} of {total} known tokens"),
            Finding("surprise", grown <= rise, f"{grown:+.3f} nats a token"),
        )
    )


def longest_repeat(ids: Sequence[int], most: int = 8) -> tuple[int, int]:
    """The longest stretch of a text that is one block again and again.

    Args:
        ids: token ids.
        most: the longest block that is looked for.

    Returns: (tokens in all its repetitions after the first, tokens of the block); (0, 0) where
        nothing repeats.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    best, block = 0, 0
    for period in range(1, min(most, len(ids) - 1) + 1):
        run = 0
        for a, b in zip(ids, ids[period:], strict=False):
            run = run + 1 if a == b else 0
            # Less than a whole block may be chance: "the cat and the dog".
            if run >= period and run > best:
                best, block = run, period
    return best, block


def check_answer(ids: Sequence[int], repeats: int = 24, most: int = 8) -> Finding:
    """Whether an answer is not the same few tokens again and again.

    Args:
        ids: of the answer.
        repeats: repeated tokens from which on it fails.
        most: the longest block that is looked for.

    Raises: QlabError for repeats below 1.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if repeats < 1:
        raise QlabError(f"repeats {repeats}: at least 1 token")
    run, block = longest_repeat(ids, most)
    why = f"{run} tokens repeat a block of {block}" if run else "nothing repeats"
    return Finding("repeats", run < repeats, why)


def fingerprint(engine: Any) -> str:
    """A hash of an engine's weights as they lie in memory now: 32 hexadecimal digits.

    Addresses of compiled functions, which differ from run to run, are left out.

    Args:
        engine: of ``qlab.engine.load``.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    digest, arrays = hashlib.blake2b(digest_size=16), engine.arrays
    for part in (arrays.arena, arrays.numbers, arrays.turns, arrays.table):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
