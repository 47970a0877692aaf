"""The report: one page that needs nothing else, for any model and text."""

import json
import re

import pytest

import qlab
from qlab import cli
from qlab.study import Row
from qlab.viz.study_page import page_of, write_page

ABOUT = {
    "model": "folder/<model>",
    "weights": "0" * 64,
    "settings": {"texts": 2},
    "openings": ["Once. There </script> was."],
    "versions": {"torch": "2"},
    "machine": "m",
    "date": "2026-01-01",
}


def row(name, ratio, size, scheme="int4"):
    line = {
        "name": name, "family": "RTN", "method": "rtn", "scheme": scheme, "activations": "",
        "importance": False, "among": [], "budget": 0.0, "steps": 0, "lr": 1e-3, "seed": 0,
    }  # fmt: skip
    return Row(line, 4.0, size, {}, {"ratio": [ratio, ratio - 0.1, ratio + 0.1]}, told=[f"{name}!"])


def self_contained(page):
    assert page.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="(?!#)', page) and "@import" not in page
    programs = r'<script(?! type="application/json").*?</script>'
    values = re.sub(programs, "", page, flags=re.S)
    assert "NaN" not in values and "Infinity" not in values


def test_a_page_shows_each_row_and_escapes_names(tmp_path):
    rows = [row("whole", 1.0, 900, ""), row("<b>four</b>", 1.2, 300), row("two", 3.0, 100)]
    page = page_of(rows, ABOUT)
    self_contained(page)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "<b>four" not in shown and "&lt;b&gt;four" in shown and "two!" in shown
    data = [json.loads(t.replace("<\\/", "</")) for t in
            re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)]  # fmt: skip
    assert [r["name"] for r in data[0]["rows"]] == ["<b>four</b>", "two"]
    write_page(rows, ABOUT, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == page
    with pytest.raises(qlab.QlabError, match="no rows"):
        page_of([], ABOUT)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The fox and the moon went for a walk. It was late. They sang.\n\n" * 6)
    return file


def test_compare_writes_a_page_of_a_strange_model_and_text(
    capsys, tiny_folder, text, tmp_path, monkeypatch
):
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out.html"
    arguments = ["compare", str(tiny_folder), "--text", str(text), "--html", str(out)]
    words = ["--methods", "rtn,gptq", "--schemes", "int8-channel,int2-channel", "--no-speed"]
    assert cli.main([*arguments, *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["method"] for r in rows] == [None, "rtn", "gptq", "rtn", "gptq"]
    assert rows[1]["kl"] < rows[3]["kl"]
    cli.main(["eval", str(tiny_folder), "--text", str(text), "--json"])
    assert rows[0]["perplexity"] == pytest.approx(
        json.loads(capsys.readouterr().out)["perplexity"], rel=1e-5
    )
    page = out.read_text()
    self_contained(page)
    assert "gptq int2-channel" in page and "torch" in page
    assert cli.main([*arguments, *words]) == 0  # and once more, from the cache
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--html", "out.txt"], "ends in .html"),
        (["--html", "out.html", "--stride", "3"], "leave out --context"),
        (["--no-speed"], "add --html"),
        (["--html", "out.html", "--schemes", "int17"], "int17"),
    ],
)
def test_bad_options_are_refused(capsys, tiny_folder, text, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    code = cli.main(["compare", str(tiny_folder), "--text", str(text), *more])
    captured = capsys.readouterr()
    assert code == 2 and says in captured.err and not (tmp_path / "out.html").exists()
