"""Telling: greedy is transformers' greedy, sampling follows its seed, bad openings are refused."""

import pytest
import torch

import qlab
import qlab.engine
from qlab.errors import QlabError
from qlab.story import load, tell
from qlab.story.telling import _choose, open_teller, stream

OPENING = "Once upon a time, there was a little fox named Pip. Pip had a red kite."


@pytest.fixture(scope="module")
def story():
    return load()


def test_the_opening_comes_first(story):
    told = tell(story.model, story.tokenizer, OPENING, 20)
    assert told.startswith(OPENING) and len(told) > len(OPENING) + 20


def test_greedy_is_always_the_same(story):
    one = tell(story.model, story.tokenizer, OPENING, 60)
    assert one == tell(story.model, story.tokenizer, OPENING, 60)
    assert one == tell(story.model, story.tokenizer, OPENING, 60, seed=9)


@pytest.mark.parametrize(
    "opening", [OPENING, "The", "A robot named Dot wanted to have a friend.", "One day"]
)
def test_greedy_is_that_of_transformers(story, opening):
    ids = story.tokenizer(opening, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = story.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_length=None,
            max_new_tokens=120,
            pad_token_id=story.tokenizer.pad_token_id,
        )
    theirs = story.tokenizer.decode(out[0], skip_special_tokens=True)
    assert tell(story.model, story.tokenizer, opening, 120) == theirs


@pytest.mark.parametrize("opening", [OPENING, "The king had a problem."])
def test_a_repetition_penalty_is_that_of_transformers(story, opening):
    ids = story.tokenizer(opening, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = story.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_length=None,
            max_new_tokens=80,
            repetition_penalty=1.15,
            pad_token_id=story.tokenizer.pad_token_id,
        )
    theirs = story.tokenizer.decode(out[0], skip_special_tokens=True)
    assert tell(story.model, story.tokenizer, opening, 80, repetition_penalty=1.15) == theirs
    assert tell(story.model, story.tokenizer, opening, 80) != theirs
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(QlabError, match="repetition_penalty"):
            tell(story.model, story.tokenizer, opening, repetition_penalty=bad)


def test_the_seed_decides_what_is_sampled(story):
    def sampled(seed, **options):
        options = {"temperature": 1.0, "seed": seed, **options}
        return tell(story.model, story.tokenizer, OPENING, 40, **options)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) == 4
    # One candidate is no choice.
    assert sampled(1, top_k=1) == tell(story.model, story.tokenizer, OPENING, 40)


def test_sampling_leaves_the_global_generator_alone(story):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tell(story.model, story.tokenizer, OPENING, 5, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_pieces_are_sampled_as_often_as_they_are_likely():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, 0), (0.5, 0), (2.0, 2)):
        kept = logits.clone()
        if top_k:
            kept[top_k:] = float("-inf")
        expected = torch.softmax(kept / temperature, 0)
        drawn = [_choose(logits.clone(), temperature, top_k, generator) for _ in range(4000)]
        share = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
        assert torch.allclose(share, expected, atol=0.03), (temperature, top_k)


@pytest.mark.parametrize("opening", ["", "   ", "\n\t"])
def test_an_empty_opening_is_refused(story, opening):
    with pytest.raises(QlabError, match="the opening is empty: give a few words"):
        tell(story.model, story.tokenizer, opening)


def test_an_opening_that_fills_the_context_is_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(QlabError, match=r"the opening has \d+ pieces and the context only 512"):
        tell(model, tokenizer, "the moon and the fox " * 300)


def test_a_story_ends_at_the_context(tiny):
    model, tokenizer = tiny
    opening = "the fox and the moon"
    told = tell(model, tokenizer, opening, 10_000, temperature=3.0)
    assert len(tokenizer(opening)["input_ids"]) < 512
    read = []
    forward = model.forward
    try:
        model.forward = lambda *a, **k: read.append(k["input_ids"].shape[1]) or forward(*a, **k)
        again = tell(model, tokenizer, opening, 10_000, temperature=3.0)
    finally:
        model.forward = forward
    assert again == told
    # The last piece is written, not read: never more than the context.
    assert sum(read) <= 511


def test_no_more_pieces_than_asked_for(story):
    for count in (1, 2, 7):
        told = tell(story.model, story.tokenizer, OPENING, count)
        new = len(story.tokenizer(told)["input_ids"]) - len(story.tokenizer(OPENING)["input_ids"])
        assert new == count


def test_a_story_stops_where_the_model_ends_it(story):
    """The end of story is never told, and nothing is told behind it."""
    told = tell(story.model, story.tokenizer, OPENING, 500)
    ids = story.tokenizer(told, return_tensors="pt")["input_ids"]
    assert story.tokenizer.eos_token not in told
    if ids.shape[1] < story.model.config.max_position_embeddings:
        with torch.no_grad():
            next_piece = int(story.model(ids).logits[0, -1].argmax())
        assert next_piece == story.tokenizer.eos_token_id


def test_a_quantized_model_tells(story):
    small, _ = qlab.quantize_model(story.model, "rtn", "int8-channel")
    told = tell(small, story.tokenizer, OPENING, 10)
    assert told.startswith(OPENING)
    assert told == tell(qlab.nn.dequantize_model(small), story.tokenizer, OPENING, 10)


@pytest.fixture(scope="module")
def engine(story):
    return qlab.engine.load(story)


@pytest.mark.parametrize("opening", [OPENING, "One day"])
def test_the_engine_tells_the_same_story(story, engine, opening):
    for how in ({}, {"repetition_penalty": 1.2}):
        told = tell(engine, story.tokenizer, opening, 60, **how)
        assert told == tell(story.model, story.tokenizer, opening, 60, **how)


def test_a_story_in_parts_is_the_story(story, engine):
    for model in (story.model, engine):
        for how in ({}, {"temperature": 1.0, "top_k": 20, "seed": 3, "repetition_penalty": 1.1}):
            parts = list(stream(model, story.tokenizer, OPENING, 40, **how))
            assert parts[0] == OPENING and len(parts) > 20
            assert "".join(parts) == tell(model, story.tokenizer, OPENING, 40, **how)


def test_a_character_in_pieces_is_told_whole():
    class Bytes:
        """Each byte a token."""

        eos_token_id = None

        def __call__(self, text):
            return {"input_ids": list(text.encode())}

        def decode(self, ids, **_):
            return bytes(ids).decode(errors="replace")

    class Writer:
        context, is_engine = 100, True

        def generate(self, ids, *_, **__):
            return iter(" höre, 狐".encode())

    parts = list(stream(Writer(), Bytes(), "ich"))
    assert "".join(parts) == "ich höre, 狐" and "狐" in parts and "ö" in parts


def test_an_opening_that_fills_the_engine_is_refused(story, engine):
    with pytest.raises(QlabError, match="the context only 512"):
        stream(engine, story.tokenizer, "the moon and the fox " * 300)
    with pytest.raises(QlabError, match="the opening is empty"):
        stream(engine, story.tokenizer, " ")


def test_the_engine_is_opened_where_it_knows_the_model(story, tmp_path):
    from qlab.gguf import to_gguf

    model, words = open_teller("story")
    assert type(model).__name__ == "Engine" and words.eos_token_id == story.tokenizer.eos_token_id
    to_gguf(story.model, story.tokenizer, tmp_path / "s.gguf", "q8_0")
    model, words = open_teller(tmp_path / "s.gguf")
    assert type(model).__name__ == "Engine"
    assert tell(model, words, OPENING, 5).startswith(OPENING)
    with pytest.raises(QlabError, match="no file or folder at"):
        open_teller("./nothing-here")


def test_a_model_that_the_engine_does_not_know_is_opened_too(tmp_path, tiny):
    import transformers as t

    config = t.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    t.GPT2LMHeadModel(config).save_pretrained(tmp_path / "g")
    tiny[1].save_pretrained(tmp_path / "g")
    model, words = open_teller(tmp_path / "g")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert tell(model, words, "the fox", 4).startswith("the fox")


@pytest.mark.parametrize("temperature", [float("nan"), float("inf")])
def test_a_temperature_that_is_no_number_is_refused(story, temperature):
    with pytest.raises(QlabError, match=r"temperature (nan|inf): 0"):
        tell(story.model, story.tokenizer, OPENING, 5, temperature=temperature)
