"""AutoAWQ: AWQ in four bits with a zero point, groups of 128. The project is archived."""

from __future__ import annotations

from shared import Run, main, tensors_in


def quantize(source, out, calibration):
    # [shown]
    import torch
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    torch.nn.Module.state_dict = copied(torch.nn.Module.state_dict)  # on a CPU only: see the text
    model = AutoAWQForCausalLM.from_pretrained(str(source), device_map="cpu", torch_dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    config = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    model.quantize(
        tokenizer,
        quant_config=config,
        calib_data=calibration,  # token ids, or texts
        max_calib_samples=len(calibration),
        max_calib_seq_len=512,  # longer samples are dropped
    )
    model.save_quantized(str(out))
    # [end]


def copied(state_dict):
    """It tries scales on the weights, and puts back what ``state_dict()`` said. On a CPU those are
    the very tensors that it changed."""

    def plain(self, *args, **kwargs):
        found = state_dict(self, *args, **kwargs)
        for key in list(found):
            found[key] = found[key].clone()
        return found

    return plain


def layers(folder):
    """(name, dequantized weight) of the folder that it wrote, by its own unpacking; the norms."""
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    tensors = {}
    for file in tensors_in(folder):
        tensors.update(load_file(file))
    for key in [k for k in tensors if k.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        parts = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        qweight, qzeros, scales = parts
        yield name, dequantize_gemm(qweight, qzeros, scales.float(), 4, 128).T
    for key in [k for k in tensors if k.endswith("norm.weight")]:
        yield key, tensors[key]  # AWQ divides them by the scales that the layers behind them take


def steps(run: Run) -> None:
    folder = run.out / "int4-asym-g128"
    quantize(run.model, folder, run.calibration)
    weights = run.weights("int4-asym-g128", layers(folder))
    run.row("autoawq int4-asym-g128", "autoawq", tensors_in(folder), weights=weights)


if __name__ == "__main__":
    main(steps)
