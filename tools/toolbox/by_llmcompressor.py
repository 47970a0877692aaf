"""llm-compressor: W4A16 by GPTQ, W8A8 by SmoothQuant and GPTQ, as folders of compressed-tensors."""

from __future__ import annotations

from shared import Run, main, tensors_in


def quantize(source, out, calibration, recipe):
    # [shown]
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in calibration]
    oneshot(
        model=model,
        recipe=recipe,
        dataset=Dataset.from_list(rows),
        num_calibration_samples=len(rows),
        max_seq_length=512,
        shuffle_calibration_samples=False,
    )
    # [end]
    return model


def w4a16():
    # [shown]
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    # [end]


def w8a8():
    # [shown]
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return [
        SmoothQuantModifier(smoothing_strength=0.5),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]
    # [end]


def steps(run: Run) -> None:
    for name, recipe in (("W4A16", w4a16()), ("W8A8", w8a8())):
        model = quantize(run.model, run.out / name, run.calibration, recipe)
        nll = run.torch_nll(model)  # before saving: that packs the codes
        model.save_pretrained(run.out / name, save_compressed=True)
        files = tensors_in(run.out / name)
        run.row(f"llm-compressor {name}", "llmcompressor", files, nll=nll)


if __name__ == "__main__":
    main(steps)
