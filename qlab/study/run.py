"""Run a study: what is in the cache is read, what is missing is measured and kept at once.

Two files for a row, each under a hash of all that it depends on: quality (the line, the weights,
the texts, the settings and the code that makes and judges models), and running (the layout, the
sizes of the model, the engine's code). So an interrupted run goes on where it was, a new line costs
one row, and a change in the engine costs the speeds alone.

Chapter: The case study, whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import qlab
from qlab.evaluate.study import default_cache
from qlab.files import new_file
from qlab.study.lines import Line, Settings
from qlab.study.make import Made, make, measure_sensitivity
from qlab.study.quality import Judge, Scores
from qlab.study.record import weights_hash
from qlab.study.rows import Row, row_of
from qlab.study.running import Runner, layout_of

# Rooms and files of qlab whose code decides a figure.
_MAKE = ("core", "calibrate", "methods", "gguf", "nn.py", "pipeline.py", "activations.py",
         "study/make.py", "study/quality.py", "story/consistency.py")  # fmt: skip
_CODE = {
    **dict.fromkeys(("whole", "method", "mix"), _MAKE),
    "mixed": (*_MAKE, "evaluate/sensitivity.py", "evaluate/allocation.py"),
    "student": (*_MAKE, "training", "story/batches.py"),
    "running": ("engine", "kernels", "gguf", "study/child.py", "study/running.py"),
}
WHOLE = Line("the model as it is", "whole")
Tell = Callable[[str], None]


def run(
    source: Any,
    lines: Sequence[Line],
    texts: Sequence[str] | None = None,
    settings: Settings | None = None,
    *,
    jobs: int = 1,
    running: bool = True,
    cached: bool = False,
    llama: bool = True,
    cache: str | Path | None = None,
    tell: Tell = lambda text: None,
) -> list[Row]:
    """A row for each line, in order.

    Args:
        source: what ``qlab.load`` returns. With ``jobs`` above 1, ``source.name`` must load it.
        lines: of ``read_lines``.
        texts: what is scored and continued (default: the validation stories).
        settings: counts; the default ones.
        jobs: processes that make and judge models at once.
        running: whether memory and speed are measured too.
        cached: take what the cache holds, and leave out the other lines.
        llama: whether llama.cpp runs GGUF files too.
        cache: folder of finished rows (default: in the user's cache folder, or $QLAB_CACHE).
        tell: is told each row as it is done.

    Raises: QlabError for a line that cannot be made, or texts that cannot be scored.

    Chapter: The case study, whole.
    """
    settings = settings or Settings()
    texts = list(texts if texts is not None else source.validation()[: settings.texts])
    study = _Study(source, texts, settings, Path(cache) if cache else default_cache() / "whole")
    missing = [line for line in (WHOLE, *lines) if study.read(line) is None]
    base = study.quality(WHOLE)
    if cached:
        lines, missing = [line for line in lines if line not in missing], []
    for among in {line.among: None for line in missing if line.kind == "mixed"}:
        study.sensitivity(among)
    rest = [line for line in missing if line != WHOLE]
    if jobs > 1 and len(rest) > 1:
        with ProcessPoolExecutor(jobs, initializer=_begin, initargs=study.arguments) as pool:
            # What takes longest goes first.
            rest.sort(key=lambda line: -line.steps)
            futures = {pool.submit(_in_pool, line): line for line in rest}
            errors = []
            for future in as_completed(futures):
                if (error := future.exception()) is None:
                    tell(futures[future].name)
                else:
                    errors.append(error)
            if errors:  # after the others are in the cache
                raise errors[0]
    else:
        for line in rest:
            study.quality(line)
            tell(line.name)
    judge = study.judge
    rows = []
    for line in lines:
        made, scores = study.quality(line)
        rows.append(row_of(line, made, scores, base[1], judge))
    return study.with_running(rows, lines, llama, tell, cached) if running else rows


class _Study:
    """The cache of one study, and what fills it."""

    def __init__(self, source: Any, texts: list[str], settings: Settings, cache: Path) -> None:
        self.source, self.texts, self.settings, self.cache = source, texts, settings, cache
        self.weights = weights_hash(source.model)
        self._judge: Judge | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """For a process of the pool."""
        return self.source.name, self.texts, self.settings, self.cache

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self.source, self.texts, self.settings)
        return self._judge

    def file(self, kind: str, *parts: Any) -> Path:
        """Where something is kept that depends on these parts, the weights and the code."""
        key = json.dumps([kind, parts, self.weights, code_hash(_CODE[kind])])
        return self.cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _quality_file(self, line: Line) -> Path:
        # Names and families are for the reader: another name is the same model.
        what = asdict(replace(line, name="", family=""))
        return self.file(line.kind, what, self.texts, asdict(self.settings))

    def read(self, line: Line) -> tuple[Made, Scores] | None:
        """From the cache; None if it is not there, or cut."""
        try:
            found = json.loads(self._quality_file(line).read_text(encoding="utf-8"))
            return Made(None, *found["made"]), Scores(**found["scores"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def quality(self, line: Line) -> tuple[Made, Scores]:
        """From the cache, or made, judged and kept."""
        found = self.read(line)
        if found is not None:
            return found
        choices = self.sensitivity(line.among) if line.among else None
        made = make(self.source, line, self.settings.calibration, choices)
        scores = self.judge.measure(made.model)
        _keep(
            self._quality_file(line),
            {
                "made": [made.bits_per_weight, made.file_bytes, dict(made.schemes)],
                "scores": scores.as_dict(),
            },
        )
        return Made(None, made.bits_per_weight, made.file_bytes, made.schemes), scores

    def sensitivity(self, among: tuple[str, ...]) -> dict[str, Any]:
        """What ``allocate`` chooses from."""
        from qlab.evaluate.allocation import Choice

        file = self.file("mixed", "sensitivity", among)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            choices = measure_sensitivity(self.source, among)
            found = {
                name: [[c.scheme, c.nbytes, c.cost] for c in cs] for name, cs in choices.items()
            }
            _keep(file, found)
        return {name: [Choice(*c) for c in cs] for name, cs in found.items()}

    def with_running(
        self, rows: Sequence[Row], lines: Sequence[Line], llama: bool, tell: Tell, cached: bool
    ) -> list[Row]:
        """The rows with memory and speed; ``cached``: those that were measured before."""
        result = []
        with Runner(self.source, llama) as runner:
            for row, line in zip(rows, lines, strict=True):
                layout = layout_of(line, row.schemes)
                file = self.file("running", layout, llama)
                try:
                    found = json.loads(file.read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    if cached:
                        result.append(row)
                        continue
                    found = runner.measure(line, row.schemes)
                    _keep(file, found)
                    tell(f"{line.name}: running")
                keys = ("memory_bytes", "speed", "llama_speed", "note")
                result.append(replace(row, **{k: found.get(k) for k in keys}))
        return result


_study: _Study | None = None  # of a process of the pool


def _begin(name: str, texts: list[str], settings: Settings, cache: Path) -> None:
    global _study
    import torch

    torch.set_num_threads(1)
    _study = _Study(qlab.load(name), texts, settings, cache)


def _in_pool(line: Line) -> None:
    assert _study is not None
    _study.quality(line)


def _keep(file: Path, value: Any) -> None:
    with new_file(file) as fresh:
        fresh.write_text(json.dumps(value), encoding="utf-8")


@functools.cache
def code_hash(parts: tuple[str, ...]) -> str:
    """Of qlab's Python files in these rooms."""
    root = Path(qlab.__file__).parent
    digest = hashlib.sha256()
    for part in parts:
        files = sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]
        for file in files:
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
