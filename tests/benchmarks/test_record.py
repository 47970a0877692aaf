"""What the book shows of the benchmarks is what their files say."""

import json

from qlab.kernels import recorded
from tests.scripts import load_script

record = load_script("benchmarks/record.py")


def test_the_record_is_made_of_the_results():
    told = json.loads(record.RECORD.read_text(encoding="utf-8"))
    assert told == record.record(), "run: python benchmarks/record.py"
    assert recorded.kernels() == told["kernels"] and recorded.engine() == told["engine"]


def test_it_takes_the_newest_with_the_most_threads(tmp_path):
    for name, date, threads in (
        ("a", "2026-01-02", 1),
        ("b", "2026-01-02", 2),
        ("c", "2026-01-01", 8),
    ):
        text = json.dumps({"date": date, "device": {"threads": threads}, "rows": []})
        (tmp_path / f"engine-{name}.json").write_text(text, encoding="utf-8")
    assert record.newest("engine-*.json", tmp_path)["device"]["threads"] == 2


def test_rows_are_those_with_a_peer():
    found = recorded.kernels()
    assert found["rows"] and found["bandwidth"] > 1e9
    for row in found["rows"]:
        assert "qlab" in row["cold"] and len(row["cold"]) > 1
        assert set(row["bytes"]) == set(row["hot"]) == set(row["cold"])
    for row in recorded.engine()["rows"]:
        assert row["qlab"] > 0 and row["peer"] > 0
