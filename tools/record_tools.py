"""Run the tools of the toolbox on the storyteller, and record what they say beside qlab.

    .venv/bin/python tools/record_tools.py                     # all tools that are not recorded yet
    .venv/bin/python tools/record_tools.py gptqmodel --again   # one of them
    .venv/bin/python tools/record_tools.py --list

Each tool has one script in tools/toolbox and an environment of its own, which is made where it is
missing (``--envs FOLDER``, default _build/envs; one that was made by hand is used as it is). The
script gets the storyteller as a folder, token ids to calibrate with and token ids to be judged on.
It answers with the sum of the losses of its own forward, or with its dequantized weights, which are
then put into one plain model. What it says goes to qlab/records/tools.json, tied to a hash of the
weights and of the script; an error is recorded as one. A run takes seconds to minutes a tool.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

RECORD = ROOT / "qlab" / "records" / "tools.json"
SCRIPTS = ROOT / "tools" / "toolbox"
TEXTS, CALIBRATION, CONTEXT = 6, 16, 512
NOT_YET = "not yet run"


@dataclass(frozen=True)
class Row:
    """One row of the record.

    Attributes:
        tool: whose script gives it.
        ours: what of qlab's it stands beside, a key of ``OURS``.
        within: the ratio of both perplexities differs from 1 by no more.
        why: the reason for that much.
    """

    tool: str
    ours: str
    within: float
    why: str


# Two ways to one goal: rounding of single weights differs, and so does the luck of a small sample.
LUCK = "another order of the same method leaves other codes, and none of them is the right one"
SAME = "the same codes by the same formula; sums of float32 and scales of float16 differ"
TOGETHER = "it learns the layers of a block together, qlab each by itself"
BLOCKS = "inputs are rounded to 8 bits in blocks, those of the 6-bit output layer too"
ROWS = {
    "gptqmodel int4-g128": Row("gptqmodel", "gptq", 0.04, LUCK),
    "llm-compressor W4A16": Row("llmcompressor", "gptq", 0.04, LUCK),
    "llm-compressor W8A8": Row("llmcompressor", "smoothquant W8A8", 0.02, LUCK),
    "autoawq int4-asym-g128": Row("awq", "awq", 0.04, LUCK),
    "auto-round W4A16": Row("autoround", "autoround", 0.04, TOGETHER),
    "hqq int4-g64": Row("hqq", "hqq", 0.01, SAME),
    "quanto qint8": Row("quanto", "rtn int8", 0.005, SAME),
    "quanto qint4": Row("quanto", "rtn int4-asym", 0.03, "its zero points are real numbers"),
    "inc rtn": Row("inc", "rtn int4, 15 codes", 0.01, SAME),
    "inc gptq": Row("inc", "gptq, 15 codes", 0.04, LUCK),
    "openvino int8": Row("openvino", "rtn int8", 0.005, SAME),
    "openvino int4-g128": Row("openvino", "rtn int4", 0.03, "its scales are signed: max|w| / 8"),
    "openvino int4-g128, as it comes": Row("openvino", "rtn int4", 0.05, "inputs of 8 bits too"),
    "ctranslate2 float32": Row(
        "ctranslate2", "float32", 0.001, "the same weights, summed otherwise"
    ),
    "ctranslate2 int8": Row("ctranslate2", "rtn W8A8", 0.02, "embeddings and head are int8 too"),
    "llama.cpp Q8_0": Row("llamacpp", "gguf q8_0", 0.005, "keys and values of float16"),
    "llama.cpp Q4_0": Row("llamacpp", "gguf q4_0", 0.03, BLOCKS),
    "llama.cpp Q4_K_M": Row("llamacpp", "gguf q4_k_m", 0.03, BLOCKS),
    "llama.cpp Q4_K_M imatrix": Row("llamacpp", "gguf q4_k_m imatrix", 0.03, BLOCKS),
}
# Name -> (method, scheme, activations, options); gguf ones are made by ``ours``.
OURS: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "rtn int8": ("rtn", "int8-channel", None, {}),
    "rtn W8A8": ("rtn", "int8-channel", "int8-token", {}),
    "rtn int4": ("rtn", "int4-full-g128-sfp16", None, {}),
    "rtn int4, 15 codes": ("rtn", "int4-g128-sfp16", None, {}),
    "rtn int4-asym": ("rtn", "int4-asym-g128", None, {}),
    # The library begins with the zero point rounded to a code at 4 bits, and at no other number.
    "hqq": ("hqq", "int4-asym-g64", None, {"round_zero": True}),
    "gptq": ("gptq", "int4-full-g128-sfp16", None, {"act_order": True}),
    "gptq, 15 codes": ("gptq", "int4-g128-sfp16", None, {"act_order": True}),
    "smoothquant W8A8": ("smoothquant", "int8-channel", "int8-token", {}),
    "awq": ("awq", "int4-asym-g128-sfp16", None, {}),
    "autoround": ("autoround", "int4-full-g128-sfp16", None, {"steps": 20}),
}
GGUF = {
    "gguf q8_0": ("q8_0", False),
    "gguf q4_0": ("q4_0", False),
    "gguf q4_k_m": ("q4_k_m", False),
    "gguf q4_k_m imatrix": ("q4_k_m", True),
}


@dataclass(frozen=True)
class Tool:
    """A script, its environment, and functions of it that need a word: what the chapters show."""

    script: str
    environment: str | None = None
    gpu: bool = False
    timeout: int = 1800
    variables: dict[str, str] = field(default_factory=dict)


TOOLS = {
    "gptqmodel": Tool("by_gptqmodel.py", "gptqmodel", variables={"GPTQMODEL_CPU_WORKERS": "2"}),
    "llmcompressor": Tool("by_llmcompressor.py", "llmcompressor"),
    "awq": Tool("by_awq.py", "awq"),
    "autoround": Tool("by_autoround.py", "autoround"),
    "hqq": Tool("by_hqq.py", "hqq"),
    "quanto": Tool("by_quanto.py", "quanto"),
    "inc": Tool("by_inc.py", "inc"),
    "openvino": Tool("by_openvino.py", "openvino"),
    "ctranslate2": Tool("by_ctranslate2.py", "ctranslate2"),
    "llamacpp": Tool("by_llamacpp.py", "llama"),
    "tensorrt_llm": Tool("gpu_tensorrt_llm.py", gpu=True),
    "tensorrt": Tool("gpu_tensorrt.py", gpu=True),
    "eetq": Tool("gpu_eetq.py", gpu=True),
    "unsloth": Tool("gpu_unsloth.py", gpu=True),
}


def script_hash(tool: str) -> str:
    """Of a tool's script and of what all scripts share."""
    files = (SCRIPTS / TOOLS[tool].script, SCRIPTS / "shared.py")
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def shown(tool: str) -> dict[str, str]:
    """The parts of a script that the chapters show: name of the function -> its code."""
    text = (SCRIPTS / TOOLS[tool].script).read_text(encoding="utf-8")
    pattern = r"^def (\w+)\([^\n]*\n\s+# \[shown\]\n(.*?)\n\s+# \[end\]"
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return {name: textwrap.dedent(code).strip() for name, code in found}


@functools.cache
def story() -> Any:
    """The storyteller."""
    import qlab

    return qlab.story.load()


def judged() -> list[list[int]]:
    """Token ids of the texts that everything is judged on, BOS first."""
    from qlab.evaluate.perplexity import cut

    texts = story().validation()[:TEXTS]
    return [window.ids for text in texts for window in cut(story().tokenizer, text, CONTEXT)]


def calibration() -> list[Any]:
    """int64 (1, length) each, BOS first: what every tool calibrates with."""
    return list(story().calibration()[:CALIBRATION])


def perplexity(model: Any) -> float:
    """Of a model of transformers, over ``judged``."""
    import torch

    nll, count = 0.0, 0
    with torch.no_grad():
        for ids in judged():
            logs = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            nll -= float(logs[torch.arange(len(logs)), torch.tensor(ids[1:])].sum())
            count += len(logs)
    return math.exp(nll / count)


def ours(name: str) -> Any:
    """A model of qlab's by its name in ``OURS`` or ``GGUF``, or the storyteller itself."""
    import qlab
    from qlab.methods import get_method

    if name == "float32":
        return story().model
    if name in GGUF:
        from qlab.gguf.convert import to_gguf
        from qlab.gguf.imatrix import compute_imatrix

        mix, importance = GGUF[name]
        matrix = compute_imatrix(story().model, calibration()) if importance else None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            to_gguf(story().model, story().tokenizer, file, mix, matrix)
            return qlab.load(file).model
    method, scheme, activations, options = OURS[name]
    data = calibration() if get_method(method).needs_calibration else None
    return qlab.quantize_model(
        story().model,
        method,
        scheme,
        data,
        activations=activations,
        options=get_method(method).options(**options),
    )[0]


def with_weights(file: Path) -> Any:
    """The storyteller with a tool's dequantized weights in place of its own."""
    from safetensors.torch import load_file

    from qlab.nn import linear_layers

    model, weights = copy.deepcopy(story().model), load_file(file)
    layers = dict(linear_layers(model))
    norms = {name: weights.pop(name) for name in list(weights) if name.endswith("norm.weight")}
    model.load_state_dict(norms, strict=False)  # of tools that fold scales into them
    if set(layers) != set(weights):
        raise ValueError(f"other layers than ours: {sorted(set(layers) ^ set(weights))[:3]}")
    for name, layer in layers.items():
        layer.weight.data = weights[name].reshape(layer.weight.shape)
    return model


def make_source(folder: Path) -> None:
    """What the scripts read, unless it is there for these weights."""
    stamp = folder / "weights.txt"
    if stamp.exists() and stamp.read_text() == weights_hash():
        return
    import numpy as np

    from qlab.export.onnx import save_onnx
    from qlab.gguf.convert import to_gguf
    from qlab.gguf.imatrix import compute_imatrix

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    story().model.save_pretrained(folder / "model")
    story().tokenizer.save_pretrained(folder / "model")
    (folder / "calibration.json").write_text(json.dumps([ids[0].tolist() for ids in calibration()]))
    (folder / "texts.json").write_text(json.dumps(judged()))
    to_gguf(story().model, story().tokenizer, folder / "story-f32.gguf")
    np.savez(folder / "imatrix.npz", **dict(compute_imatrix(story().model, calibration())))
    save_onnx(story().model, folder / "story.onnx")
    stamp.write_text(weights_hash())


def run(tool: str, source: Path, envs: Path) -> dict[str, Any]:
    """One tool: {"rows": ..., "error": ...}."""
    from tools.toolbox.environments import create

    about = TOOLS[tool]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            python = create(about.environment, envs) if about.environment else Path(sys.executable)
        except subprocess.CalledProcessError as error:
            return {"rows": {}, "error": f"its environment could not be made: {error}"}
        variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **about.variables}
        try:
            done = subprocess.run(
                [str(python), str(SCRIPTS / about.script), str(source), str(out)],
                env={**os.environ, **variables},
                cwd=out,
                capture_output=True,
                text=True,
                check=False,
                timeout=about.timeout,
            )
            said, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            said, code = "", -1
        error = None
        if code:
            file = out / "error.json"
            if file.exists():
                error = json.loads(file.read_text())["error"].replace(str(ROOT) + "/", "")
            else:
                error = f"exit code {code}" if code != -1 else f"longer than {about.timeout} s"
            print(said[-3000:], file=sys.stderr)
        rows = {}
        file = out / "rows.json"
        for row in json.loads(file.read_text()) if file.exists() else []:
            name, weights = row.pop("row"), row.pop("weights", None)
            if weights:
                row["judged"] = "dequantized weights"
                row["perplexity"] = perplexity(with_weights(Path(weights)))
            else:
                count = sum(len(ids) - 1 for ids in json.loads((source / "texts.json").read_text()))
                row["judged"] = "own forward"
                row["perplexity"] = math.exp(row.pop("nll") / count)
            rows[name] = row
            print(f"{name}: {row['perplexity']:.3f}, {row['seconds']} s", flush=True)
    return {"rows": rows, "error": error}


def read() -> dict[str, Any]:
    """The record; empty if there is none, or it is of other weights."""
    if RECORD.exists():
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
        if found["weights"] == weights_hash() and "specs" in found:
            return found
    return {
        "made_by": "tools/record_tools.py",
        "weights": weights_hash(),
        "texts": TEXTS,
        "calibration": CALIBRATION,
        "tools": {},
        "ours": {},
        "specs": {},
    }


def not_yet(tool: str) -> dict[str, Any]:
    """The entry of a tool that has not been run: its script and what the chapters show of it."""
    return {
        "script": script_hash(tool),
        "code": shown(tool),
        "date": datetime.date.today().isoformat(),
        "status": NOT_YET,
        "rows": {},
        "error": None,
    }


def put(
    tool: str | None = None, entry: Any = None, figure: tuple[str, float] | None = None
) -> None:
    """Put one entry, or one of qlab's figures, into the record as it is now on the disk.

    Two processes may so fill it together. Every tool is in its place, each row with what it stands
    beside.
    """
    record = read()
    known = record["tools"]
    if tool is not None:
        known[tool] = entry
    if figure is not None:
        name, value = figure
        record["ours"][name], record["specs"][name] = value, spec(name)
    for one in TOOLS:
        old = known.get(one)
        if old is None or (old["status"] == NOT_YET and old["script"] != script_hash(one)):
            known[one] = not_yet(one)
    record["tools"] = {one: known[one] for one in TOOLS}
    for found in record["tools"].values():
        for name, row in found["rows"].items():
            if name in ROWS:
                row |= {k: v for k, v in asdict(ROWS[name]).items() if k != "tool"}
    part = RECORD.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(RECORD)


def spec(name: str) -> str:
    """What a name of ``OURS`` or ``GGUF`` stands for, so that a change of it is noticed."""
    return json.dumps(OURS.get(name) or GGUF.get(name) or name)


def is_recorded(record: dict[str, Any], tool: str) -> bool:
    """Whether the record has this tool by this very script, without an error."""
    known = record["tools"].get(tool)
    return bool(known and known["script"] == script_hash(tool) and known["status"] == "run")


def record_ours(tools: Collection[str]) -> None:
    """qlab's own figures beside those of some tools: the ones that are missing."""
    for name in sorted({"float32"} | {row.ours for row in ROWS.values() if row.tool in tools}):
        if read()["specs"].get(name) != spec(name):
            found = perplexity(ours(name))
            print(f"qlab {name}: {found:.3f}", flush=True)
            put(figure=(name, found))


def main(progress: Callable[[str], None] = print) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--envs", type=Path, default=ROOT / "_build" / "envs")
    parser.add_argument("--source", type=Path, default=ROOT / "_build" / "toolbox")
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--ours", action="store_true", help="qlab's own figures alone")
    parser.add_argument("--list", action="store_true", help="list the tools and what is known")
    args = parser.parse_args()
    unknown = set(args.tools) - set(TOOLS)
    if unknown:
        parser.error(f"unknown tool {', '.join(sorted(unknown))}: there are {', '.join(TOOLS)}")
    if args.list:
        for tool in TOOLS:
            known = read()["tools"].get(tool, {})
            progress(f"{tool:15} {known.get('error') or known.get('status', 'not recorded')}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.ours:
        put()
        record_ours(args.tools or list(TOOLS))
        return
    make_source(args.source)
    for tool in args.tools or TOOLS:
        if is_recorded(read(), tool) and not args.again:
            continue
        entry = not_yet(tool)
        if not TOOLS[tool].gpu or has_gpu():
            found = run(tool, args.source.resolve(), args.envs.resolve())
            entry |= {"status": "refused" if found["error"] else "run", **found}
        put(tool, entry)
        progress(f"{tool}: {entry['error'] or entry['status']}")
    record_ours(args.tools or list(TOOLS))


def has_gpu() -> bool:
    """Whether torch sees an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
