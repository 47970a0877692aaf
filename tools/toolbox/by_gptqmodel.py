"""GPTQModel: GPTQ in four bits, groups of 128, written as a folder and read back."""

from __future__ import annotations

from shared import Run, main, tensors_in


def quantize(source, out, calibration):
    # [shown]
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=False)
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float32)
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in calibration]
    model.quantize(samples, batch_size=1)
    model.save(str(out))  # config.json says quant_method "gptq"
    # [end]


def layers(folder):
    """(name, dequantized weight) by its own reader."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(
        str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    for name, layer in loaded.model.named_modules():
        if hasattr(layer, "dequantize_weight"):
            layer.scales = layer.scales.float()  # the product of code and scale is not rounded
            yield name, layer.dequantize_weight().T


def steps(run: Run) -> None:
    folder = run.out / "int4-g128"
    quantize(run.model, folder, run.calibration)
    weights = run.weights("int4-g128", layers(folder))
    run.row("gptqmodel int4-g128", "gptqmodel", tensors_in(folder), weights=weights)


if __name__ == "__main__":
    main(steps)
