"""AutoRound: rounding learned by signed gradient descent, four bits, groups of 128."""

from __future__ import annotations

from shared import Run, main, tensors_in

ITERS = 20  # it comes with 200; each passes calibration rows through a block and back


def quantize(source, out, calibration):
    # [shown]
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    rows = [{"input_ids": torch.tensor([ids[:192]])} for ids in calibration]
    rounding = AutoRound(
        model, tokenizer, scheme="W4A16", iters=ITERS, dataset=rows, nsamples=len(rows), seqlen=192
    )
    rounding.quantize_and_save(str(out), format="auto_gptq")
    # [end]


def layers(folder):
    """(name, dequantized weight) of the folder that it wrote in GPTQ's layout."""
    import torch
    from safetensors.torch import load_file

    tensors = {}
    for file in tensors_in(folder):
        tensors.update(load_file(file))
    shifts = torch.arange(0, 32, 4)
    for key in [k for k in tensors if k.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        packed, zeros, scales = (tensors[f"{name}.{p}"] for p in ("qweight", "qzeros", "scales"))
        codes = ((packed[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, packed.shape[1])
        zero = ((zeros[:, :, None] >> shifts) & 15).reshape(zeros.shape[0], -1) + 1
        group = torch.arange(len(codes)) // (len(codes) // len(scales))
        yield name, ((codes - zero[group]) * scales.float()[group]).T


def steps(run: Run) -> None:
    folder = run.out / "int4-g128"
    quantize(run.model, folder, run.calibration)
    files = sorted(folder.rglob("*.safetensors"))
    weights = run.weights("int4-g128", layers(files[0].parent))
    run.row("auto-round W4A16", "auto-round", files, weights=weights)


if __name__ == "__main__":
    main(steps)
