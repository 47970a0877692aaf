"""The file of configurations: what it may say, and what is refused."""

import pytest

import qlab
from qlab.gguf.mixes import MIXES
from qlab.methods import method_names
from qlab.study import Line, Settings, read_lines, read_settings
from qlab.study.lines import lines_of, lines_of_words


def test_the_book_s_lines_name_every_mix_and_each_width():
    lines = read_lines()
    assert lines[0] == Line("float32", "whole")
    made = {line.scheme for line in lines if line.kind == "mix"}
    assert made == set(MIXES) - {"f32"}  # the model as it is
    assert {line.kind for line in lines} == {"whole", "method", "mix", "mixed", "student"}
    for bits in (8, 6, 5, 4, 3, 2):
        assert any(line.method == "rtn" and f"int{bits}-" in line.scheme for line in lines), bits
    used = {line.method for line in lines if line.kind == "method"}
    assert used >= {"rtn", "gptq", "awq", "hqq", "nf4", "smoothquant", "llm_int8", "eetq"}
    assert used <= set(method_names())
    assert read_settings().texts >= 20


def test_a_line_becomes_what_it_says(tmp_path):
    file = tmp_path / "lines.toml"
    file.write_text(
        'lines = [ { name = "a", method = "rtn", scheme = "int4-g32" },\n'
        '  { name = "b", scheme = "q4_k_m", importance = true } ]\n'
        "[study]\ntexts = 5\n"
    )
    a, b = read_lines(file)
    assert (a.kind, a.family, a.scheme) == ("method", "RTN", "int4-g32")
    assert (b.kind, b.family, b.importance) == ("mix", "GGUF", True)
    assert read_settings(file) == Settings(texts=5)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "without a name"),
        ({"name": "a", "bits": 4}, "line 'a' has no 'bits'"),
        ({"name": "a", "method": "rtn", "scheme": 4}, "another type"),
        ({"name": "a", "method": "rtn", "scheme": "int4", "steps": True}, "another type"),
        ({"name": "a", "method": "magic", "scheme": "int4"}, "line 'a': unknown method"),
        ({"name": "a", "method": "rtn", "scheme": "int17"}, "line 'a'"),
        ({"name": "a", "scheme": "int4"}, "needs a method"),
        ({"name": "a", "method": "rtn"}, "needs a scheme"),
        ({"name": "a", "method": "rtn", "among": ["int4-g32"]}, "budget"),
        ({"name": "a", "steps": 3}, "steps without a scheme"),
    ],
)
def test_a_bad_line_is_named(table, says):
    with pytest.raises(qlab.QlabError, match=says):
        lines_of([table])


def test_bad_files_are_refused(tmp_path):
    twice = [{"name": "a"}, {"name": "a"}]
    with pytest.raises(qlab.QlabError, match="two lines are called 'a'"):
        lines_of(twice)
    with pytest.raises(qlab.QlabError, match="cannot be read"):
        read_lines(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("lines = [")
    with pytest.raises(qlab.QlabError, match="cannot be read"):
        read_lines(tmp_path / "bad.toml")
    for text, says in (("texts = 1", "at least 2"), ("text = 3", "no 'text'")):
        (tmp_path / "bad.toml").write_text(f"[study]\n{text}\n")
        with pytest.raises(qlab.QlabError, match=says):
            read_settings(tmp_path / "bad.toml")


def test_words_of_the_command_line_become_lines():
    lines = lines_of_words(["rtn", "hqq"], ["int4-g32", "q4_k_m", "iq2_m"])
    assert [line.name for line in lines] == [
        "as it is", "rtn int4-g32", "hqq int4-g32", "GGUF q4_k_m", "GGUF iq2_m",
    ]  # fmt: skip
    assert [line.importance for line in lines] == [False, False, False, False, True]
    with pytest.raises(qlab.QlabError, match="unknown method"):
        lines_of_words(["magic"], ["int4"])
