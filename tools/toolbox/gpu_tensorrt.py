"""TensorRT: an engine from the ONNX file, in float16, run once. Needs an NVIDIA GPU.

pip install tensorrt
"""

from __future__ import annotations

from shared import Run, main


def build(onnx, out):
    # [shown]
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()  # shapes that the engine must be ready for
    profile.set_shape("input_ids", (1, 1), (1, 256), (1, 512))
    config.add_optimization_profile(profile)
    out.write_bytes(builder.build_serialized_network(network, config))
    # [end]


def scorer(file):
    # [shown]
    import tensorrt as trt
    import torch

    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(file.read_bytes())
    context = engine.create_execution_context()

    def logits_of(ids):
        tokens = torch.tensor([ids], device="cuda")
        context.set_input_shape("input_ids", tuple(tokens.shape))
        logits = torch.empty(tuple(context.get_tensor_shape("logits")), device="cuda")
        context.set_tensor_address("input_ids", tokens.data_ptr())
        context.set_tensor_address("logits", logits.data_ptr())
        stream = torch.cuda.current_stream()
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return logits[0].cpu().numpy()

    # [end]
    return logits_of


def steps(run: Run) -> None:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("needs an NVIDIA GPU")
    file = run.out / "story.engine"
    build(run.source / "story.onnx", file)
    run.row("tensorrt float32", "tensorrt", [file], nll=run.nll(scorer(file)))


if __name__ == "__main__":
    main(steps)
