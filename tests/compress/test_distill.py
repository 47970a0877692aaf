"""Distillation: the loss, the cache, the student, and what training does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.compress import shallow_student, teacher_cache
from qlab.compress.distill import Lesson, TeacherCache, distill, divergence
from qlab.errors import QlabError
from qlab.training import TrainOptions, train
from tests.models import random_model


def ids_of(rows=6, length=16, vocabulary=100):
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 20),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 5.0]),
)
def test_merging_outcomes_never_raises_the_divergence(seed, k, temperature):
    g = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(5, 20, generator=g) * 2 for _ in range(2))
    logs = (p / temperature).log_softmax(-1)
    found = logs.topk(k, dim=-1)
    ours = float(divergence(q, found.indices, found.values, temperature))
    full = torch.nn.functional.kl_div(
        (q / temperature).log_softmax(-1), logs, reduction="batchmean", log_target=True
    )
    full = float(full) * temperature**2
    # The floor of the remainder, 1e-6, and float32 sums.
    assert -1e-4 <= ours <= full + 1e-4 * max(1, full)
    if k == 20:
        assert ours == pytest.approx(full, rel=1e-3, abs=1e-4)


def test_the_gradient_at_full_k_is_the_difference_of_probabilities():
    """d/dz of KL(p ‖ softmax z) is q - p, at temperature 1."""
    g = torch.Generator().manual_seed(0)
    p, z = torch.randn(4, 12, generator=g), torch.randn(4, 12, generator=g, requires_grad=True)
    logs, places = p.log_softmax(-1).topk(12, dim=-1)
    divergence(z, places, logs).backward()
    torch.testing.assert_close(4 * z.grad, z.softmax(-1) - p.softmax(-1), rtol=0, atol=1e-5)


def test_a_cache_keeps_what_the_teacher_says():
    model, ids = random_model("qwen2"), ids_of()
    cache = teacher_cache(model, ids, k=10, temperature=2.0, batch=4)
    logs = (model(ids).logits / 2).log_softmax(-1)
    best = logs.topk(10, dim=-1)
    torch.testing.assert_close(cache.logs.float(), best.values, rtol=1e-3, atol=1e-3)  # float16
    assert cache.places.shape == (6, 16, 10) and cache.temperature == 2.0
    assert cache.nbytes == 6 * 16 * (8 + 10 * (4 + 2))
    # The teacher itself has learned all there is to learn.
    assert float(divergence(model(ids).logits, cache.places, cache.logs, 2.0)) < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
def test_a_student_is_some_blocks_of_its_teacher(kind):
    model, ids = random_model(kind), ids_of()
    whole = shallow_student(model, [0, 1])
    torch.testing.assert_close(whole(ids).logits, model(ids).logits)
    one = shallow_student(model, [1])
    assert one.config.num_hidden_layers == 1 and model.config.num_hidden_layers == 2
    # With a cache, one token after the other, as at once: its places in the cache are right.
    with torch.no_grad():
        at_once = one(ids[:1]).logits
        past, parts = None, []
        for i in range(ids.shape[1]):
            out = one(ids[:1, i : i + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), at_once, rtol=1e-4, atol=1e-5)


def test_training_brings_the_student_nearer_and_repeats():
    model, ids = random_model("qwen2"), ids_of()
    cache = teacher_cache(model, ids, k=100)
    runs = []
    for _ in range(2):
        student = shallow_student(model, [1])
        before = float(divergence(student(ids).logits, cache.places, cache.logs))
        losses = distill(student, cache, steps=30, batch=4, rate=3e-3, seed=5)
        after = float(divergence(student(ids).logits, cache.places, cache.logs))
        assert len(losses) == 30 and after < 0.5 * before and not student.training
        runs.append(losses)
    assert runs[0] == runs[1]


def test_the_loop_is_that_of_the_paper_written_out():
    """The same numbers from a loop that shares nothing with qlab.training."""
    model, ids = random_model("qwen2"), ids_of()
    cache = teacher_cache(model, ids, k=20, temperature=2.0)
    student, other = shallow_student(model, [1]), shallow_student(model, [1])
    losses = distill(student, cache, steps=8, batch=4, rate=3e-3, warmup=2, hard=0.25, seed=7)
    lesson = Lesson(cache, 4, 7)
    matrices = [p for p in other.parameters() if p.ndim > 1]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    parameters = list(other.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0
    )
    for step in range(8):
        rising, done = min(1, (step + 1) / 3), max(0, step - 2) / 6
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rising * (1 + math.cos(math.pi * done)) / 2
        rows = lesson.rows(step)
        logits = other(input_ids=ids[rows]).logits[:, :-1]
        soft = divergence(logits, cache.places[rows, :-1], cache.logs[rows, :-1], 2.0)
        right = ids[rows][:, 1:].flatten()
        loss = 0.25 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), right) + 0.75 * soft
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert losses[step] == pytest.approx(float(loss.detach()), rel=1e-6)
    for p, q in zip(student.parameters(), parameters, strict=True):
        # Sums in another order (views of the logits); AdamW divides by the size of gradients.
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_cache_of_all_tokens_teaches_what_the_teacher_does():
    """train with the model itself as teacher, on the same rows."""
    model, ids = random_model("qwen2"), ids_of()
    model.lm_head.weight.data *= 20  # answers that are worth learning
    cache = teacher_cache(model, ids, k=100)
    cached, asked = shallow_student(model, [1]), shallow_student(model, [1])
    losses = distill(cached, cache, steps=6, batch=4, rate=3e-3)
    options = TrainOptions(steps=6, lr=3e-3, warmup=4, schedule="cosine", distill=1.0)
    rows = train(asked, Lesson(cache, 4, 0), options, teacher=model)
    # The cache keeps logarithms in float16: steps of 2^-7 for those between -16 and -8.
    assert losses == pytest.approx([row.loss for row in rows], rel=2e-2, abs=4e-3)
    assert losses[0] > 0.1


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), batch=st.integers(1, 30), seed=st.integers(0, 2**20))
def test_every_row_is_read_before_any_is_read_again(count, batch, seed):
    cache = TeacherCache(torch.arange(count)[:, None], torch.zeros(0), torch.zeros(0), 1.0)
    lesson = Lesson(cache, batch, seed)
    read = torch.cat([lesson.rows(step) for step in range(5)])
    for turn in range(len(read) // count):
        assert sorted(read[turn * count : (turn + 1) * count].tolist()) == list(range(count))
    assert torch.equal(lesson.rows(3), read[3 * batch : 4 * batch])


def test_hard_labels_alone_are_the_ordinary_loss():
    model, ids = random_model("qwen2"), ids_of(rows=4)
    cache = teacher_cache(model, ids)
    student = shallow_student(model, [0])
    expected = student(input_ids=ids, labels=ids).loss
    losses = distill(student, cache, steps=1, batch=4, hard=1.0)
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_layer():
    model, ids = random_model("qwen2"), ids_of()
    cache = teacher_cache(model, ids)
    student = shallow_student(model, [0])
    student.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(QlabError, match=r"nan at step 1:.*'model.layers.0.mlp.up_proj.weight'"):
        distill(student, cache, steps=3)


def test_bad_input_gets_one_clear_line():
    model, ids = random_model("qwen2"), ids_of()
    cache = teacher_cache(model, ids)
    assert isinstance(cache, TeacherCache)
    for call, says in (
        (lambda: teacher_cache(model, ids.float()), "expected token ids"),
        (lambda: teacher_cache(model, ids[0]), "expected token ids"),
        (lambda: teacher_cache(model, ids[:0]), "expected token ids"),
        (lambda: teacher_cache(model, ids, k=101), "100 tokens to choose from"),
        (lambda: teacher_cache(model, ids, temperature=0), "above 0"),
        (lambda: shallow_student(model, []), "among 2 blocks"),
        (lambda: shallow_student(model, [1, 0]), "among 2 blocks"),
        (lambda: shallow_student(model, [2]), "among 2 blocks"),
        (lambda: shallow_student(torch.nn.ReLU(), [0]), "no list of blocks"),
        (lambda: distill(model, cache, hard=2), "a share from 0 to 1"),
    ):
        with pytest.raises(QlabError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
