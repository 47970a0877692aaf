"""The commands as a reader types them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import qlab
from qlab import cli

KEYS = {
    "model",
    "method",
    "scheme",
    "perplexity",
    "kl",
    "bits_per_weight",
    "size_bytes",
    "tokens_per_second",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("The fox and the moon went for a walk. " * 5)
    return file


def run(capsys, *argv):
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv):
    """The one line of an exit with code 2."""
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == "" and err.startswith("qlab: ") and err.count("\n") == 1
    return err


def test_quantize_eval_and_tell(capsys, tiny_folder, text, tmp_path):
    out = tmp_path / "small"
    code, printed, _ = run(
        capsys, "quantize", tiny_folder, "--scheme", "int4-g32", "--out", out, "--json"
    )
    assert code == 0
    about = json.loads(printed)
    assert about["bits_per_weight"] == 5 and about["scheme"] == "int4-g32"
    code, printed, _ = run(
        capsys, "eval", out, "--text", text, "--reference", tiny_folder, "--json"
    )
    row = json.loads(printed)
    assert code == 0 and set(row) == KEYS and row["kl"] > 0
    source = qlab.load(out)
    expected = qlab.perplexity(source.model, source.tokenizer, [text.read_text()])
    assert row["perplexity"] == pytest.approx(expected, rel=1e-9)
    assert row["size_bytes"] == about["size_bytes"]
    code, printed, _ = run(capsys, "tell", out, "--prompt", "the fox", "--max-tokens", 5)
    assert code == 0 and printed.startswith("the fox")
    words = ("tell", out, "--prompt", "the fox", "--max-tokens", 30)
    _, free, _ = run(capsys, *words)
    code, printed, _ = run(capsys, *words, "--repetition-penalty", 3)
    assert code == 0 and printed.startswith("the fox") and printed != free


def test_compare_prints_a_list(capsys, tiny_folder, text):
    code, printed, _ = run(
        capsys,
        *("compare", tiny_folder, "--text", text, "--json"),
        *("--methods", "rtn", "--schemes", "int8-channel,int2-channel"),
    )
    rows = json.loads(printed)
    assert code == 0 and [set(r) for r in rows] == [KEYS] * 3
    assert [r["scheme"] for r in rows] == [None, "int8-channel", "int2-channel"]
    assert rows[0]["kl"] is None and rows[1]["kl"] < rows[2]["kl"]
    code, printed, _ = run(
        capsys, "compare", tiny_folder, "--text", text, "--schemes", "int8-channel"
    )
    assert code == 0 and "perplexity" in printed.splitlines()[0]


def test_doctor(capsys):
    code, printed, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(printed)["libraries"]["torch"] == torch.__version__
    assert run(capsys, "doctor")[0] == 0


@pytest.mark.parametrize(
    "command", ["quantize", "eval", "compare", "tell", "doctor", "story train"]
)
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"example:\n  qlab {command}" in capsys.readouterr().out


def test_missing_and_damaged_sources(capsys, tiny_folder, tmp_path):
    assert "no file or folder" in refused(capsys, "eval", "./nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(capsys, "eval", tmp_path / "empty")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert "safetensors" in refused(capsys, "eval", bare)
    cut = shutil.copytree(tiny_folder, tmp_path / "cut")
    raw = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    assert "is cut or is no safetensors" in refused(capsys, "eval", cut)
    nan = shutil.copytree(tiny_folder, tmp_path / "nan")
    tensors = load_file(nan / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, nan / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refused(capsys, "eval", nan)
    out = tmp_path / "out"
    assert "holds NaN" in refused(capsys, "quantize", nan, "--out", out)
    assert not out.exists()
    config = json.loads((tiny_folder / "config.json").read_text())
    odd = shutil.copytree(tiny_folder, tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    assert "unheard-of" in refused(capsys, "eval", odd)


def test_bad_schemes_methods_and_texts(capsys, tiny_folder, tmp_path):
    out = tmp_path / "out"
    for scheme, says in [
        ("int0", "unknown scheme"),
        ("int17", "unknown scheme"),
        ("int4-g100", "does not divide"),
        ("int4-g0", "at least 1"),
    ]:
        assert says in refused(
            capsys, "quantize", tiny_folder, "--scheme", scheme, "--out", out
        ).replace("'g100' ", "")
    assert "unknown method" in refused(
        capsys, "quantize", tiny_folder, "--method", "magic", "--out", out
    )
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert "is empty" in refused(capsys, "eval", tiny_folder, "--text", empty)
    assert "no text file" in refused(capsys, "eval", tiny_folder, "--text", tmp_path / "no.txt")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    assert "UTF-8" in refused(capsys, "eval", tiny_folder, "--text", binary)
    assert "empty" in refused(capsys, "tell", tiny_folder, "--prompt", " ")
    assert "repetition_penalty" in refused(
        capsys, "tell", tiny_folder, "--prompt", "the fox", "--repetition-penalty", 0
    )
    assert "takes 2 to" in refused(capsys, "eval", tiny_folder, "--context", 100000)
    assert "empty" in refused(capsys, "compare", tiny_folder, "--schemes", ",")
    assert "no configuration file" in refused(
        capsys, "story", "train", "--config", tmp_path / "no.toml", "--out", tmp_path / "run"
    )
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "binary.txt",
        "empty.txt",
    ]


def test_existing_output_is_kept(capsys, tiny_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert "exists already" in refused(
        capsys, "quantize", tiny_folder, "--scheme", "int8-channel", "--out", out
    )


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs a file size limit of the system")
def test_a_full_disk_leaves_nothing_behind(tiny_folder, tmp_path):
    """A limit on file sizes stands in for a full disk: a write is refused in its middle."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from qlab.cli import main; import torch, transformers; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        f"sys.exit(main(['quantize', {str(tiny_folder)!r}, '--scheme', 'int8-channel', "
        "'--json', '--out', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "could not write 'out'" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_hub_without_a_network_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    err = refused(capsys, "eval", "nobody/no-such-model")
    assert "could not be fetched" in err and "go online" in err


def test_quantize_writes_the_formats_of_others(tmp_path, capsys):
    out = tmp_path / "story-gptq"
    words = ["quantize", "story", "--method", "gptq", "--scheme", "int4-g128-sfp16", "--json"]
    assert cli.main([*words, "--format", "gptq", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "gptq"
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert cli.main([*words, "--format", "gptk", "--out", str(tmp_path / "other")]) == 2
    assert "gptq_v2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_short_calibration_text_is_refused(tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time there was a fox.")
    words = ["quantize", "story", "--method", "gptq", "--calibration", str(text)]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "fewer than one window of 512" in error
    assert error.count("\n") == 1
