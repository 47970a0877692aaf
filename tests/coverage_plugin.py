"""What the tests say about agreement with production tools, for the page on coverage.

``@pytest.mark.oracle(subject, tool, agreement)`` and ``@pytest.mark.engine(subject, engine)`` name
what a test shows. A subject is ``method gptq``, ``format nf4``, ``type Q4_K``, ``export gguf`` ...;
``{name}`` in it stands for a parameter of the test. With ``--coverage-record FILE`` what passed is
written to FILE (tools/record_coverage.py); with ``--coverage-claims FILE`` what is claimed is,
without running a test.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

KINDS = ("oracle", "engine")
# Tools have one name on the page, that of their project. Tests also say names of modules.
NAMES = {
    "autoround": "auto-round",
    "awq": "autoawq",
    "gptqmodel": "GPTQModel",
    "llamacpp": "llama.cpp",
    "llmcompressor": "llm-compressor",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("coverage of production tools")
    group.addoption("--coverage-record", metavar="FILE", help="write what passed")
    group.addoption("--coverage-claims", metavar="FILE", help="write what is claimed; run nothing")


def claims_of(item: pytest.Item) -> list[list[str]]:
    """What a test shows: [kind, subject, tool, agreement]; the last is empty for an engine."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    found = []
    for kind in KINDS:
        for mark in item.iter_markers(kind):
            words = [str(word).format(**params) for word in mark.args]
            name, space, how = words[1].partition(" (")
            words[1] = NAMES.get(name, name) + space + how
            found.append([kind, *words, *[""] * (3 - len(words))])
    return found


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the claims of what was collected."""
    path = session.config.getoption("coverage_claims")
    if path:
        claims = sorted({tuple(c) for item in session.items for c in claims_of(item)})
        Path(path).write_text(json.dumps(claims), encoding="utf-8")
        session.items.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call):
    """Hand the claims on with the report, so that they reach the process that writes."""
    report = yield
    for claim in claims_of(item):
        report.user_properties.append(("claim", claim))
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Listen where a record is asked for, in the process that sees all reports."""
    path = config.getoption("coverage_record")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


class Recorder:
    """Counts, for each claim, the tests that passed; one that did not takes the claim away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: dict[tuple[str, ...], int] = {}
        self.failed: set[tuple[str, ...]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that is skipped shows nothing, so it counts as one that did not pass."""
        for name, claim in report.user_properties:
            if name != "claim":
                continue
            if report.outcome != "passed":
                self.failed.add(tuple(claim))
            elif report.when == "call":
                self.passed[tuple(claim)] = self.passed.get(tuple(claim), 0) + 1

    def pytest_sessionfinish(self) -> None:
        """Write what passed."""
        rows = [[*c, n] for c, n in sorted(self.passed.items()) if c not in self.failed]
        self.path.write_text(json.dumps(rows), encoding="utf-8")
