"""What the tests of the server share."""

import numpy as np
import pytest


class ToyModel:
    """A model without weights, on real blocks: the next token is a hash of all tokens of the text,
    which it finds through the table. A block that is written by two texts, or read after it was
    given away, changes what comes out.
    """

    vocabulary = 97
    ends = (0,)

    def __init__(self, blocks, block_size, context=64):
        self.blocks, self.block_size, self.context = blocks, block_size, context
        self.memory = np.full((blocks, block_size), -1, np.int64)
        self.calls = []

    def copy(self, source, target):
        self.memory[target] = self.memory[source]

    def read(self, rows, tables, wanted):
        self.calls.append(rows.copy())
        size = self.block_size
        for token, text, position in rows:
            self.memory[tables[text, position // size], position % size] = token
        out = np.zeros((len(wanted), self.vocabulary), np.float32)
        for i, row in enumerate(wanted):
            _, text, position = rows[row]
            seen = [
                int(self.memory[tables[text, p // size], p % size]) for p in range(position + 1)
            ]
            out[i] = self.logits_after(seen)
        return out

    def logits_after(self, seen):
        """Of the tokens of a text, whatever the blocks are."""
        state = 1
        for token in seen:
            state = (state * 1_000_003 + token + 7) % (2**61 - 1)
        rng = np.random.default_rng(state)
        return rng.standard_normal(self.vocabulary).astype(np.float32)

    def alone(self, request):
        """What a request is answered, computed without blocks or batches (greedy)."""
        text, new = list(request.prompt), []
        ends = self.ends if request.stop is None else request.stop
        while len(new) < request.max_tokens:
            token = int(np.argmax(self.logits_after(text)))
            if token in ends:
                return new, "stop"
            text.append(token)
            new.append(token)
        return new, "length"


@pytest.fixture(scope="session")
def story():
    import qlab

    return qlab.story.load()


@pytest.fixture(scope="session")
def engine(story):
    import qlab.engine

    found = qlab.engine.load(story)
    found.threads = 1  # tests share the machine
    return found
