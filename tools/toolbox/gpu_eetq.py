"""EETQ: weights of eight bits a row, by NVIDIA's kernels for mixed inputs. Needs an NVIDIA GPU.

git clone https://github.com/NetEase-FuXi/EETQ && pip install ./EETQ    # compiles
"""

from __future__ import annotations

from shared import Run, main


def quantize(source):
    # [shown]
    import torch
    from transformers import AutoModelForCausalLM, EetqConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(source),
        dtype=torch.float16,
        device_map="cuda",
        quantization_config=EetqConfig("int8"),
    )
    # [end]
    return model


def steps(run: Run) -> None:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("needs an NVIDIA GPU")
    model = quantize(run.model)

    def logits_of(ids):
        with torch.no_grad():
            return model(torch.tensor([ids], device="cuda")).logits[0].float().cpu().numpy()

    run.row("eetq int8", "eetq", [], nll=run.nll(logits_of))


if __name__ == "__main__":
    main(steps)
