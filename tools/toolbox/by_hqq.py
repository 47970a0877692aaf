"""HQQ: half-quadratic quantization, four bits, groups of 64, no data."""

from __future__ import annotations

from shared import Run, main, tensors_in


def quantize(source, out):
    # [shown]
    import torch
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float32, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(out))
    # [end]
    return model


def steps(run: Run) -> None:
    folder = run.out / "int4-g64"
    model = quantize(run.model, folder)
    files = tensors_in(folder) or sorted(folder.glob("*.pt"))
    run.row("hqq int4-g64", "hqq", files, nll=run.torch_nll(model))


if __name__ == "__main__":
    main(steps)
