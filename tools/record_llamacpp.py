"""Record what llama.cpp makes of our GGUF files, for the tests that compare qlab's with it.

llama-cpp-python compiles llama.cpp, which takes minutes, so the tests' environment is without it:

    pip install -e .[llama]
    python tools/record_llamacpp.py            # both records
    python tools/record_llamacpp.py story      # after the storyteller was trained anew

``seeded`` records models of fixed random weights (tests/gguf/seeded_models.py) in
tests/parity/data/llamacpp.json, ``story`` the storyteller in tests/parity/data/llamacpp_story.json.
For each model: the SHA-256 of our F32 file; for every mix the file that llama_model_quantize makes
of it (its SHA-256, and the block types of its tensors) without and with an importance matrix, or
null where it refuses; and the beginning of the SHA-256 of each tensor's bytes in each block type.
For the storyteller also greedy continuations and the perplexity of the F32 file.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "parity" / "data"
DIGITS = 16  # of a tensor's SHA-256 that are kept: 64 bits
MANY = 500  # tensors, of which files and types are recorded alone
TOKENS = 40  # of a continuation
TEXTS = 8  # of the validation stories, for the perplexity


def main() -> None:
    sys.path.insert(0, str(ROOT))  # for the tests' models
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", nargs="?", choices=("seeded", "story"), help="default: both")
    which = parser.parse_args().which
    if which != "story":
        write("llamacpp.json", {"versions": versions(), "models": seeded()})
    if which != "seeded":
        write("llamacpp_story.json", {"versions": versions(), **story()})


def versions() -> dict[str, str]:
    import llama_cpp

    return {
        "llama-cpp-python": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode().strip(),
        "machine": platform.machine(),
        "numpy": np.__version__,
    }


def seeded() -> dict[str, Any]:
    from qlab.gguf.convert import to_gguf
    from tests.gguf.seeded_models import SIZES, seeded_model, tokenizer

    found = {}
    for name in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "f32.gguf"
            to_gguf(seeded_model(name), tokenizer(), path, name=name)
            found[name] = quantizations(path)
        print(f"recorded {name}")
    return found


def story() -> dict[str, Any]:
    import qlab
    from qlab.gguf.convert import to_gguf
    from tools.weights import weights_hash

    teller = qlab.story.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.gguf"
        to_gguf(teller.model, teller.tokenizer, path, name="story")
        found = {"weights": weights_hash(), "model": quantizations(path), **telling(path, teller)}
    print("recorded the storyteller")
    return found


def quantizations(path: Path) -> dict[str, Any]:
    """What llama_model_quantize makes of an F32 file, in every mix."""
    from qlab.gguf import GGUFFile
    from qlab.gguf.mixes import MIXES
    from tests.gguf.seeded_models import runs, seeded_importance

    with GGUFFile(path) as file:
        importance = seeded_importance({t.name: t.shape for t in file.tensors.values()})
    found: dict[str, Any] = {"f32": sha256(path), "mixes": {}, "with importance": {}}
    tensors: dict[str, dict[str, str]] = {}
    for mix in MIXES.values():
        for part, rows in (("mixes", None), ("with importance", importance)):
            out = path.with_name("quantized.gguf")
            if not quantize(path, out, mix.file_type, rows):
                found[part][mix.name] = None
                continue
            with GGUFFile(out) as file:
                types = {t.name: t.kind.name for t in file.tensors.values()}
                if rows is None and len(types) < MANY:
                    for t in file.tensors.values():
                        data = hashlib.sha256(t.data.tobytes()).hexdigest()[:DIGITS]
                        tensors.setdefault(t.kind.name, {})[t.name] = data
            found[part][mix.name] = {"file": sha256(out), "types": runs(types)}
    return {**found, "tensors": tensors}


def quantize(path: Path, out: Path, file_type: int, importance: Mapping[str, Any] | None) -> bool:
    """llama_model_quantize; False if it refuses."""
    import llama_cpp

    quiet()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if importance is not None:
        # The list ends with an entry without a name.
        rows = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for row, (name, values) in zip(rows, importance.items(), strict=False):
            row.name, row.size = name.encode(), len(values)
            row.data = np.ascontiguousarray(values).ctypes.data_as(type(row.data))
        params.imatrix = rows
    code = llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), params)
    return int(code) == 0


def telling(path: Path, teller: Any) -> dict[str, Any]:
    """Greedy continuations and perplexity of an F32 file, keys and values kept in float32."""
    import llama_cpp

    from qlab.evaluate.perplexity import cut
    from tests.gguf.seeded_models import PROMPTS

    context = int(teller.model.config.max_position_embeddings)
    model = llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_batch=context,
        n_threads=1,
        n_threads_batch=1,
        n_gpu_layers=0,
        logits_all=True,
        type_k=0,
        type_v=0,
        verbose=False,
    )

    def logits(ids: list[int]) -> Any:
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)], np.float64)

    prompts = {}
    for prompt in PROMPTS:
        ids = list(model.tokenize(prompt.encode()))
        begin = len(ids)
        row = logits(ids)[-1]
        for _ in range(TOKENS):
            ids.append(int(row.argmax()))
            model.eval(ids[-1:])
            row = np.array(model.scores[len(ids) - 1], np.float64)
        prompts[prompt] = {"prompt": ids[:begin], "continuation": ids[begin:]}
    nll, count = 0.0, 0
    for text in teller.validation()[:TEXTS]:
        for window in cut(teller.tokenizer, text, context):
            scores = logits(window.ids)[:-1]
            scores -= scores.max(1, keepdims=True)
            logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
            picked = logs[np.arange(len(logs)), window.ids[1:]]
            nll -= float(picked[-window.scored :].sum())
            count += window.scored
    return {
        "continuations": prompts,
        "texts": TEXTS,
        "perplexity": float(np.exp(nll / count)),
    }


def quiet() -> None:
    """llama.cpp writes hundreds of lines a file."""
    import llama_cpp

    global _SILENCE
    if _SILENCE is None:
        _SILENCE = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p(0))


_SILENCE: Any = None  # kept, or the C would call what is gone


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(name: str, found: Any) -> None:
    from qlab.files import new_file

    with new_file(DATA / name) as fresh:
        fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        fresh.chmod(0o644)
    print(f"wrote {DATA / name}")


if __name__ == "__main__":
    main()
