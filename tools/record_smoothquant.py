"""Record what llm-compressor's SmoothQuant computes, for tests/parity/test_smoothquant.py.

Its requirements conflict with this project's, so it runs in an environment of its own:

    python -m venv llmcompressor-env
    llmcompressor-env/bin/pip install llmcompressor==0.14.0.1
    llmcompressor-env/bin/python tools/record_smoothquant.py

Writes tests/parity/data/smoothquant.json: scales of statistics drawn by NumPy, and the norms of
a small Llama before and after the whole modifier. The test draws the same numbers again.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "tests" / "parity" / "data" / "smoothquant.json"
ALPHAS = (0.0, 0.25, 0.5, 0.8, 1.0)
FEATURES = 48


def statistics(kind):
    """Activation ranges (features,) and two weights (7 and 5, features), float32, by NumPy.

    Both sides import or repeat this: the record holds results only.
    """
    rng = np.random.default_rng(sum(kind.encode()))
    ranges = np.abs(rng.standard_normal(FEATURES)).astype(np.float32) + np.float32(0.1)
    weights = [rng.standard_normal((n, FEATURES)).astype(np.float32) * 0.02 for n in (7, 5)]
    if kind == "outlier":
        ranges[[3, 17]] *= np.float32(500)
        weights[0][2, 17] = 4.0
    elif kind == "tiny":
        ranges *= np.float32(1e-12)
        weights = [w * np.float32(1e-12) for w in weights]
    elif kind == "huge":
        ranges *= np.float32(1e12)
    elif kind == "constant":
        ranges[:] = 2.0
        weights = [np.full_like(w, -0.5) for w in weights]
    return ranges, weights


def small_llama():
    """A Llama of two blocks with every number from NumPy, and token ids int64 (1, 24)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = rng.standard_normal(tuple(parameter.shape)) * 0.15
            if name.endswith("norm.weight"):
                drawn = np.exp(4 * drawn)
            parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))
    return model, torch.from_numpy(rng.integers(0, 64, (1, 24)))


def norms(model):
    """name -> weight of the norms in the blocks, as lists."""
    return {
        name: parameter.detach().tolist()
        for name, parameter in model.named_parameters()
        if ".layers." in name and name.endswith("norm.weight")
    }


def main():
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.smoothquant.utils import DEFAULT_SMOOTHQUANT_MAPPINGS

    record = {
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("llmcompressor", "torch", "transformers")
        },
        "scales": {},
        "norms": {},
    }
    for kind in ("normal", "outlier", "tiny", "huge", "constant"):
        ranges, weights = statistics(kind)
        layers = []
        for w in weights:
            layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
            layer.weight = torch.nn.Parameter(torch.from_numpy(w), requires_grad=False)
            layers.append(layer)
        for alpha in ALPHAS:
            modifier = SmoothQuantModifier(smoothing_strength=alpha)
            scales = modifier._calculate_smoothing_scales(layers, torch.from_numpy(ranges))
            record["scales"][f"{kind} {alpha}"] = scales.tolist()
    for alpha in (0.5, 0.8):
        model, ids = small_llama()
        modifier = SmoothQuantModifier(smoothing_strength=alpha)
        modifier.mappings = DEFAULT_SMOOTHQUANT_MAPPINGS
        modifier.ignore = []
        modifier.resolved_mappings_ = modifier._resolve_mappings(model)
        modifier.scales_ = {}
        modifier._setup_scale_hooks()
        with torch.no_grad():
            model(ids)
        modifier.remove_hooks()
        modifier._apply_smoothing(model)
        record["norms"][str(alpha)] = norms(model)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
