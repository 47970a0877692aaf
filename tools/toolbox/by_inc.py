"""Intel Neural Compressor: weight-only round to nearest and GPTQ, four bits, groups of 128."""

from __future__ import annotations

from shared import Run, main


def quantize(source, calibration, config):
    # [shown]
    import torch
    from neural_compressor.torch.quantization import convert, prepare
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    model = prepare(model, config)
    for ids in calibration:  # GPTQ looks at these; round to nearest needs none
        model(input_ids=torch.tensor([ids]))
    model = convert(model)
    # [end]
    return model


def configs():
    # [shown]
    from neural_compressor.torch.quantization import GPTQConfig, RTNConfig

    same = {"bits": 4, "group_size": 128, "use_sym": True}
    rtn = RTNConfig(**same, use_layer_wise=False)  # lm_head stays as it is in both
    gptq = GPTQConfig(**same)
    # [end]
    return {"rtn": rtn, "gptq": gptq}


def steps(run: Run) -> None:
    import torch

    for name, config in configs().items():
        model = quantize(run.model, run.calibration if name == "gptq" else [], config)
        file = run.out / f"{name}.pt"
        torch.save(model.state_dict(), file)
        run.row(f"inc {name}", "neural-compressor-pt", [file], nll=run.torch_nll(model))


if __name__ == "__main__":
    main(steps)
