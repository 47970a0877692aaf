"""What the chapter on GGUF says of files, bytes and programs, on input of our own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qlab
from qlab.gguf import GGUFError, GGUFFile, block_type, dequantize, quantize, to_gguf

f32 = np.float32


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def hand_written(values):
    """The chapter's file: one value of metadata, one tensor of two dimensions in F32."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    metadata = text("general.architecture") + struct.pack("<I", 8) + text("demo")
    shape = struct.pack("<IQQ", 2, *values.shape[::-1])
    info = text("small.weight") + shape + struct.pack("<IQ", 0, 0)
    head = header + metadata + info
    return head + bytes(-len(head) % 32) + values.tobytes() + bytes(-values.nbytes % 32)


@settings(max_examples=40, deadline=None)
@given(values=arrays.arrays(f32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_a_file_written_by_hand_is_read_by_both(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("hand") / "x.gguf"
    path.write_bytes(hand_written(values))
    with GGUFFile(path) as file:
        tensor = file.tensors["small.weight"]
        assert tensor.shape == values.shape and file.metadata["general.architecture"] == "demo"
        assert np.array_equal(tensor.dequantize(), values, equal_nan=True)
        assert tensor.offset % 32 == 0
    theirs = gguf.GGUFReader(path).tensors[0].data
    assert np.array_equal(theirs, values, equal_nan=True)
    path.write_bytes(hand_written(values)[:-33])  # cut: the last bytes of the data are not there
    with pytest.raises(GGUFError):
        GGUFFile(path)


def q4_0(x):
    """The chapter's cell."""
    blocks = x.reshape(-1, 32)
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    d = far / f32(-8)
    inverse = np.divide(f32(1), d, out=np.zeros_like(d), where=d != 0)
    codes = np.minimum(15, (blocks * inverse + f32(8.5)).astype(np.uint8))
    packed = codes[:, :16] | codes[:, 16:] << 4
    both = np.concatenate([d.astype(np.float16).view(np.uint8), packed], axis=1)
    return both.reshape(len(x), -1)


@settings(max_examples=60, deadline=None)
@given(
    x=arrays.arrays(
        f32,
        st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96])),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False).filter(
            lambda v: v == 0 or abs(v) > 1e-30  # 1 / d must not overflow
        ),
    )
)
def test_q4_0_in_the_open_and_its_laws(x):
    data = quantize(x, "Q4_0")
    assert np.array_equal(q4_0(x), data)
    blocks = x.reshape(-1, 32)
    d = data.reshape(-1, 18)[:, :2].copy().view(np.float16)[:, 0].astype(f32)
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    # The scale has the opposite sign of the far weight, unless float16 has made it 0.
    assert (np.sign(d) * np.sign(far) <= 0).all()
    # At most a step off: 15.5 is cut to 15, and float16 moves eight steps by 2^-11 of them.
    error = np.abs(dequantize(data, "Q4_0").reshape(-1, 32) - blocks).max(1)
    step = np.abs(far) / 8
    assert (error <= step * 1.01 + 2.0**-24).all()


def test_a_sixteenth_level_is_worth_a_decibel():
    for seed in range(3):
        w = np.random.default_rng(seed).standard_normal((128, 512)).astype(f32)
        ours = qlab.sqnr(w, qlab.quantize(w, "int4-g32-sfp16"))
        gain = qlab.sqnr(w, dequantize(quantize(w, "Q4_0"), "Q4_0")) - ours
        assert gain == pytest.approx(20 * np.log10(8 / 7), abs=0.25)


def test_the_order_of_the_types_on_normal_weights():
    w = np.random.default_rng(4).standard_normal((64, 1024)).astype(f32)
    found = {
        k: qlab.sqnr(w, dequantize(quantize(w, k), k))
        for k in ("Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q6_K", "Q8_0")
    }
    assert found["Q8_0"] > found["Q6_K"] > found["Q4_K"] > found["Q4_1"] > found["Q4_0"]
    assert found["Q4_K"] > found["IQ4_NL"] > found["Q4_0"]
    assert all(block_type(k).bits_per_weight() == 4.5 for k in ("Q4_0", "IQ4_NL", "Q4_K"))
    flat = np.random.default_rng(5).uniform(-1, 1, (64, 1024)).astype(f32)
    ones = np.ones(1024, f32)  # with an importance Q4_0 searches its scale as IQ4_NL does
    a, b = (qlab.sqnr(flat, dequantize(quantize(flat, k, ones), k)) for k in ("IQ4_NL", "Q4_0"))
    assert a < b - 0.2
    a, b = (qlab.sqnr(w, dequantize(quantize(w, k, ones), k)) for k in ("IQ4_NL", "Q4_0"))
    assert a > b + 0.4


@pytest.mark.parametrize("scheme", ["f32", "q4_k_m"])
def test_llama_cpp_tells_our_file_as_transformers_does(tmp_path, scheme):
    import torch

    story, path = qlab.story.load(), tmp_path / "story.gguf"
    to_gguf(story.model, story.tokenizer, path, scheme)
    script = (
        "import json, sys, xllamacpp\n"
        "s = xllamacpp.CommonParams()\n"
        "s.model.path, s.n_ctx, s.n_parallel, s.warmup = sys.argv[1], 256, 1, False\n"
        "s.cpuparams.n_threads = 1\n"
        "server = xllamacpp.Server(s)\n"
        "for p in json.loads(sys.argv[2]):\n"
        "    a = server.handle_completions({'prompt': p, 'max_tokens': 16, 'temperature': 0})\n"
        "    print(json.dumps(a['choices'][0]['text']))\n"
    )
    prompts = [
        "There was a dragon who",
        "Mia looked at the stars",
        "It was raining, and",
        "One day",
    ]
    run = subprocess.run(
        [sys.executable, "-c", script, str(path), json.dumps(prompts)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    theirs = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('"')]
    assert len(theirs) == len(prompts)
    loaded = qlab.load(path)
    same = begun = 0
    for prompt, told in zip(prompts, theirs, strict=True):
        ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = loaded.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
            )
        ours = loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        same += ours.strip() == told.strip()
        begun += told.split()[:1] == ours.split()[:1]
    # llama.cpp rounds the inputs of a Q4_K product: the first words agree but for a near tie, and
    # after one the texts part. tests/parity/test_llamacpp_record.py compares the probabilities.
    assert begun >= (4 if scheme == "f32" else 3), theirs
    if scheme == "f32":  # a float16 cache of keys and values may turn one near tie
        assert same >= 3, theirs
