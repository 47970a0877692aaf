"""vLLM's server beside qlab's on the same folders, as recorded (tools/record_vllm.py serve)."""

import json
from importlib import resources

import pytest

from tools.record_vllm import CONCURRENT, SERVED, common, summary
from tools.weights import weights_hash

RECORD = json.loads((resources.files("qlab") / "records" / "vllm_serve.json").read_text("utf-8"))
AGAIN = "run tools/record_vllm.py serve (see its top)"


def test_the_record_is_of_the_weights_that_are_shipped():
    assert RECORD["weights"] == weights_hash(), AGAIN
    assert set(RECORD["folders"]) <= set(SERVED) and "full" in RECORD["folders"], AGAIN


@pytest.mark.parametrize("name", list(RECORD["folders"]))
def test_batches_pay_and_qlabs_texts_are_the_same_in_any_company(name):
    row = RECORD["folders"][name]
    for n in CONCURRENT:
        assert row["qlab"][str(n)]["same_texts"] == RECORD["requests"]
        assert row["qlab"][str(n)]["repeats"]
    for server in ("vllm", "qlab"):
        assert row[server]["1"]["throughput"] == 1
        assert row[server]["16"]["throughput"] > 1


@pytest.mark.oracle(
    "server completions", "vLLM's server (recorded)", "greedy texts mostly in common"
)
def test_vllm_writes_what_qlab_writes():
    # In float32 both add the same numbers in other orders: only close decisions part them. In 16
    # bits vLLM rounds between the layers as well.
    assert RECORD["folders"]["full"]["text_in_common"] > 0.6


@pytest.mark.oracle(
    "server completions", "openai (recorded)", "its client reads answers and errors"
)
def test_openais_client_reads_what_the_server_writes():
    for found in RECORD["openai"].values():
        assert found["models"] and found["stream"] and found["usage"]
        assert len(found["errors"]) == 3 and all(found["errors"].values())


def test_what_is_recorded_is_computed_as_it_says():
    one = {"texts": ["aa", "bb"], "seconds": 4.0, "first": 1.0, "each": 0.5, "repeats": True}
    four = {"texts": ["aa", "bc"], "seconds": 2.0, "first": 3.0, "each": 1.0, "repeats": False}
    found = summary({1: one, 4: four})
    assert found["4"] == {
        "throughput": 2.0,
        "first_token": 3.0,
        "each_token": 2.0,
        "same_texts": 1,
        "repeats": False,
    }
    assert common("abcd", "abxyz") == 2 / 5 and common("", "") == 0
