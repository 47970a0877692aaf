"""``make bench``: which scripts it runs, and that it refuses a busy machine."""

import subprocess
from pathlib import Path

import pytest

from qlab import cli_bench
from tests.scripts import load_script

run = load_script("benchmarks/run.py")


def test_each_script_is_run_and_its_arguments_are_known(monkeypatch):
    started = []

    def remember(line, **_):
        started.append(line)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(cli_bench, "busy_share", lambda _: 0.0)
    monkeypatch.setattr(subprocess, "run", remember)
    assert run.main(["--threads", "1", "--quick", "--smollm2", "installed"]) == 0
    assert [Path(line[1]).stem for line in started] == [*run.SCRIPTS, "record"]
    for line in started[:-1]:
        text = Path(line[1]).read_text(encoding="utf-8")
        for word in line[2:]:
            assert not word.startswith("--") or f'"{word}"' in text, (line[1], word)
    engine = started[list(run.SCRIPTS).index("engine")]
    assert engine[-2:] == ["--smollm2", "installed"]


def test_a_script_that_fails_is_named(monkeypatch, capsys):
    monkeypatch.setattr(cli_bench, "busy_share", lambda _: 0.0)
    monkeypatch.setattr(
        subprocess, "run", lambda line, **_: subprocess.CompletedProcess(line, "gguf" in line[1])
    )
    assert run.main(["--only", "quantize,gguf"]) == 1
    assert "failed: gguf.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "others use is 50%"),
        (["--only", "speed"], "speed is not one of"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_bad_calls_and_busy_machines_are_refused(monkeypatch, capsys, args, said):
    monkeypatch.setattr(cli_bench, "busy_share", lambda _: 0.5)
    with pytest.raises(SystemExit) as stopped:
        run.main(args)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_worker_of_llama_cpp_python_needs_no_qlab():
    """It runs in another environment: nothing but NumPy and llama_cpp is imported."""
    text = (run.HERE / "llama_worker.py").read_text(encoding="utf-8")
    imported = {line.split()[1] for line in text.splitlines() if line.strip().startswith("import ")}
    assert imported == {"json", "sys", "time", "numpy", "llama_cpp", "llama_cpp.llama_cpp"}
    compile(text, "llama_worker.py", "exec")
