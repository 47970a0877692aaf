"""Detours: where the storyteller goes in circles, and the world's way on from there."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import qlab
from qlab.story.bridges import Bridges, Opening, cuts_of
from qlab.story.detours import OWN, Detours, before_circle, unlearned
from qlab.story.stories import texts
from qlab.story.train import learned
from qlab.story.world import generate, split_sentences


@pytest.fixture(scope="module")
def story():
    return qlab.story.load()


@pytest.fixture(scope="module")
def bridges(story):
    return Bridges(texts("train")[:300], story.tokenizer)


@pytest.mark.parametrize(
    ("told", "before"),
    [
        ("He sat down. The fox was red. He sat down. He got up.", 2),
        ("The fox ran. The moon came up over the old wood. He saw the moon come up over the", None),
        ("He ran. The moon came up over the wood. And the moon came up over the hill.", 2),
        ("He ran. She will be the one who will be the one who will be the one who", 1),
        ("on and on and on and on and on and on and on and on", 0),
        ('"No." "Yes." "No." "Yes." He left.', None),  # a short answer may be given twice
        ('"Go away!" said Tom. "go away," said Tom. Then he went.', 1),
        ("", None),
        ("He sat", None),
    ],
)
def test_a_circle_begins_where_something_is_said_again(told, before):
    found = before_circle(told)
    assert found == (None if before is None else split_sentences(told)[:before])


@given(seed=st.integers(0, 2**32), again=st.integers(0, 3))
def test_a_story_with_a_sentence_said_again_is_cut_before_it(seed, again):
    told = split_sentences(generate(seed).text)
    # A plot may repeat itself on purpose, and a short answer may be given twice.
    assume(before_circle(" ".join(told)) is None and len(told[again].split()) >= 3)
    found = before_circle(" ".join([*told[:6], told[again], *told[6:]]))
    assert found == told[:6]


def test_most_stories_of_the_world_do_not_go_in_circles():
    found = [before_circle(generate(seed).text) for seed in range(200)]
    assert sum(f is None for f in found) > 150


class Parrot:
    """Says what it is told to, whatever it is asked."""

    training, device = True, "cpu"

    def __init__(self, tokenizer, say):
        self.ids = tokenizer(say, add_special_tokens=False, return_tensors="pt").input_ids
        self.modes = []

    def eval(self):
        self.modes.append("eval")

    def train(self, mode):
        self.modes.append(mode)

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, self.ids.expand(len(input_ids), -1)], 1)


def test_its_own_sentences_are_read_before_the_world_and_not_learned(story, bridges):
    detours = Detours(bridges, story.tokenizer)
    parrot = Parrot(story.tokenizer, " The soup was green. I like tea. I like tea. I like tea.")
    assert detours.renew(parrot, np.random.default_rng(0), 20) == 1
    assert parrot.modes == ["eval", True]  # the mode that it had
    assert {own for _, own in detours.found} == {("The soup was green.", "I like tea.")}
    opening, own, told = detours.parts(np.random.default_rng(1))
    assert own == " The soup was green. I like tea." and len(split_sentences(told)) > 5
    assert "soup" not in opening

    row = detours(np.random.default_rng(2), 300)
    assert len(row) == 300 and row == detours(np.random.default_rng(2), 300)
    ids, labels = learned(torch.tensor([row]))
    assert "The soup was green. I like tea." in story.tokenizer.decode(ids[0])
    kept = labels[0] >= 0
    assert torch.equal(labels[0][kept], ids[0][kept]) and set(labels[0][~kept].tolist()) == {-100}
    assert set(story.tokenizer.decode(ids[0][~kept]).replace("I like", "").split()) == {
        *"The soup was green. tea.".split()
    }
    # Cut into pieces as one text would be: that is how a reader's story is cut.
    first = row[: row.index(story.tokenizer.eos_token_id)]
    whole = story.tokenizer(story.tokenizer.decode(learned(torch.tensor(first))[0][1:]))
    assert learned(torch.tensor(first))[0].tolist() == whole["input_ids"]


def test_what_is_only_read_has_no_part_in_the_loss(tiny):
    model, _ = tiny
    row = torch.tensor([[1, 40, 41, 42, 43, 44, 45, 46]])
    marked = row.clone()
    marked[0, 3:6] = torch.tensor(unlearned(row[0, 3:6].tolist()))
    ids, labels = learned(marked)
    assert torch.equal(ids, row)
    logits = model(input_ids=row).logits[0, :-1]
    each = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")
    expected = each[[0, 1, 5, 6]].mean()
    assert model(input_ids=ids, labels=labels).loss.item() == pytest.approx(expected.item(), 1e-6)


def test_who_goes_in_circles_late_or_never_needs_no_detour(story, bridges):
    detours = Detours(bridges, story.tokenizer)
    late = "One was here. Two were here. Three were here. Four were here. Five were here. Six came."
    for say in (f" {late} One was here.", f" {late}"):
        assert detours.renew(Parrot(story.tokenizer, say), np.random.default_rng(0), 10) == 0
        assert detours.found == []
    assert len(split_sentences(late)) > OWN
    # Then its rows are bridges.
    joined = "".join(detours.parts(np.random.default_rng(3)))
    assert joined == bridges.story(np.random.default_rng(3))


def test_the_storyteller_is_asked_greedily(story, bridges):
    detours = Detours(bridges, story.tokenizer)
    shares = [detours.renew(story.model, np.random.default_rng(5), 40) for _ in range(2)]
    assert shares[0] == shares[1] < 1
    assert not story.model.training


def test_an_opening_ends_where_no_quotation_is_open():
    opening = Opening(
        ("Tom sat.", '"Where is it?', 'I had it," said Tom.', "He got up."), "Tom", "he"
    )
    assert cuts_of(opening) == [1, 3, 4]
