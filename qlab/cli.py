"""The command line: qlab quantize | eval | compare | tell | serve | bench | gguf | story | doctor.

SRC is ``story`` (the embedded model), a Hugging Face folder, a folder that qlab wrote, a GGUF file,
or a hub id.
Exit code 2 and one line on bad input. With --json nothing but JSON goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlab.cli_bench import add_bench
from qlab.cli_gguf import add_imatrix
from qlab.cli_serve import add_serve
from qlab.errors import QlabError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parser().parse_args(argv)
    _quiet_libraries()
    try:
        args.run(args)
    except QlabError as error:
        print(f"qlab: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"qlab: out of memory {error}: use a smaller model or context", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("qlab: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qlab", description="Quantize language models, and see what it costs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], about: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    c = add(
        "quantize",
        _quantize,
        "Quantize a model and write it to a folder, or to a GGUF file for llama.cpp.",
        "qlab quantize story --method rtn --scheme int4-g128 --out small\n"
        "  qlab quantize story --scheme q4_k_m --out story.gguf",
    )
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    c.add_argument("--method", help="how codes are chosen (default: rtn); not for GGUF")
    c.add_argument(
        "--scheme",
        help="such as int8-channel, int4-asym-g128 (default: int4-g128); for GGUF a mix, such as "
        "q8_0, q5_k_s (default: q4_k_m)",
    )
    c.add_argument("--calibration", metavar="FILE.txt", help="text for methods that need data")
    c.add_argument(
        "--activations",
        metavar="SCHEME",
        help="quantize the inputs of layers too: int8-token (dynamic), int8-asym-tensor (static)",
    )
    c.add_argument(
        "--format",
        default="qlab",
        help="of the folder: qlab (default), gptq, gptq_v2, awq, compressed-tensors",
    )
    c.add_argument("--resume", metavar="DIR", help="keep finished blocks here, and go on from them")
    c.add_argument("--imatrix", metavar="FILE", help="importance matrix, for GGUF")
    c.add_argument("--out", required=True, metavar="OUT", help="folder, or FILE.gguf, to write")
    c.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    c.add_argument("--json", action="store_true", help="print figures as one JSON object")

    c = add(
        "eval",
        _eval,
        "Measure perplexity, size and speed of a model.",
        "qlab eval small --reference story --json",
    )
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    _measuring(c)
    c.add_argument("--reference", metavar="SRC", help="model to compute the KL divergence to")

    c = add(
        "compare",
        _compare,
        "Quantize a model in several ways and measure each.",
        "qlab compare story --methods rtn,gptq --schemes int8-channel,int4-g128,q4_k_m "
        "--html report.html",
    )
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    c.add_argument("--methods", default="rtn", help="names, separated by commas")
    c.add_argument("--schemes", default="int8-channel,int4-g128,int3-g128", help="separated by ,")
    _measuring(c)
    c.add_argument(
        "--html", metavar="FILE.html", help="write a report, too: one page for a browser"
    )
    c.add_argument("--no-speed", action="store_true", help="a report without memory and speed")

    c = add(
        "tell",
        _tell,
        "Let a model tell a story.",
        'qlab tell story --prompt "Once upon a time" --max-tokens 120',
    )
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    c.add_argument("--prompt", default="Once upon a time", help="how the story begins")
    c.add_argument("--max-tokens", type=int, default=200, help="at most this many (default: 200)")
    c.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    c.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest (0: all)")
    c.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1, such as 1.15, pieces that the story has already become less likely",
    )
    c.add_argument("--seed", type=int, default=0, help="of the sampling")

    c = add("doctor", _doctor, "Show versions, CPU features, GPU and engines.", "qlab doctor")
    c.add_argument("--json", action="store_true", help="print one JSON object")

    add_bench(add)

    gguf = commands.add_parser("gguf", help="Look into GGUF files; compute importance matrices.")
    gguf_commands = gguf.add_subparsers(required=True, metavar="COMMAND")
    c = gguf_commands.add_parser(
        "inspect",
        help="metadata, tensors, types, bits per weight, and what looks wrong",
        description="Show what is in a GGUF file, and warn of what looks wrong.",
        epilog="example:\n  qlab gguf inspect story.gguf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_gguf_inspect)
    c.add_argument("file", metavar="FILE", help="a GGUF file")
    c.add_argument("--check", action="store_true", help="read all weights, too")
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c = gguf_commands.add_parser(
        "diff",
        help="how two files differ",
        description="Show how the metadata and the tensors of two GGUF files differ.",
        epilog="example:\n  qlab gguf diff story-f32.gguf story-q4_k.gguf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_gguf_diff)
    c.add_argument("a", metavar="A", help="a GGUF file")
    c.add_argument("b", metavar="B", help="another")
    c.add_argument("--json", action="store_true", help="print one JSON object")

    add_imatrix(gguf_commands)
    add_serve(commands)

    story = commands.add_parser("story", help="Train a storyteller.")
    story_commands = story.add_subparsers(required=True, metavar="COMMAND")
    c = story_commands.add_parser(
        "train",
        help="train a storyteller from a configuration file",
        description="Train a storyteller; calling it again with the same --out goes on.",
        epilog="example:\n  qlab story train --steps 200 --out runs/small",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_train)
    c.add_argument("--config", metavar="FILE.toml", help="default: the embedded model's own")
    c.add_argument("--corpus", action="append", default=[], metavar="FILE", help=".txt or .jsonl")
    c.add_argument("--steps", type=int, help="overrides the configuration")
    c.add_argument("--start-from", metavar="DIR", help="model folder to start from")
    c.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    c.add_argument("--compile", action="store_true", help="use torch.compile (faster)")
    c.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    c = story_commands.add_parser(
        "average",
        help="average the weights of runs that began with the same weights",
        description="Write a run whose weights are the mean of others; train goes on from it.",
        epilog="example:\n  qlab story average runs/a runs/b --out runs/mean",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_average)
    c.add_argument("runs", nargs="+", metavar="RUN", help="the --out of qlab story train")
    c.add_argument("--out", required=True, metavar="DIR", help="folder of the new run")
    return parser


def _measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", metavar="FILE.txt", help="default: the validation stories")
    command.add_argument("--context", type=int, help="tokens a window (default: the model's)")
    command.add_argument("--stride", type=int, help="tokens a window advances (default: all)")
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")


def _quantize(args: argparse.Namespace) -> None:
    from qlab.gguf.mixes import is_mix

    if Path(args.out).suffix == ".gguf" or (args.scheme and is_mix(args.scheme)):
        _quantize_gguf(args)
        return
    from qlab import quantize_model
    from qlab.core import Scheme
    from qlab.evaluate import model_size
    from qlab.export import FORMATS, save_folder, save_foreign
    from qlab.methods import get_method
    from qlab.sources import load

    method, scheme = get_method(args.method or "rtn"), args.scheme or "int4-g128"
    Scheme.parse(scheme)  # bad words are refused before a large model is read
    if args.activations:
        Scheme.parse(args.activations)
    if args.format not in ("qlab", *FORMATS):
        raise QlabError(f"unknown --format '{args.format}': there are qlab, {', '.join(FORMATS)}")
    if args.imatrix:
        raise QlabError("--imatrix is for GGUF: add --out FILE.gguf, or use --calibration")
    _check_new(args)
    source = load(args.source)
    calibration = None
    if args.calibration:
        calibration = _tokens(source, _read_text(args.calibration))
    elif method.needs_calibration or args.activations:
        calibration = source.calibration()
    small, report = quantize_model(
        source.model,
        method.name,
        scheme,
        calibration,
        activations=args.activations,
        resume=args.resume,
        progress=not args.json,
    )
    if args.format == "qlab":
        save_folder(small, source.tokenizer, args.out, method=method.name, overwrite=args.overwrite)
    else:
        save_foreign(small, source.tokenizer, args.out, args.format, overwrite=args.overwrite)
    size = model_size(small)
    if args.json:
        _print_json(
            {
                "model": source.name,
                "method": method.name,
                "scheme": report.scheme,
                "bits_per_weight": size.bits_per_weight,
                "size_bytes": size.total,
                "out": str(args.out),
            }
        )
    else:
        print(report)
        print(f"wrote {args.out}: {size.total / 1e6:.2f} MB of tensors")


def _quantize_gguf(args: argparse.Namespace) -> None:
    from qlab.gguf import GGUFFile
    from qlab.gguf.convert import to_gguf
    from qlab.gguf.mixes import get_mix
    from qlab.sources import load

    mix = get_mix(args.scheme or "q4_k_m")
    if Path(args.out).suffix != ".gguf":
        raise QlabError(f"scheme '{mix.name}' makes a GGUF file: give --out FILE.gguf")
    if args.method or args.calibration or args.activations or args.resume or args.format != "qlab":
        raise QlabError(
            "GGUF chooses codes by its own search: leave out --method, --calibration, "
            "--activations, --resume and --format, and give what the inputs look like with "
            "--imatrix"
        )
    _check_new(args)
    importance = None
    if args.imatrix:
        from qlab.gguf.imatrix import read_imatrix

        importance = read_imatrix(args.imatrix)
    source = load(args.source)
    to_gguf(
        source.model,
        source.tokenizer,
        args.out,
        mix.name,
        importance,
        name=Path(source.name).name.removesuffix(".gguf"),
        progress=not args.json,
    )
    with GGUFFile(args.out) as file:
        bits, size, count = file.bits_per_weight, file.size, len(file.tensors)
    if args.json:
        _print_json(
            {
                "model": source.name,
                "method": None,
                "scheme": mix.name,
                "bits_per_weight": bits,
                "size_bytes": size,
                "out": str(args.out),
            }
        )
    else:
        print(f"wrote {args.out}: {count} tensors, {bits:.3f} bits per weight, {size / 1e6:.2f} MB")


def _check_new(args: argparse.Namespace) -> None:
    if Path(args.out).exists() and not args.overwrite:
        raise QlabError(f"'{args.out}' exists already: choose another --out, or add --overwrite")


def _eval(args: argparse.Namespace) -> None:
    from qlab.sources import load

    texts = _texts(args)
    source = load(args.source)
    reference = load(args.reference).model if args.reference else None
    row = _measure(args, source.model, source, texts, reference)
    if args.json:
        _print_json(row)
    else:
        _print_table([row])


def _compare(args: argparse.Namespace) -> None:
    from qlab import quantize_model
    from qlab.core import Scheme
    from qlab.methods import get_method
    from qlab.sources import load

    if args.html:
        _report(args)
        return
    if args.no_speed:
        raise QlabError("--no-speed is for a report: add --html FILE.html")
    methods = [get_method(m) for m in _words(args.methods, "--methods")]
    schemes = [Scheme.parse(s) for s in _words(args.schemes, "--schemes")]
    texts = _texts(args)
    source = load(args.source)
    rows = [_measure(args, source.model, source, texts, None)]
    calibration = source.calibration() if any(m.needs_calibration for m in methods) else None
    for method in methods:
        for scheme in schemes:
            small, _ = quantize_model(
                source.model, method.name, scheme, calibration, progress=not args.json
            )
            row = _measure(args, small, source, texts, source.model)
            rows.append({**row, "method": method.name, "scheme": scheme.name})
    if args.json:
        _print_json(rows)
    else:
        _print_table(rows)


def _report(args: argparse.Namespace) -> None:
    """The case study of the book on a reader's model and text."""
    from qlab.bars import bar
    from qlab.sources import load
    from qlab.study import Settings, record_of, run
    from qlab.study.lines import lines_of_words
    from qlab.viz.study_page import write_page

    if args.context or args.stride:
        raise QlabError("--html measures windows of the model's context: leave out --context")
    if Path(args.html).suffix.lower() not in (".html", ".htm"):
        raise QlabError(f"--html '{args.html}': name a file that ends in .html")
    words = (_words(args.methods, "--methods"), _words(args.schemes, "--schemes"))
    lines, texts = lines_of_words(*words), _texts(args)
    source = load(args.source)
    own = bool(args.text)
    settings = Settings(texts=max(2, len(texts)), world=0 if own else 12)
    work = range((1 if args.no_speed else 2) * len(lines))
    steps = iter(bar(work, "measuring", "row", not args.json))
    rows = run(
        source,
        lines,
        texts,
        settings,
        running=not args.no_speed,
        tell=lambda name: next(steps, None),
    )
    record = record_of(source, rows, settings, texts)
    write_page(rows, record["about"], args.html)
    table = [
        {
            "model": source.name,
            "method": row.line["method"] or None,
            "scheme": row.line["scheme"] or None,
            "perplexity": row.measures["perplexity"][0],
            "kl": row.measures["kl"][0] if row.line["scheme"] else None,
            "bits_per_weight": row.bits_per_weight,
            "size_bytes": row.file_bytes,
            "tokens_per_second": None,
        }
        for row in rows
    ]
    if args.json:
        _print_json(table)
    else:
        _print_table(table)
        print(f"wrote {args.html}")


def _tell(args: argparse.Namespace) -> None:
    from qlab.story.telling import open_teller, stream

    if args.max_tokens < 1:
        raise QlabError(f"--max-tokens {args.max_tokens}: at least 1")
    if args.temperature < 0 or not math.isfinite(args.temperature):
        raise QlabError(f"--temperature {args.temperature}: 0 (greedy) or above")
    model, tokenizer = open_teller(args.source, progress=True)
    told = stream(
        model,
        tokenizer,
        args.prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    for part in told:
        print(part, end="", flush=True)
    print()


def _train(args: argparse.Namespace) -> None:
    from qlab.story.train import train

    out = train(
        args.out,
        args.corpus,
        args.config,
        args.steps,
        args.device,
        args.start_from,
        args.compile,
    )
    print(f"wrote {out / 'model'}, {out / 'log.csv'} and {out / 'loss.svg'}")


def _average(args: argparse.Namespace) -> None:
    from qlab.story.average import average

    out = average(args.runs, args.out)
    print(f"wrote {out}: 'qlab story train --out {out}' goes on from it and writes the model")


def _gguf_inspect(args: argparse.Namespace) -> None:
    from qlab.gguf import GGUFFile
    from qlab.gguf.inspect import inspect

    with GGUFFile(args.file) as file:
        found = inspect(file, args.check)
    if args.json:
        _print_json(found)
        return
    print(f"{found['file']}: GGUF {found['version']}, {found['bytes']:,} bytes")
    for key, value in found["metadata"].items():
        print(f"  {key:40} {value['type']:16} {value['value']}")
    for t in found["tensors"]:
        shape = "x".join(map(str, t["shape"]))
        print(f"  {t['name']:40} {t['type']:8} {shape:>16} {t['bytes']:>14,} bytes")
    for name, row in found["types"].items():
        share = f"{row['tensors']} tensors, {row['weights']:,} weights, {row['bytes']:,} bytes"
        print(f"  {name:8} {share}")
    if found["bits_per_weight"] is not None:
        print(f"  {found['bits_per_weight']:.4f} bits per weight")
    for line in found["warnings"]:
        print(f"  warning: {line}")


def _gguf_diff(args: argparse.Namespace) -> None:
    from qlab.gguf import GGUFFile
    from qlab.gguf.inspect import diff

    with GGUFFile(args.a) as a, GGUFFile(args.b) as b:
        found = diff(a, b)
    if args.json:
        _print_json(found)
        return
    if found["same"]:
        print("the same metadata and tensors")
    for row in found["metadata"] + found["tensors"]:
        name = row.get("key", row.get("name"))
        if "only_in" in row:
            print(f"  {name:40} only in {row['only_in'].upper()}")
        else:
            error = row.get("relative_error")
            print(
                f"  {name:40} {row['a']} | {row['b']}"
                + (f"  relative error {error:.3g}" if error is not None else "")
            )


def _doctor(args: argparse.Namespace) -> None:
    from qlab.doctor import examine

    found = examine()
    if args.json:
        _print_json(found)
        return
    for section, lines in found.items():
        print(section)
        for name, value in lines.items():
            print(f"  {name:22} {value}")


def _measure(
    args: argparse.Namespace, model: Any, source: Any, texts: list[str], reference: Any
) -> dict[str, Any]:
    """One row of figures, with the keys that --json promises."""
    from qlab.evaluate import divergence, model_size, perplexity, tokens_per_second
    from qlab.nn import quant_layers

    size = model_size(model)
    schemes = {layer.scheme.name for _, layer in quant_layers(model)}
    bits, nbytes = size.bits_per_weight, size.total
    if source.name.endswith(".gguf") and not schemes:
        # Its weights were read into floating point: what counts is the file.
        from qlab.gguf import GGUFFile

        with GGUFFile(source.name) as file:
            bits, nbytes = file.bits_per_weight, file.size
    kl = None
    if reference is not None:
        kl = divergence(reference, model, source.tokenizer, texts, args.context).kl
    return {
        "model": source.name,
        "method": None,
        "scheme": "+".join(sorted(schemes)) or None,
        "perplexity": perplexity(model, source.tokenizer, texts, args.context, args.stride),
        "kl": kl,
        "bits_per_weight": bits,
        "size_bytes": nbytes,
        "tokens_per_second": tokens_per_second(model),
    }


def _texts(args: argparse.Namespace) -> list[str]:
    from qlab.story import texts

    return [_read_text(args.text)] if args.text else texts("validation")


def _read_text(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QlabError(f"no text file at '{path}': check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QlabError(f"'{path}' cannot be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise QlabError(f"'{path}' is empty: give a text with words in it")
    return text


def _tokens(source: Any, text: str) -> list[Any]:
    """The text as windows of token ids, as long as the model's context."""
    import torch

    from qlab.evaluate.perplexity import cut

    context = min(2048, int(getattr(source.model.config, "max_position_embeddings", 2048)))
    windows = cut(source.tokenizer, text, context)
    tokens = sum(len(w.ids) for w in windows)
    if tokens < context:
        raise QlabError(
            f"the calibration text has {tokens} tokens, fewer than one window of {context}: "
            "give a longer text"
        )
    return [torch.tensor([w.ids]) for w in windows]


def _words(value: str, option: str) -> list[str]:
    words = [w.strip() for w in value.split(",") if w.strip()]
    if not words:
        raise QlabError(f"{option} is empty: give names separated by commas")
    return words


def _print_json(value: Any) -> None:
    def plain(x: Any) -> Any:
        """JSON has no NaN and no infinity; null says "not a number"."""
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, list):
            return [plain(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    print(json.dumps(plain(value), indent=2))


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = {
        "model": "{}",
        "method": "{}",
        "scheme": "{}",
        "perplexity": "{:.3f}",
        "kl": "{:.4f}",
        "bits_per_weight": "{:.3f}",
        "size_bytes": "{:,}",
        "tokens_per_second": "{:.1f}",
    }
    table = [list(columns)] + [
        ["-" if row[k] is None else style.format(row[k]) for k, style in columns.items()]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        cells = zip(line, widths, strict=True)
        print("  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(cells)))


def _quiet_libraries() -> None:
    """Keep the progress bars and advice of libraries out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
