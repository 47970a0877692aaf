"""TensorRT-LLM: FP8 and INT4-AWQ checkpoints, served by its LLM class. Needs an NVIDIA GPU.

pip install tensorrt-llm            # Linux, CUDA; inside NVIDIA's container it is there
"""

from __future__ import annotations

from shared import Run, main


def quantize(source, out, calibration):
    # [shown]
    import copy

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float16).cuda()

    def forward_loop(model):
        for ids in calibration:
            model(input_ids=torch.tensor([ids], device="cuda"))

    config = copy.deepcopy(mtq.FP8_DEFAULT_CFG)  # or mtq.INT4_AWQ_CFG, mtq.NVFP4_DEFAULT_CFG
    model = mtq.quantize(model, config, forward_loop)
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=str(out))
    AutoTokenizer.from_pretrained(str(source)).save_pretrained(out)
    # [end]


def run_engine(folder, prompts):
    # [shown]
    from tensorrt_llm import LLM, SamplingParams

    llm = LLM(model=str(folder))
    params = SamplingParams(max_tokens=32, temperature=0.0)
    texts = [answer.outputs[0].text for answer in llm.generate(prompts, params)]
    # [end]
    return texts


def steps(run: Run) -> None:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("needs an NVIDIA GPU")
    folder = run.out / "fp8"
    quantize(run.model, folder, run.calibration)
    print(run_engine(folder, ["Once upon a time"]))


if __name__ == "__main__":
    main(steps)
