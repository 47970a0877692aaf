"""Perplexity against a plain loop over transformers, on small random models."""

import math

import pytest
import torch

import qlab
from qlab.evaluate import divergence, model_size, overlap, score_texts, tokens_per_second
from qlab.evaluate.perplexity import cut

TEXTS = [
    "Once upon a time there was a fox who could not whistle.",
    "The moon was cold. " * 30,
    "Hi!",
]


def plain_perplexity(model, tokenizer, text, context, stride):
    """The loop of transformers' guide, with BOS at the start of each window."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    nll, count, done = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + context - 1, len(ids))
        window = torch.tensor([[tokenizer.bos_token_id, *ids[start:end]]])
        labels = window.clone()
        labels[:, : 1 + max(0, done - start)] = -100
        with torch.no_grad():
            logits = model(window).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
        nll, count, done = nll + float(loss), count + int((labels[0, 1:] >= 0).sum()), end
        if end == len(ids):
            break
    return nll, count


@pytest.mark.parametrize(("context", "stride"), [(512, 511), (64, 63), (64, 16), (33, 1), (2, 1)])
def test_equals_a_plain_loop(tiny, context, stride):
    model, tokenizer = tiny
    texts = TEXTS[:1] + TEXTS[2:] if stride == 1 else TEXTS
    parts = [plain_perplexity(model, tokenizer, t, context, stride) for t in texts]
    expected = math.exp(sum(p[0] for p in parts) / sum(p[1] for p in parts))
    ours = qlab.perplexity(model, tokenizer, texts, context, stride)
    assert ours == pytest.approx(expected, rel=1e-6)


def test_every_token_is_scored_once(tiny):
    _, tokenizer = tiny
    ids = tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"]
    for context, stride in ((64, None), (64, 10), (17, 16), (512, None)):
        windows = cut(tokenizer, TEXTS[1], context, stride)
        scored = [i for w in windows for i in w.ids[len(w.ids) - w.scored :]]
        assert scored == ids


def test_batching_does_not_change_the_result(tiny):
    model, tokenizer = tiny
    one = qlab.perplexity(model, tokenizer, TEXTS, 64, batch=1)
    many = qlab.perplexity(model, tokenizer, TEXTS, 64, batch=16)
    assert one == pytest.approx(many, rel=1e-6)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny):
    model, tokenizer = tiny
    zeroed = qlab.nn.copy.deepcopy(model)
    torch.nn.init.zeros_(zeroed.get_output_embeddings().weight)
    assert qlab.perplexity(zeroed, tokenizer, TEXTS) == pytest.approx(
        model.config.vocab_size, rel=1e-6
    )


def test_bad_input_is_refused(tiny):
    model, tokenizer = tiny
    for bad in ([], [""], ["  "], ["a", ""]):
        with pytest.raises(qlab.QlabError, match="empty text"):
            qlab.perplexity(model, tokenizer, bad)
    with pytest.raises(qlab.QlabError, match="takes 2 to 512"):
        qlab.perplexity(model, tokenizer, TEXTS, context=513)
    with pytest.raises(qlab.QlabError, match="stride 0"):
        qlab.perplexity(model, tokenizer, TEXTS, 64, stride=0)
    with pytest.raises(qlab.QlabError, match="stride 64"):
        qlab.perplexity(model, tokenizer, TEXTS, 64, stride=64)


def test_divergence_is_zero_for_the_same_model_and_grows_with_fewer_bits(tiny):
    model, tokenizer = tiny
    same = divergence(model, model, tokenizer, TEXTS)
    assert same.kl == pytest.approx(0, abs=1e-9) and same.agreement == 1
    kls = []
    for bits in (8, 4, 2):
        small, _ = qlab.quantize_model(model, "rtn", f"int{bits}-channel")
        kls.append(divergence(model, small, tokenizer, TEXTS).kl)
    assert 0 < kls[0] < kls[1] < kls[2]
    with pytest.raises(qlab.QlabError, match="no text"):
        divergence(model, model, tokenizer, [])


def test_size_counts_tied_tensors_once_and_metadata(tiny):
    model, _ = tiny
    before = model_size(model)
    assert before.quantized == 0 and before.bits_per_weight is None
    assert before.total == sum(p.numel() for p in model.parameters()) * 4
    small, report = qlab.quantize_model(model, "rtn", "int4-g32")
    after = model_size(small)
    linear = sum(m.weight.numel() for _, m in qlab.nn.linear_layers(model))
    assert after.weights == linear
    assert after.bits_per_weight == 4 + 32 / 32
    assert after.rest == before.total - linear * 4
    assert len(report.layers) == len(list(qlab.nn.linear_layers(model)))


def test_speed_is_a_positive_number(tiny):
    assert tokens_per_second(tiny[0], tokens=2, repeats=1) > 0


def test_overlap_of_equal_and_disjoint_texts():
    same = overlap(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same.rouge1 == same.rougeL == 1 and same.bleu == pytest.approx(100)
    none = overlap(["red blue green pink"], ["one two three four"])
    assert none.rouge1 == 0 and none.bleu < 20
    # 3 of 4 words in order: precision = recall = 3/4.
    some = overlap(["a b c d"], ["a b c e"])
    assert some.rougeL == pytest.approx(0.75)
    with pytest.raises(qlab.QlabError, match="2 predictions for 1"):
        overlap(["a", "b"], ["a"])


def test_scores_of_texts_add_up(tiny):
    model, tokenizer = tiny
    scores = score_texts(model, tokenizer, TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        single = math.exp(score.nll / score.tokens)
        assert single == pytest.approx(qlab.perplexity(model, tokenizer, text), rel=1e-6)
