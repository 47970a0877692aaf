"""CTranslate2: a converted folder, weights and inputs of eight bits on the CPU."""

from __future__ import annotations

from shared import Run, main


def convert(source, out, quantization):
    # [shown]
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(str(source))
    converter.convert(str(out), quantization=quantization)  # "int8", "float32", ...
    # [end]


def score(folder, source, texts, quantization):
    # [shown]
    import ctranslate2
    from transformers import AutoTokenizer

    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=quantization)
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in texts]
    found = generator.score_batch(tokens)
    nll = -sum(sum(one.log_probs) for one in found)
    # [end]
    return nll


def steps(run: Run) -> None:
    for name in ("float32", "int8"):
        folder = run.out / name
        convert(run.model, folder, name)
        nll = score(folder, run.model, run.texts, name)
        run.row(f"ctranslate2 {name}", "ctranslate2", [folder / "model.bin"], nll=nll)


if __name__ == "__main__":
    main(steps)
