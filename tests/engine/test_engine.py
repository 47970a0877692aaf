"""The engine computes what transformers computes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
import qlab.engine
from qlab.errors import QlabError
from tests.gguf.seeded_models import PROMPTS

from .conftest import make

# float32 sums in another order: a few of the last bits of numbers of the size of the logits.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def draw(seed, count, vocabulary=131):
    return np.random.default_rng(seed).integers(0, vocabulary, count)


@torch.no_grad()
def reference(model, ids):
    return model(torch.as_tensor(ids)[None]).logits[0].numpy()


@torch.no_grad()
def greedy(model, ids, count, penalty=1.0):
    """What transformers would write, and how far the second-likeliest token was behind."""
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    fewer = RepetitionPenaltyLogitsProcessor(penalty)
    new, gaps = [], []
    out = model(torch.as_tensor(ids)[None], use_cache=True)
    for _ in range(count):
        told = torch.tensor([[*ids, *new]])
        top = fewer(told, out.logits[:, -1].clone())[0].topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        new.append(int(top.indices[0]))
        step = torch.tensor([[new[-1]]])
        out = model(step, past_key_values=out.past_key_values, use_cache=True)
    return new, gaps


@pytest.mark.oracle("engine logits", "transformers", "equal to 1e-4")
def test_logits_of_all_architectures(any_model):
    engine = qlab.engine.load(any_model)
    ids = draw(1, 97)
    np.testing.assert_allclose(engine.logits(ids), reference(any_model, ids), **CLOSE)


def test_states_between_layers(any_model):
    ids = draw(2, 40)
    with torch.no_grad():
        theirs = any_model(torch.as_tensor(ids)[None], output_hidden_states=True).hidden_states
    ours = qlab.engine.load(any_model).states(ids)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):  # theirs is normalized at the end
        np.testing.assert_allclose(a, b[0].numpy(), **CLOSE)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 90), max_size=4))
def test_a_prompt_may_be_read_in_any_pieces(seed, cuts):
    engine = _tiny_engine()
    ids = draw(seed, 100)
    edges = sorted({0, *cuts, 100})
    cache = engine.cache(100)
    parts = [engine.logits(ids[a:b], cache) for a, b in itertools.pairwise(edges)]
    # Of float weights, many tokens are summed in another order than one.
    np.testing.assert_allclose(np.concatenate(parts), engine.logits(ids), **CLOSE)


_found = {}


def _tiny_engine():
    if "tiny" not in _found:
        _found["tiny"] = qlab.engine.load(make("llama"))
    return _found["tiny"]


@pytest.mark.oracle(
    "engine greedy tokens", "transformers", "the same for 200 tokens of ten prompts but at ties"
)
def test_greedy_tokens_are_those_of_transformers_for_ten_prompts(story):
    engine = qlab.engine.load(story)
    for prompt in PROMPTS:
        ids = story.tokenizer(prompt)["input_ids"]
        theirs, gaps = greedy(story.model, ids, 200)
        ours = list(engine.generate(ids, 200, stop=()))
        if ours != theirs:  # only where the decision is closer than rounding
            first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            assert gaps[first] < 2e-4, (prompt, first, gaps[first])


@pytest.mark.oracle(
    "engine repetition penalty",
    "transformers",
    "the same for 200 tokens of ten prompts but at ties",
)
def test_the_repetition_penalty_is_that_of_transformers(story):
    engine, changed = qlab.engine.load(story), 0
    for prompt in PROMPTS:
        ids = story.tokenizer(prompt)["input_ids"]
        theirs, gaps = greedy(story.model, ids, 200, penalty=1.15)
        ours = list(engine.generate(ids, 200, repetition_penalty=1.15, stop=()))
        changed += ours != list(engine.generate(ids, 200, stop=()))
        if ours != theirs:
            first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            assert gaps[first] < 2e-4, (prompt, first, gaps[first])
    assert changed == len(PROMPTS)


@pytest.mark.oracle("engine perplexity", "transformers", "equal to 1e-5, with float inputs")
def test_perplexity_is_that_of_transformers(story):
    texts = story.validation()[:6]
    engine = qlab.engine.load(story)
    theirs = qlab.perplexity(story.model, story.tokenizer, texts)
    assert engine.perplexity(texts) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("bad", [[131], [-1], [0, 5, 10**9], [-(2**40)]])
def test_a_token_out_of_range(bad):
    engine = _tiny_engine()
    for read in (engine.prefill, engine.logits, lambda ids: next(engine.generate(ids, 4))):
        with pytest.raises(QlabError, match=r"token -?\d+: this model knows 0 to 130"):
            read(bad)


@pytest.mark.parametrize("bad", [[], [[1, 2], [3, 4]], [1.5], "abc", None, [True]])
def test_what_is_no_list_of_tokens(bad):
    with pytest.raises(QlabError, match="token ids of shape"):
        _tiny_engine().prefill(bad)


def test_a_context_that_overflows():
    engine = _tiny_engine()
    with pytest.raises(QlabError, match="200 tokens after 0: the cache has room for 100"):
        engine.prefill(draw(0, 200), engine.cache(100))
    with pytest.raises(QlabError, match="this engine takes 1 to 256"):
        engine.prefill(draw(0, 257))
    with pytest.raises(QlabError, match="200 tokens of prompt and 57 new ones: this engine"):
        engine.generate(draw(0, 200), 57)
    assert len(list(engine.generate(draw(0, 200), 56))) == 56
    cache = engine.cache(10)
    engine.prefill([1] * 10, cache)
    with pytest.raises(QlabError, match="1 tokens after 10: the cache has room for 10"):
        engine.prefill([1], cache)
    assert cache.lengths == [10]  # what failed took no room


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 1.0, "top_k": -1}, "top_k -1"),
        ({"temperature": 1.0, "top_k": 1.5}, "top_k 1.5"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p nan"),
        ({"temperature": 1.0, "min_p": 1.1}, "min_p 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"cache": "fp16"}, "a cache of kind 'fp16'"),
    ],
)
def test_settings_that_make_no_sense_are_said_at_once(bad, said):
    with pytest.raises(QlabError, match=said):
        _tiny_engine().generate([1, 2], **bad)


def test_models_that_the_engine_does_not_know():
    from tests.models import random_model

    with pytest.raises(QlabError, match="does not know models of type 'gpt2': it computes llama"):
        qlab.engine.load(random_model("gpt2"))
    with pytest.raises(QlabError, match="an engine of a list"):
        qlab.engine.load([1])
    with pytest.raises(QlabError, match="RoPE of kind 'yarn'"):
        make_config = make("llama").config
        make_config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
        from qlab.engine.sizes import from_config

        from_config(make_config)
    with pytest.raises(QlabError, match="hidden_act 'gelu'"):
        qlab.engine.load(make("llama", hidden_act="gelu"))
    with pytest.raises(QlabError, match="sliding_attention"):
        qlab.engine.load(make("qwen2", use_sliding_window=True, max_window_layers=1))


def test_a_window_bounds_the_context_of_a_mistral():
    model = make("mistral", sliding_window=50)
    engine = qlab.engine.load(model)
    assert engine.context == 50
    ids = draw(3, 50)
    np.testing.assert_allclose(engine.logits(ids), reference(model, ids), **CLOSE)
