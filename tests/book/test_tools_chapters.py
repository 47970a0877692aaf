"""What the cells of the chapters on tools rest on: layouts, integer products, names of models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.export.words import awq_interleave, pack_words
from qlab.viz.who_loads import old_names

BOOK = Path(__file__).resolve().parents[2] / "book"
PAGES = ("toolbox-compressors", "toolbox-runtimes", "who-loads-what", "old-names")


def defined(page, *names):
    """Functions and lists that a chapter's cells define, by name."""
    text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
    cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)\n```", text, re.DOTALL)
    found = {"torch": torch, "re": re}
    for cell in cells:
        for part in re.split(r"\n(?=\S)", cell):
            if any(part.startswith((f"def {name}(", f"{name} = [")) for name in names):
                # A list ends with its bracket on a line of its own.
                if part.endswith(","):
                    part += "\n]"
                exec(compile(part, page, "exec"), found)  # the book's own code
    return [found[name] for name in names]


def codes_of(seed, rows, columns):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 16, (rows, columns), generator=g, dtype=torch.int32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), words=st.integers(1, 6))
def test_the_open_cell_unpacks_what_qlab_packs(seed, rows, words):
    (unpack,) = defined("toolbox-compressors", "unpack")
    codes = codes_of(seed, rows, 8 * words)
    assert torch.equal(unpack(pack_words(codes, 4), 1), codes)
    assert torch.equal(unpack(pack_words(codes, 4).T.contiguous(), 0), codes.T)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), words=st.integers(1, 6))
def test_the_solution_unpacks_awqs_order(seed, rows, words):
    unpack, unpack_awq = defined("toolbox-compressors", "unpack", "unpack_awq")
    unpack_awq.__globals__["unpack"] = unpack
    codes = codes_of(seed, rows, 8 * words)
    assert torch.equal(unpack_awq(pack_words(awq_interleave(codes), 4)), codes)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(-10, 10))
def test_inputs_in_blocks_are_qlabs_scheme(seed, power):
    (q8,) = defined("toolbox-runtimes", "q8")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    codes, scale = q8(x)
    same = qlab.quantize(x, "int8-g32").dequantize()
    assert torch.equal((codes * scale).reshape(x.shape), same)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("TheBloke/X-7B-AWQ", {"method": "awq"}),
        ("X-GPTQ:gptq-8bit--1g-actorder_True", {"method": "gptq", "bits": 8, "desc_act": True}),
        ("X.IQ2_XXS.gguf", {"block_type": "iq2_xxs"}),
        ("X-w4a16", {"weights": 4, "activations": 16}),
        ("X-GPTQ-Int4", {"method": "gptq", "bits": 4}),
        ("x-ggml-q4_0.bin", {"gone": "a GGML file: quantize the original again"}),
        ("X-7B", {}),
    ],
)
def test_names_of_models_are_read(name, found):
    (read_name,) = defined("old-names", "read_name")
    said = read_name(name)
    said.pop("group_size", None) if "-1g" in name else None  # -1: a scale a row, which it leaves
    assert said == found


def test_what_readers_arrive_with_is_in_the_list():
    (names,) = defined("old-names", "NAMES")
    everything = " ".join(row["old"] for row in names)
    for word in (
        *("auto-gptq", "convert.py", "./quantize", "./main", "GGML", "rouge", "inc_quantization"),
        *("load_in_8bit=True", "torch.quantization.quantize_dynamic", "AutoAWQ", "ORTQuantizer"),
        *("TheBloke", "quantize_config.json", "llm_int8_threshold", "torch_dtype"),
    ):
        assert word in everything, word
    old_names(names)


@pytest.mark.parametrize("page", PAGES)
def test_the_lines_of_the_shell_are_commands_that_qlab_has(page):
    from qlab.cli import main

    text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
    for words in set(re.findall(r"\bqlab (quantize|tell|gguf|eval|compare|load) [A-Z./a-z]", text)):
        with pytest.raises(SystemExit) as ended:
            main([words, "--help"])
        assert ended.value.code == 0
