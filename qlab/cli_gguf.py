"""The command ``qlab gguf imatrix``; the other commands are in ``qlab.cli``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_imatrix(commands: Any) -> None:
    """Add the command to those of ``qlab gguf``.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    c = commands.add_parser(
        "imatrix",
        help="compute an importance matrix on a text",
        description="Compute how large the inputs of each layer are on a text, for "
        "`qlab quantize --imatrix` and for llama-quantize.",
        epilog="example:\n  qlab gguf imatrix story --out story.imatrix.gguf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_imatrix)
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    c.add_argument("--text", metavar="FILE.txt", help="default: the calibration stories")
    c.add_argument(
        "--chunk", type=int, help="tokens a chunk of --text (default: 512, or the model's context)"
    )
    c.add_argument("--output-matrix", action="store_true", help="of the output matrix, too")
    c.add_argument("--format", choices=("gguf", "dat"), help="default: by the suffix of --out")
    c.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    c.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    c.add_argument("--json", action="store_true", help="print figures as one JSON object")


def _imatrix(args: argparse.Namespace) -> None:
    from qlab.cli import _check_new, _print_json, _read_text
    from qlab.errors import QlabError
    from qlab.gguf.imatrix import CHUNK, compute_imatrix, cut_chunks, write_imatrix
    from qlab.sources import load

    _check_new(args)
    if args.chunk is not None and not args.text:
        raise QlabError("--chunk cuts a text: add --text FILE, or leave it out")
    text = _read_text(args.text) if args.text else None
    source = load(args.source)
    context = int(getattr(source.model.config, "max_position_embeddings", CHUNK))
    size = args.chunk or min(CHUNK, context)
    if size > context:
        raise QlabError(f"--chunk {size}: the model reads at most {context} tokens at once")
    chunks: list[Any] = source.calibration()
    dataset = "qlab's calibration stories"
    if text is not None:
        # As llama-imatrix reads it: the last end of line is no part of the text.
        chunks = cut_chunks(source.tokenizer, text.removesuffix("\n"), size)
        dataset = Path(args.text).name
    found = compute_imatrix(source.model, chunks, output=args.output_matrix, datasets=[dataset])
    write_imatrix(found, args.out, args.format)
    tokens = max(int(entry.counts.max()) for entry in found.entries.values())
    if args.json:
        _print_json(
            {
                "model": source.name,
                "dataset": dataset,
                "matrices": len(found),
                "tokens": tokens,
                "chunks": found.chunks,
                "chunk_size": found.chunk_size,
                "out": str(args.out),
            }
        )
    else:
        print(f"wrote {args.out}: {len(found)} matrices, mean squares over {tokens:,} tokens")
