"""`make lab`: JupyterLab opens a chapter as a notebook and runs it."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.chapters import ROOT, notebooks


def recipe() -> str:
    """The line of the Makefile's target ``lab``."""
    return re.search(r"^lab:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """JupyterLab as `make lab` starts it, without a browser; ``lab(path)`` asks its API."""
    home = tmp_path_factory.mktemp("home")
    token = secrets.token_hex(16)
    scripts = Path(sys.executable).parent
    environment = dict(
        os.environ,
        JUPYTER_CONFIG_PATH=str(ROOT / "tools" / "jupyter"),
        JUPYTER_RUNTIME_DIR=str(home),
        HOME=str(home),
    )
    command = [str(scripts / "jupyter-lab"), str(ROOT / "book"), "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={token}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = ""
        for _ in range(240):
            time.sleep(0.25)
            found = list(home.glob("jpserver-*.json"))
            if found and found[0].read_text().strip():
                address = json.loads(found[0].read_text())["url"]
                break
            assert server.poll() is None, (home / "log").read_text()
        assert address, (home / "log").read_text()

        def ask(path: str) -> Any:
            request = urllib.request.Request(
                address.rstrip("/") + path, headers={"Authorization": f"token {token}"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        yield ask
    finally:
        server.terminate()
        server.wait(20)


def test_the_target_starts_the_lab_in_the_book_with_its_settings() -> None:
    assert "jupyter-lab book" in recipe()
    assert 'JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter"' in recipe()


@pytest.mark.slow
@pytest.mark.tools
def test_a_chapter_opens_as_a_notebook(lab: Any) -> None:
    for chapter in notebooks():
        model = lab(f"/api/contents/{chapter.name}?type=notebook")
        assert model["type"] == "notebook" and model["format"] == "json"
        kinds = {cell["cell_type"] for cell in model["content"]["cells"]}
        assert kinds == {"code", "markdown"}, chapter.name


@pytest.mark.slow
@pytest.mark.tools
def test_a_double_click_opens_the_notebook_view(lab: Any) -> None:
    settings = lab("/lab/api/settings/@jupyterlab/docmanager-extension:plugin")
    viewers = json.loads(re.sub(r"^\s*//.*$", "", settings["raw"], flags=re.M) or "{}")
    overrides = json.loads(
        (ROOT / "tools/jupyter/labconfig/default_setting_overrides.json").read_text()
    )
    wanted = overrides["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert "Notebook" in wanted["myst"] or "Notebook" in wanted["markdown"]
    default = settings["schema"]["properties"]["defaultViewers"].get("default", {})
    assert wanted.items() <= {**default, **viewers.get("defaultViewers", {})}.items()
