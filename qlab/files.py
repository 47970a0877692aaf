"""Writing output whole or not at all: write beside the final name, then rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qlab.errors import QlabError


@contextlib.contextmanager
def new_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends without error.

    On any error, an interruption included, nothing is left behind and an old ``out`` is untouched.

    Raises: QlabError if ``out`` exists (unless ``overwrite``), or the disk is full or read-only.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise QlabError(f"'{out}' exists already: choose another --out, or add --overwrite")
    if out.exists() and not out.is_dir():
        raise QlabError(f"'{out}' is a file, not a folder: choose another --out")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with _explained(out):
            yield fresh
            fresh.chmod(0o755)
            old = None
            if out.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
                os.rename(out, old / "old")
            os.rename(fresh, out)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def new_file(out: str | Path) -> Iterator[Path]:
    """The same for a file: a temporary path beside ``out``; replaces an old file at the end."""
    out = Path(out)
    if out.is_dir():
        raise QlabError(f"'{out}' is a folder, not a file: choose another --out")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        os.close(handle)
    fresh = Path(name)
    try:
        with _explained(out):
            yield fresh
            os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, QlabError):
            raise
        raise QlabError(
            f"could not write '{out}': {error.strerror or error}; "
            "free some space or choose another --out (nothing was left behind)"
        ) from None
