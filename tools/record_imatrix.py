"""Record the importance matrices that llama.cpp computes, for the tests that compare qlab's.

llama-imatrix is a tool of llama.cpp that has to be compiled, so it is no part of the tests'
environment:

    cmake -B build -DBUILD_SHARED_LIBS=OFF && cmake --build build --target llama-imatrix
    python tools/record_imatrix.py --tool build/bin/llama-imatrix --source "llama.cpp COMMIT"

The models have fixed random weights (tests/gguf/imatrix_cases.py), so the record does not age with
the storyteller. Each is written by qlab as an F32 file. The tool reads it and a small text, keys
and values in float32, and writes the matrix in its GGUF format; then it turns that into the older
one. Both go to tests/parity/data. It must also read both as qlab writes them, and find the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "parity" / "data"
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", required=True, help="path of llama-imatrix")
    parser.add_argument("--source", required=True, help="what it was compiled from")
    args = parser.parse_args()
    tool = Path(args.tool).resolve()

    from qlab.gguf.convert import to_gguf
    from tests.gguf.imatrix_cases import CASES, CHUNK, text
    from tests.gguf.seeded_models import seeded_model, tokenizer

    for case, settings in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            to_gguf(seeded_model(**settings), tokenizer(), place / "f32.gguf", name=case)
            (place / "text.txt").write_text(text() + "\n", encoding="utf-8")
            run(
                tool, place, "-m", "f32.gguf", "-f", "text.txt", "-c", CHUNK,
                *("-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", 1),
                *("--no-ppl", "--process-output", "-o", "found.gguf"),
            )  # fmt: skip
            convert(tool, place, "found.gguf", "found.dat")
            read_ours(tool, place)
            for suffix in ("gguf", "dat"):
                data = (place / f"found.{suffix}").read_bytes()
                (DATA / f"imatrix_{case}.{suffix}").write_bytes(data)
        print(f"recorded {case}")
    note = {"source": args.source, "chunk": CHUNK, "cases": list(CASES)}
    (DATA / "imatrix.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def run(tool: Path, place: Path, *args: object) -> None:
    done = subprocess.run(
        [str(tool), *map(str, args)], cwd=place, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{tool.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def convert(tool: Path, place: Path, source: str, out: str) -> None:
    """The tool reads one file and writes another."""
    from tests.gguf.imatrix_cases import CHUNK

    suffix = Path(out).suffix[1:]
    run(tool, place, "--in-file", source, "--output-format", suffix, "-c", CHUNK, "-o", out)


def read_ours(tool: Path, place: Path) -> None:
    from qlab.gguf.imatrix import read_imatrix, write_imatrix

    found = read_imatrix(place / "found.gguf")
    for suffix in ("gguf", "dat"):
        write_imatrix(found, place / f"ours.{suffix}")
        convert(tool, place, f"ours.{suffix}", "again.gguf")
        again = read_imatrix(place / "again.gguf")
        assert list(again) == list(found)
        for name in found:  # the older format rounds twice more
            np.testing.assert_allclose(again[name], found[name], rtol=5e-7)


if __name__ == "__main__":
    main()
