"""OpenVINO with NNCF: weights of eight and four bits inside a graph that a CPU runs."""

from __future__ import annotations

from shared import Run, main


def quantize(onnx, out, mode, **more):
    # [shown]
    import nncf
    import openvino as ov

    model = ov.convert_model(str(onnx))  # or the PyTorch model itself, with example_input=
    model = nncf.compress_weights(model, mode=mode, **more)
    ov.save_model(model, str(out), compress_to_fp16=False)
    # [end]


def scorer(file, **settings):
    # [shown]
    import numpy as np
    import openvino as ov

    compiled = ov.Core().compile_model(str(file), "CPU", settings)

    def logits_of(ids):
        return compiled(np.array([ids], np.int64))[0][0]

    # [end]
    return logits_of


def steps(run: Run) -> None:
    import nncf

    exact = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "KV_CACHE_PRECISION": "f32",
    }
    no_head = nncf.IgnoredScope(patterns=[".*lm_head.*", ".*embed.*"])
    modes = nncf.CompressWeightsMode
    four = {"ratio": 1.0, "group_size": 128, "all_layers": True}
    for name, mode, more, settings in (
        ("int8", modes.INT8_SYM, {}, exact),
        ("int4-g128", modes.INT4_SYM, four, exact),
        ("int4-g128, as it comes", modes.INT4_SYM, four, {}),
    ):
        file = run.out / f"{name.split(',')[0]}.xml"
        if not file.exists():
            quantize(run.source / "story.onnx", file, mode, ignored_scope=no_head, **more)
        nll = run.nll(scorer(file, **settings))
        files = [file, file.with_suffix(".bin")]
        run.row(f"openvino {name}", "openvino", files, nll=nll)


if __name__ == "__main__":
    main(steps)
