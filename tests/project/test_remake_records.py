"""What depends on the storyteller's weights, and the script that makes it anew."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

import qlab
from qlab.study import weights_hash as hash_of_model
from tools import remake_records as remake
from tools.release_storyteller import put_records
from tools.remake_records import JOBS, ROOT, Job, commands_of, hashes_in, run, stale
from tools.toolbox import environments
from tools.toolbox.environments import ENVIRONMENTS
from tools.weights import WEIGHTS, weights_hash

KNOWN = [*(ROOT / "qlab" / "records").glob("*.json"), *(ROOT / "tests/parity/data").glob("*.json")]


def test_every_record_of_these_weights_has_a_job():
    now = {weights_hash(), hash_of_model(qlab.story.load().model)}
    tied = {
        str(file.relative_to(ROOT))
        for file in KNOWN
        if not now.isdisjoint(hashes_in(json.loads(file.read_text())))
    }
    assert len(tied) >= 10
    assert tied == {record for job in JOBS.values() for record in job.records}
    assert stale() == []


def test_with_other_weights_every_job_is_stale(monkeypatch):
    from qlab import study

    monkeypatch.setattr(remake, "weights_hash", lambda: "0" * 64)
    monkeypatch.setattr(study, "weights_hash", lambda model: "1" * 64)
    assert stale() == list(JOBS)


def test_the_hash_is_of_the_file_that_is_shipped():
    assert weights_hash() == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", JOBS)
def test_commands_are_scripts_and_name_their_records(name, tmp_path):
    text = ""
    for _, script, *rest in commands_of(JOBS[name], tmp_path / "envs", tmp_path):
        assert not any("{" in word for word in rest)
        text += (ROOT / script).read_text()
    for record in JOBS[name].records:
        stem = record.rsplit("/", 1)[1].removesuffix(".json")
        # A script names the file, or its name and the word that it is asked for.
        parts = stem.split("_", 1)
        assert stem in text or all(re.search(rf"\b{part}", text) for part in parts), record


def test_scripts_that_import_others_find_them():
    """Called by its path, a script sees its own folder, not the root."""
    scripts = {c[1] for job in JOBS.values() for c in commands_of(job, ROOT, ROOT)}
    texts = {script: (ROOT / script).read_text() for script in scripts}
    importing = [script for script, text in texts.items() if "from tools." in text]
    assert len(importing) >= 5
    for script in importing:
        assert re.search(r"sys\.path(\[0\] = |\.insert\(0, )str\(ROOT\)", texts[script]), script


def test_what_fails_is_named_with_its_log(tmp_path, monkeypatch, capsys):
    ends = tmp_path / "ends.py"
    ends.write_text("import sys; print('so it goes'); sys.exit(int(sys.argv[1]))")
    monkeypatch.setattr(remake, "LOGS", tmp_path / "logs")
    jobs = {
        "good": Job((), (f"book {ends} 0",)),
        "bad": Job((), (f"book {ends} 3", f"book {ends} 0")),
        "elsewhere": Job((), (f"nowhere {ends} 0",)),
        "quiet": Job((), (f"book {ends} 0",), alone=True),
    }
    monkeypatch.setattr(remake, "JOBS", jobs)
    assert run("good", tmp_path, tmp_path)
    assert not run("bad", tmp_path, tmp_path)
    said = capsys.readouterr().out
    assert "failed (3)" in said and "bad.log" in said
    assert (tmp_path / "logs" / "bad.log").read_text().count("so it goes") == 1  # it stops there
    assert not run("elsewhere", tmp_path, tmp_path)
    assert "make the environment" in capsys.readouterr().out
    monkeypatch.setattr(remake, "stale", lambda: list(jobs))
    args = ["--envs", str(tmp_path), "--work", str(tmp_path / "work")]
    assert remake.main(args) == 1
    said = capsys.readouterr().out
    assert said.rstrip().splitlines()[-1].startswith("quiet: ")
    assert remake.main(["good", "quiet", *args]) == 0
    with pytest.raises(SystemExit):
        remake.main(["unknown"])
    assert "no job unknown: choose from good" in capsys.readouterr().err


def test_an_environment_is_made_when_a_job_needs_it(tmp_path, monkeypatch):
    made = []

    def create(name, folder):
        made.append(name)
        python = folder / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)

    ends = tmp_path / "ends.py"
    ends.write_text("")
    monkeypatch.setattr(remake, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(remake, "create", create)
    monkeypatch.setattr(remake, "JOBS", {"one": Job((), (f"book {ends}", f"hqq {ends}"))})
    assert run("one", tmp_path / "envs", tmp_path)
    assert made == ["hqq"]


@pytest.mark.parametrize("name", JOBS)
def test_every_environment_can_be_made(name, tmp_path):
    used = {command.split()[0] for command in JOBS[name].commands}
    assert used <= {"book", *ENVIRONMENTS}


def test_what_a_package_requires_comes_without_torch():
    asked = environments._requirements(Path(sys.executable), "accelerate")
    assert any(line.startswith("safetensors") for line in asked)
    assert not any(line.startswith("torch") or ";" in line for line in asked)


def test_records_that_wait_beside_new_weights_are_put_in_place(tmp_path):
    waiting, root = tmp_path / "run" / "records", tmp_path / "root"
    assert put_records(tmp_path / "run", root) == []
    waiting.mkdir(parents=True)
    for name in ("peers.json", "llamacpp_story.json"):
        (waiting / name).write_text(f'"{name}"')
    for folder in ("qlab/records", "tests/parity/data"):
        (root / folder).mkdir(parents=True)
    assert put_records(tmp_path / "run", root) == ["llamacpp_story.json", "peers.json"]
    assert (root / "qlab/records/peers.json").read_text() == '"peers.json"'
    assert (root / "tests/parity/data/llamacpp_story.json").exists()
    (waiting / "pears.json").write_text("{}")
    with pytest.raises(qlab.QlabError, match=r"pears\.json, which is no record"):
        put_records(tmp_path / "run", root)


def test_the_list_says_what_is_stale(monkeypatch, capsys):
    monkeypatch.setattr(remake, "stale", lambda: ["peers"])
    assert remake.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " stale " in line] == ["peers"]
    assert len(lines) == len(JOBS)


def test_the_book_runs_jobs_with_its_own_python(tmp_path):
    assert commands_of(Job((), ("book a.py {work}/b {envs}",)), tmp_path / "e", tmp_path / "w") == [
        [sys.executable, "a.py", str(tmp_path / "w/b"), str(tmp_path / "e")]
    ]
