"""Execute the chapters and build the HTML, doing only what changed.

    python tools/build_book.py [--force]

Three fingerprints are kept beside the built book:

- ``library``: qlab with its data, the lock, the Python version. It names the folder of executed
  notebooks, because jupyter-cache compares the cells of a chapter and nothing else: a change in
  qlab must execute every chapter again.
- ``frame``: the configuration, the table of contents, the style, the extensions, the names of the
  notebooks that pages link to. A change redraws every page; nothing is executed again.
- ``chapters``: the chapters, of which only those that changed are executed and redrawn, and the
  notebooks, which are copied.

Chapters are executed beside one another by tools/run_chapters.py, and those that measure time by
Sphinx, one by one.

With nothing changed it prints the address of the book and returns. Warnings are errors, and a cell
that raises stops the build, unless it is tagged ``raises-exception``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.chapters import ROOT, project_urls

CACHES_KEPT = 2
SKIPPED_FOLDERS = {"__pycache__", ".ipynb_checkpoints", "_build"}


def files_under(root: Path, names: Iterable[str]) -> list[Path]:
    """The files of these files and folders, sorted, without caches and hidden files."""
    found = []
    for name in names:
        top = root / name
        if top.is_file():
            found.append(top)
        for folder, subfolders, files in os.walk(top):
            subfolders[:] = [f for f in subfolders if f not in SKIPPED_FOLDERS and f[0] != "."]
            found += [Path(folder, f) for f in files if f[0] != "." and not f.endswith(".pyc")]
    return sorted(found)


def digest(root: Path, paths: Iterable[Path], extra: str = "") -> str:
    """SHA-256 over the names and the contents of files."""
    total = hashlib.sha256(extra.encode())
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def fingerprints(root: Path) -> dict[str, str]:
    """What the built book depends on, in three parts (see the top of this file)."""
    library = files_under(root, ["qlab", "requirements.lock"])
    book = files_under(root, ["book"])
    notebooks = files_under(root, ["notebooks"])
    chapters = [path for path in book if path.suffix == ".md"] + notebooks
    frame = [path for path in book if path.suffix != ".md"]
    frame += files_under(root, ["_config.yml", "_toc.yml", "pyproject.toml", "tools", "benchmarks"])
    frame += sorted(root.glob("*.md"))
    return {
        "library": digest(root, library, extra=sys.version),
        "frame": digest(root, frame, extra=" ".join(path.name for path in notebooks)),
        "chapters": digest(root, chapters),
    }


def write_config(root: Path, cache: Path) -> Path:
    """_config.yml with the settings that must hold however it is edited; returns its path."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    execute = config.setdefault("execute", {})
    execute.update(execute_notebooks="cache", cache=str(cache), raise_on_error=True, show_tb=True)
    execute["allow_errors"] = False
    sphinx = config.setdefault("sphinx", {})
    # Paths of local extensions count from the configuration file, which is another one now.
    extensions = sphinx.get("local_extensions") or {}
    if extensions:
        sphinx["local_extensions"] = {k: str((root / v).resolve()) for k, v in extensions.items()}
    config.setdefault("repository", {}).setdefault("url", project_urls(root)["Repository"])
    path = root / "_build" / "config.yml"
    path.parent.mkdir(exist_ok=True)
    text = "# Made by tools/build_book.py from _config.yml.\n"
    path.write_text(text + yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def prune_caches(build: Path, kept: Path) -> None:
    """Remove all but the newest few folders of executed notebooks."""
    caches = [path for path in build.glob(".jupyter_cache-*") if path != kept]
    caches.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in caches[CACHES_KEPT - 1 :]:
        shutil.rmtree(old)


def read_state(path: Path) -> dict[str, str]:
    """The fingerprints of the last build that succeeded; empty if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def build(root: Path, force: bool = False) -> int:
    """Build the book under ``root/_build/html``; returns the exit code."""
    now = fingerprints(root)
    state = root / "_build" / "state.json"
    index = root / "_build" / "html" / "index.html"
    before = read_state(state)
    if before == now and index.is_file() and not force:
        print(f"The book is up to date: {index}")
        return 0

    cache = root / "_build" / f".jupyter_cache-{now['library'][:12]}"
    scripts = Path(sys.executable).parent
    config = write_config(root, cache)
    command = [str(scripts / "jupyter-book"), "build", str(root)]
    command += ["--config", str(config), "-W", "-n", "--keep-going"]
    # Sphinx warns of a page only when it reads it. So after a build that failed, and after a
    # change that touches every page, it reads them all; what was executed is in the cache.
    same = before.get("library") == now["library"] and before.get("frame") == now["frame"]
    if force or not same or not index.is_file():
        command.append("--all")
        shutil.rmtree(index.parent, ignore_errors=True)
    state.unlink(missing_ok=True)
    cache.mkdir(exist_ok=True)
    os.utime(cache)

    started = time.monotonic()
    # Chapters may call `!qlab`: it must be the one of this environment.
    path = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    env = dict(os.environ, PATH=path, PYDEVD_DISABLE_FILE_VALIDATION="1")
    env.setdefault("QLAB_CACHE", str(root / "_build" / ".cache"))
    env.setdefault("GOMP_SPINCOUNT", "3000")  # as in the Makefile, which says why
    timeout = yaml.safe_load(config.read_text(encoding="utf-8"))["execute"].get("timeout", 240)
    beside = [sys.executable, str(ROOT / "tools" / "run_chapters.py"), root, cache, timeout]
    one_thread = dict(env, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    subprocess.run([str(part) for part in beside], cwd=root, env=one_thread, check=False)
    code = subprocess.run(command, cwd=root, env=env, check=False).returncode
    prune_caches(root / "_build", cache)
    if code:
        print("The book was not built: see the first error above.", file=sys.stderr)
        return code
    state.write_text(json.dumps(now, indent=1), encoding="utf-8")
    print(f"Built in {time.monotonic() - started:.0f} s. Open {index}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Execute the chapters and build the HTML.")
    parser.add_argument("--force", action="store_true", help="redraw every page")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    return build(args.root.resolve(), args.force)


if __name__ == "__main__":
    sys.exit(main())
