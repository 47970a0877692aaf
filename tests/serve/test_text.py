"""Pieces of text, joined, are the text; stop strings cut it wherever tokens end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.serve.text import TextStream


class Bytes:
    """A tokenizer whose tokens are bytes: characters are cut between tokens."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


words = st.text(st.sampled_from("ab\n é€😀"), max_size=24)


@settings(max_examples=200, deadline=None)
@given(prompt=words, text=words, stop=st.lists(st.text(st.sampled_from("ab é"), max_size=3)))
def test_pieces_are_the_text_up_to_the_first_stop(prompt, text, stop):
    stream = TextStream(Bytes(), list(prompt.encode()), stop)
    given_out = [stream.add(byte) for byte in text.encode()]
    given_out.append(stream.end())
    places = [text.find(s) for s in stop if s and s in text]
    expected = text[: min(places)] if places else text
    assert stream.stopped == bool(places)
    # Of several stop strings the one that is whole first counts; it may begin later than another.
    if len([s for s in stop if s]) <= 1:
        assert "".join(given_out) == stream.text == expected
    else:
        assert text.startswith(stream.text) and "".join(given_out) == stream.text
        assert not any(s and s in stream.text for s in stop)


def test_of_real_tokens(story):
    tokenizer = story.tokenizer
    for text in story.validation()[:5]:
        ids = tokenizer(text, verbose=False)["input_ids"]
        prompt, new = ids[:9], ids[9:]
        stream = TextStream(tokenizer, prompt)
        told = "".join([*(stream.add(token) for token in new), stream.end()])
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        assert before + told == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_that_never_ends_is_left_out():
    stream = TextStream(Bytes(), [97])
    assert [stream.add(b) for b in "é".encode()] == ["", "é"]
    assert stream.add(0xE2) == "" and stream.end() == "\ufffd"
