"""llama.cpp through llama-cpp-python: quantize an F32 file, perhaps with an imatrix, and run."""

from __future__ import annotations

from shared import Run, main


def quantize(source, out, kind, importance=None):
    # [shown]
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")  # "Q4_0", "Q4_K_M" ...
    params.nthread = 1
    if importance is not None:
        params.imatrix = as_rows(importance)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    # [end]
    if code:
        raise RuntimeError(f"llama_model_quantize to {kind} returned {code}")


def as_rows(importance):
    """name -> float32 (inputs,) as the C structure; the list ends with an entry without a name."""
    import llama_cpp

    rows = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for row, (name, values) in zip(rows, importance.items(), strict=False):
        row.name, row.size = name.encode(), len(values)
        row.data = values.ctypes.data_as(type(row.data))
    return rows


def without_copies():
    """Leave the weights as the file has them. Built for a processor with AMX, version 0.3.36 ends
    with a segmentation fault in some virtual machines, in the copy that it reorders for AMX."""
    from llama_cpp import llama_cpp as bindings

    default = bindings.llama_model_default_params

    def params():
        found = default()
        found.use_extra_bufts = False
        return found

    bindings.llama_model_default_params = params


def scorer(file):
    # [shown]
    import llama_cpp
    import numpy as np

    without_copies()  # needed in some virtual machines: see the text
    model = llama_cpp.Llama(
        str(file), n_ctx=512, n_batch=512, n_threads=1, logits_all=True, verbose=False
    )

    def logits_of(ids):
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    # [end]
    return logits_of


def steps(run: Run) -> None:
    import numpy as np

    source = run.source / "story-f32.gguf"
    importance = dict(np.load(run.source / "imatrix.npz"))
    for kind, rows in (("Q8_0", None), ("Q4_0", None), ("Q4_K_M", None), ("Q4_K_M", importance)):
        name = kind if rows is None else f"{kind} imatrix"
        file = run.out / f"{name}.gguf"
        quantize(source, file, kind, rows)
        run.row(f"llama.cpp {name}", "llama-cpp-python", [file], nll=run.nll(scorer(file)))


if __name__ == "__main__":
    main(steps)
