"""The files around the package agree with each other and with what is built from them."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qlab
from tools.chapters import ROOT, header, is_notebook, pages, project_urls
from tools.lock import format_environment, format_lock, parse_lock, pins_of_report

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


# Requirements


def test_the_lock_holds_exact_versions_in_order() -> None:
    pins = parse_lock(LOCK)
    assert format_lock(pins) == LOCK
    assert "qlab" not in pins
    assert {"torch", "torchao", "bitsandbytes", "setuptools", "wheel"} <= set(pins)


@pytest.mark.parametrize(
    "line", ["numpy>=2", "numpy", "-e .", "torch==2.13.0+cpu", "a @ file:///b"]
)
def test_a_line_that_is_no_pin_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_lock(f"# comment\n{line}\n")


def test_the_environment_has_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (from_pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert from_pip.pop() == "-e ."
    assert parse_lock("\n".join(from_pip)) == parse_lock(LOCK)
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == format_environment(
        parse_lock(LOCK)
    )


def test_the_lock_meets_every_requirement() -> None:
    pins = parse_lock(LOCK)
    extras = PYPROJECT["project"]["optional-dependencies"]
    groups = {name: list(lines) for name, lines in extras.items() if name not in ("llama", "gpu")}
    groups["the package"] = PYPROJECT["project"]["dependencies"]
    groups["the build"] = PYPROJECT["build-system"]["requires"]
    unmet = []
    for group, lines in groups.items():
        for requirement in map(Requirement, lines):
            name = canonicalize_name(requirement.name)
            if name == "qlab":
                assert requirement.extras <= set(extras), f"{group} names an unknown extra"
            elif name not in pins or not requirement.specifier.contains(pins[name]):
                unmet.append(f"{group}: {requirement}")
    assert not unmet, "run `make lock`"


def test_extras_cover_each_other() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    everything = {name for line in extras["all"] for name in Requirement(line).extras}
    assert everything == set(extras) - {"all", "llama"}


def test_a_report_of_pip_becomes_pins() -> None:
    items = [("Torch", "2.13.0+cpu"), ("qlab", "0.1.0"), ("ruamel.yaml_x", "1.0")]
    report = {"install": [{"metadata": {"name": n, "version": v}} for n, v in items]}
    assert pins_of_report(report) == {"torch": "2.13.0", "ruamel-yaml-x": "1.0"}


def test_what_is_installed_fits_together() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# The package


def test_the_version_is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert qlab.__version__ == version
    assert str(citation["version"]) == version
    assert importlib.metadata.version("qlab") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_addresses_are_those_of_pyproject() -> None:
    urls = project_urls()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"].rstrip("/") == urls["Repository"]
    assert citation["url"].rstrip("/") == urls["Documentation"]
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    stated = (config.get("repository") or {}).get("url", urls["Repository"])
    assert stated.rstrip("/") == urls["Repository"]
    published = (config.get("html") or {}).get("baseurl", urls["Documentation"])
    assert published.rstrip("/") == urls["Documentation"]


def test_the_citation_file_has_what_its_format_demands() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_licenses_are_whole() -> None:
    code = (ROOT / "LICENSE").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    assert "Apache License" in code and "END OF TERMS AND CONDITIONS" in code
    assert "Attribution 4.0 International Public License" in text
    assert "Section 8 -- Interpretation." in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0 AND CC-BY-4.0"


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = ["pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT"]
    files = [ROOT / name for name in names]
    files += [
        path
        for path in (ROOT / "qlab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in files:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("qlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        entry_points = archive.read(info[0]).decode()
    assert inside == {p.relative_to(ROOT).as_posix() for p in files if ROOT / "qlab" in p.parents}
    assert "qlab/py.typed" in inside
    assert "qlab = qlab.cli:main" in entry_points


# What people read


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    assert phony == targets
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/weekly.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = re.findall(r"(?:^|`|- run: )make (?:[A-Z]+=\S+ )*([a-z-]+)", text, re.MULTILINE)
        assert named and set(named) <= targets, f"{name} names {set(named) - targets}"


def test_the_commands_of_the_readme_are_understood() -> None:
    from qlab.cli import _parser

    lines = [line for block in fenced(README, "sh") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("qlab ")]
    assert len(commands) >= 5
    for _, *arguments in commands:
        _parser().parse_args(arguments)  # exits, and so fails, on what it does not know


@pytest.mark.slow
def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture) -> None:
    (example,) = fenced(README, "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "Once upon a time" in capsys.readouterr().out


# The book's files


def test_every_chapter_is_in_the_contents_and_runs_on_the_same_kernel() -> None:
    listed = pages()
    assert len(set(listed)) == len(listed)
    lost = set((ROOT / "book").glob("*.md")) - set(listed)
    assert not lost, "not in _toc.yml"
    for path in filter(is_notebook, listed):
        top = header(path)
        assert top["kernelspec"]["name"] == "python3", path.name
        assert top["jupytext"]["text_representation"]["format_name"] == "myst", path.name
    for path in listed:
        if not is_notebook(path):
            assert "{code-cell}" not in path.read_text(encoding="utf-8"), f"{path.name}: no header"


# Continuous integration


def test_a_picture_is_the_last_line_of_its_cell() -> None:
    """Jupyter shows the value of a cell's last line; a picture before it would never be seen."""
    for path in pages():
        if not is_notebook(path):
            continue
        drawers = {"viz"}
        for number, cell in enumerate(jupytext.read(path, fmt="md:myst").cells):
            if cell.cell_type != "code" or "raises-exception" in cell.metadata.get("tags", []):
                continue
            tree = ast.parse(re.sub(r"^[%!].*", "pass", cell.source, flags=re.MULTILINE))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("qlab.viz"):
                    drawers |= {alias.asname or alias.name for alias in node.names}
            for line in tree.body[:-1]:
                for node in ast.walk(line):
                    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                        drawn = ast.unparse(node.value.func)
                        assert drawn.split(".")[0] not in drawers or drawn == "viz.use_style", (
                            f"{path.name}, cell {number}: {drawn} is not shown"
                        )


def test_ci_runs_the_tests_command_of_the_readme() -> None:
    commands = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert "set -euo pipefail" in commands
    (two,) = (block for block in fenced(README, "sh") if "make test" in block)
    assert [line.partition("#")[0].strip() for line in two.splitlines()] == [
        "make book",
        "make test",
    ]
    clean, book, test = (commands.index(c) for c in ("rm -rf _build", "make book", "make test"))
    assert clean < book < test == len(commands) - 1


@pytest.mark.parametrize("name", ["ci", "weekly"])
def test_a_workflow_runs_on_the_debian_image(name: str) -> None:
    workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "permissions", "jobs"} <= set(workflow)
    runs = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    if name == "ci":
        assert "bash .ci/run" in runs
        assert workflow["jobs"]["publish"]["needs"] == "test"
    else:
        assert "make test LOCK=requirements.in" in runs
