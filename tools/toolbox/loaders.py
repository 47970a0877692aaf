"""Let an engine try every file of a folder: ``loaders.py ENGINE FOLDER OUT.json``.

It runs in the environment of the engine (tools/record_who_loads.py). What each says of a file is
written down before the next is tried, so a file that ends the whole process is known by its mark.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Logits = Callable[[list[int]], Any]  # token ids -> (length, vocabulary)


def of_torch(model: Any) -> Logits:
    """The logits of a model that is called as those of transformers are."""
    import torch

    def logits_of(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].float().numpy()

    return logits_of


def with_transformers(path: Path) -> Logits:
    """transformers, with the book's own packages beside it."""
    import torch
    from transformers import AutoModelForCausalLM

    if path.suffix == ".gguf":
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cpu")
    return of_torch(model.eval())


def with_gptqmodel(path: Path) -> Logits:
    """GPTQModel's own loader, its kernel of plain PyTorch."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    config = path / "config.json"
    about = json.loads(config.read_text()).get("quantization_config", {}) if path.is_dir() else {}
    awq = about.get("quant_method") == "awq"
    backend = BACKEND.AWQ_TORCH if awq and hasattr(BACKEND, "AWQ_TORCH") else BACKEND.GPTQ_TORCH
    loaded = GPTQModel.load(str(path), device="cpu", backend=backend, dtype=torch.float16)
    return of_torch(loaded.model)


def with_vllm(path: Path) -> float:
    """vLLM on the CPU: it gives losses, no logits."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    about = ""
    if (path / "config.json").is_file():
        about = json.loads((path / "config.json").read_text()).get("quantization_config")
    inputs = "input_activations" in str(about) and "'input_activations': None" not in str(about)
    dtype = "float32" if not about else "bfloat16" if inputs else "float16"
    llm = vllm.LLM(str(path), dtype=dtype, max_model_len=512, enforce_eager=True)
    params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    rows = [ids[:511] for ids in TEXTS]
    found = llm.generate([{"prompt_token_ids": row} for row in rows], params)
    nll = 0.0
    for row, answer in zip(rows, found, strict=True):
        for token, logprobs in zip(row[1:], answer.prompt_logprobs[1:], strict=True):
            nll -= logprobs[token].logprob
    return nll


def with_llama_cpp(path: Path) -> Logits:
    """llama.cpp through llama-cpp-python."""
    import llama_cpp
    import numpy as np
    from by_llamacpp import without_copies

    if not path.is_file():
        raise ValueError("takes a GGUF file, not a folder")
    without_copies()
    model = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=512, n_threads=1, logits_all=True, verbose=False
    )

    def logits_of(ids: list[int]) -> Any:
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    return logits_of


def with_onnxruntime(path: Path) -> Logits:
    """ONNX Runtime, the CPU provider."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]


def with_openvino(path: Path) -> Logits:
    """OpenVINO on the CPU, in float32, inputs as they are."""
    import numpy as np
    import openvino as ov

    core = ov.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", exact)
    return lambda ids: compiled(np.array([ids], np.int64))[0][0]


def with_ctranslate2(path: Path) -> float:
    """CTranslate2: converted, then scored by its generator; float32 arithmetic."""
    import ctranslate2
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "converted"
        ctranslate2.converters.TransformersConverter(str(path)).convert(str(out))
        generator = ctranslate2.Generator(str(out), device="cpu")
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in TEXTS]
        return -sum(sum(one.log_probs) for one in generator.score_batch(tokens))


def with_qlab(path: Path) -> Logits:
    """qlab's compiled engine on what qlab.load reads."""
    import qlab

    return qlab.engine.load(path, exact=True).logits


ENGINES: dict[str, Callable[[Path], Any]] = {
    "transformers": with_transformers,
    "gptqmodel": with_gptqmodel,
    "vLLM": with_vllm,
    "llama.cpp": with_llama_cpp,
    "ONNX Runtime": with_onnxruntime,
    "OpenVINO": with_openvino,
    "ctranslate2": with_ctranslate2,
    "qlab engine": with_qlab,
}
TEXTS: list[list[int]] = []


def first_line(error: BaseException, path: Path) -> str:
    """What an error says, in one line without folders of this machine."""
    said = str(error).replace(str(path), "FILE").replace(str(path.parent), "")
    said = said.replace(path.name, "FILE") if path.suffix else said
    lines = [line.strip() for line in said.splitlines() if line.strip(" =-*")]
    # OpenVINO begins with where in its source it happened.
    lines = [line for line in lines if not line.startswith("Exception from ")] or lines
    # Pydantic, in vLLM, begins with how many errors there are.
    lines = [line for line in lines if " validation error for " not in line] or lines
    text = lines[0].split(" [type=")[0] if lines else "no message"
    return f"{type(error).__name__}: {text[:160]}"


def nll_of(found: Logits | float) -> float:
    """Sum of -log p(next token) over ``TEXTS``."""
    import numpy as np

    if isinstance(found, float):
        return found
    total = 0.0
    for ids in TEXTS:
        scores = np.asarray(found(ids), np.float64)[:-1]
        scores -= scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        total -= float(logs[np.arange(len(logs)), ids[1:]].sum())
    return total


def main() -> None:
    """Try all files that OUT does not know yet."""
    engine, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    TEXTS.extend(json.loads((folder / "texts.json").read_text()))
    count = sum(len(ids) - 1 for ids in TEXTS)
    files = json.loads((folder / "files.json").read_text())
    known = json.loads(out.read_text()) if out.exists() else {}
    for name, where in files.items():
        if name in known:
            continue
        known[name] = {"refused": "the process ended without a word"}
        out.write_text(json.dumps(known))
        path = folder / where
        try:
            perplexity = math.exp(nll_of(ENGINES[engine](path)) / count)
            if math.isfinite(perplexity):
                known[name] = {"perplexity": perplexity}
            else:
                known[name] = {"refused": f"its perplexity is {perplexity}"}
        except Exception as error:
            known[name] = {"refused": first_line(error, path)}
        out.write_text(json.dumps(known))
        print(engine, name, known[name], flush=True)


if __name__ == "__main__":
    main()
