"""optimum-quanto: weights of eight and four bits, no data."""

from __future__ import annotations

from shared import Run, main, tensors_in


def quantize(source, out, weights):
    # [shown]
    import torch
    from optimum.quanto import freeze, quantize
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    quantize(model, weights=weights, exclude="lm_head")  # weights: qint8, qint4, qfloat8 ...
    freeze(model)  # until here the layers round at every call and can still be trained
    # [end]
    out.mkdir(parents=True)
    kept = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file({k: v.contiguous().clone() for k, v in kept.items()}, out / "model.safetensors")
    return model


def steps(run: Run) -> None:
    from optimum.quanto import qint4, qint8

    for name, weights in (("qint8", qint8), ("qint4", qint4)):
        model = quantize(run.model, run.out / name, weights)
        files = tensors_in(run.out / name)
        run.row(f"quanto {name}", "optimum-quanto", files, nll=run.torch_nll(model))


if __name__ == "__main__":
    main(steps)
