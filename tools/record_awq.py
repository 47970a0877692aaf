"""Record what autoawq computes on small matrices and a small Llama, for tests/parity/test_awq.py.

autoawq is archived; its last version asks for versions of torch and transformers that are years
old, but runs on today's when installed without its requirements:

    python -m venv awq-env
    awq-env/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate datasets tokenizers
    awq-env/bin/pip install --no-deps autoawq==0.2.9
    awq-env/bin/python tools/record_awq.py

Writes tests/parity/data/awq.npz: what ``pseudo_quantize_tensor`` makes of matrices, the losses of
each ratio and the scales that win, the clipping limits, and the weights at the end. Inputs are
drawn by NumPy, and the test draws them again.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parents[1] / "tests" / "parity" / "data" / "awq.npz"
KINDS = (
    "normal",
    "wide",
    "zeros",
    "an outlier",
    "half zeros",
    "huge",
    "small",
    "one sign",
    "constant",
    "denormal",
)
# bits, group size (-1: a row), with a zero point
PSEUDO = (
    (4, 32, True),
    (3, 32, True),
    (8, 16, True),
    (4, -1, True),
    (4, 32, False),
    (3, 64, False),
)
CLIPPED = ("normal", "wide", "an outlier", "half zeros")
# bits, both statistics
MODELS = ((4, False), (3, False), (3, True))
GROUP = 32


def matrix(kind, rows=6):
    """float32 (rows, 64), by NumPy."""
    rng = np.random.default_rng(sum(kind.encode()))
    w = rng.standard_normal((rows, 64)).astype(np.float32) * np.float32(0.05)
    if kind == "wide":
        w = w * np.exp(2 * rng.standard_normal((rows, 64))).astype(np.float32)
    elif kind == "zeros":
        w[:] = 0
    elif kind == "an outlier":
        w[2, 5] = 9.0
    elif kind == "half zeros":
        w[:, ::2] = 0
    elif kind == "huge":
        w *= np.float32(1e30)
    elif kind == "small":
        w *= np.float32(1e-3)
    elif kind == "one sign":
        w = np.abs(w) + np.float32(0.5)
    elif kind == "constant":
        w[:] = 0.25
    elif kind == "denormal":
        w *= np.float32(1e-40 / 0.05)
    return w


def inputs(tokens=96):
    """Inputs (tokens, 64) for the clipping limits, some features larger than others."""
    rng = np.random.default_rng(5)
    return (rng.standard_normal((tokens, 64)) * np.exp(rng.standard_normal(64))).astype(np.float32)


def lesson():
    """The layer of the chapter: weight (16, 64) and inputs (40, 64), float32, by NumPy."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((16, 64)), rng.standard_normal((40, 64))
    return w.astype(np.float32), (x * np.exp(rng.standard_normal(64))).astype(np.float32)


def run_lesson():
    """A layer that is its own judge, 3 bits in groups of 32: name -> array."""
    w, x = (torch.from_numpy(a) for a in lesson())
    layer = torch.nn.Linear(64, 16, bias=False)
    layer.weight.data = w.clone()
    own_state(layer)
    one = quantizer(3, GROUP, True)
    losses = []
    one._compute_loss = lambda *args: (
        losses.append(type(one)._compute_loss(one, *args)) or losses[-1]
    )
    module = torch.nn.ModuleDict({"layer": layer})
    scales = one._search_best_scale(module, layer, [layer], x[None])[2]
    return {"lesson losses": np.array(losses), "lesson scales": scales.numpy()}


def small_llama():
    """A Llama of two blocks with every number from NumPy, and token ids int64 (4, 24).

    Some features of each norm are large, so that there is something to scale.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=80,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    rng = np.random.default_rng(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = rng.standard_normal(tuple(parameter.shape)) * 0.12
            if name.endswith("norm.weight"):
                drawn = np.exp(8 * drawn)
            parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))
    return model, torch.from_numpy(rng.integers(0, 80, (4, 24)))


def quantizer(bits, group_size, zero_point, duo=False):
    """An AwqQuantizer without a model: only what the functions used here read."""
    from awq.quantize.quantizer import AwqQuantizer

    one = AwqQuantizer.__new__(AwqQuantizer)
    one.w_bit, one.group_size, one.zero_point, one.duo_scaling = bits, group_size, zero_point, duo
    one.n_parallel_calib_samples, one.max_chunk_memory = None, 1024**3
    return one


def run_model(bits, duo, weights):
    """Scale, clip and round the small Llama as ``AwqQuantizer.quantize`` does: name -> array.

    ``weights``: keep those at the end too.
    """
    from awq.models.llama import LlamaAWQForCausalLM
    from awq.quantize.scale import apply_clip, apply_scale
    from awq.utils.module import get_named_linears

    model, ids = small_llama()
    one = quantizer(bits, GROUP, True, duo)
    found = {}
    # As theirs: a block's inputs are what the blocks before it made while they were whole.
    observed = [observe(model, index, ids) for index in range(len(model.model.layers))]
    for index, block in enumerate(model.model.layers):
        features, arguments = observed[index]
        losses = []
        one._compute_loss = lambda *args, losses=losses: (
            losses.append(type(one)._compute_loss(one, *args)) or losses[-1]
        )
        groups = LlamaAWQForCausalLM.get_layers_for_scaling(block, features, arguments)
        scales = []
        for group in groups:
            losses.clear()
            own_state(group.get("module2inspect") or group["layers"][0])
            scales.append(one._search_best_scale(block, **group))
            name = f"{index}.{scales[-1][1][0]}"
            found[f"{name}.losses"] = np.array(losses)
            found[f"{name}.scales"] = scales[-1][2].numpy()
        apply_scale(block, scales, input_feat_dict=features)
        linears = get_named_linears(block)
        limits = one._search_best_clip(block, linears, features)
        apply_clip(block, limits)
        for name, limit in limits:
            found[f"{index}.{name}.limits"] = limit.squeeze(-1).numpy()
    for name, layer in get_named_linears(model.model.layers).items() if weights else ():
        found[f"{name}.weight"] = one.pseudo_quantize_tensor(layer.weight.data)[0].numpy()
    return found


def own_state(module):
    """Let ``module.state_dict()`` return copies.

    autoawq keeps the weights as ``v.cpu()`` while it tries scales. On a GPU that is a copy; on a
    CPU it is the tensor itself, which the first try then multiplies for good. (Without both
    statistics the first scales are all 1 and nothing happens.)
    """
    plain = type(module).state_dict
    module.state_dict = lambda: {k: v.clone() for k, v in plain(module).items()}


def observe(model, index, ids):
    """What flows into each linear layer of a block: name -> (samples, tokens, features), and the
    block's other arguments."""
    features, arguments = {}, {}
    block = model.model.layers[index]

    def note(name):
        return lambda module, args: features.update({name: args[0].detach().clone()})

    hooks = [
        layer.register_forward_pre_hook(note(name))
        for name, layer in block.named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    hooks.append(
        block.register_forward_pre_hook(
            lambda module, args, kwargs: arguments.update(kwargs), with_kwargs=True
        )
    )
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return features, arguments


def main():
    logging.disable(logging.WARNING)
    versions = {n: importlib.metadata.version(n) for n in ("autoawq", "torch", "transformers")}
    found = {"versions": np.array(json.dumps(versions))}
    for kind in KINDS:
        for bits, group_size, zero_point in PSEUDO:
            one = quantizer(bits, group_size, zero_point)
            w, scales, _ = one.pseudo_quantize_tensor(torch.from_numpy(matrix(kind)))
            name = f"pseudo {kind} {bits} {group_size} {zero_point}"
            found[name], found[f"{name} scales"] = w.numpy(), scales.numpy()
    for kind in CLIPPED:
        for bits in (4, 3):
            one = quantizer(bits, GROUP, True)
            w, x = torch.from_numpy(matrix(kind, 64)), torch.from_numpy(inputs())
            found[f"clip {kind} {bits}"] = one._compute_best_clip(w, x).squeeze(-1).numpy()
    found.update(run_lesson())
    for bits, duo in MODELS:
        run = run_model(bits, duo, weights=(bits, duo) == MODELS[0])
        found.update({f"model {bits} {duo} {name}": value for name, value in run.items()})
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **found)


if __name__ == "__main__":
    main()
