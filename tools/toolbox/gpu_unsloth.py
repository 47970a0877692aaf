"""Unsloth: QLoRA with its own kernels on a 4-bit model. Needs an NVIDIA GPU.

pip install unsloth
"""

from __future__ import annotations

from shared import Run, main


def fine_tune(source, texts, out):
    # [shown]
    from unsloth import FastLanguageModel  # first: it patches transformers and trl

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(source), max_seq_length=512, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        args=SFTConfig(max_steps=30, per_device_train_batch_size=2, output_dir=str(out)),
    )
    trainer.train()
    model.save_pretrained_gguf(str(out / "gguf"), tokenizer, quantization_method="q4_k_m")
    # [end]


def steps(run: Run) -> None:
    import torch
    from transformers import AutoTokenizer

    if not torch.cuda.is_available():
        raise RuntimeError("needs an NVIDIA GPU")
    tokenizer = AutoTokenizer.from_pretrained(str(run.model))
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in run.calibration]
    fine_tune(run.model, texts, run.out)


if __name__ == "__main__":
    main(steps)
