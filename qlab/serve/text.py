"""From tokens to text, piece by piece, up to a stop string.

A character may be cut between two tokens, and a stop string between several. What might still
change is held back.

Chapter: Serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BEFORE = 8  # tokens that are decoded again with new ones: a word may begin in the one before


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: of the model.
        prompt: its token ids; they are not part of the text.
        stop: strings at which the text ends; they are not part of it.

    Attributes:
        text: what has been given so far.
        stopped: whether a stop string came.

    Chapter: Serving.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [s for s in stop if s]
        self._ids = list(prompt[-BEFORE:])
        self._known = len(self._ids)  # tokens whose text is whole
        self._held = ""
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        start = max(0, self._known - BEFORE)
        before = self._decode(self._ids[start : self._known])
        after = self._decode(self._ids[start:])
        # U+FFFD stands for bytes that are no whole character yet.
        if after.endswith("\ufffd") or not after.startswith(before):
            return ""
        self._known = len(self._ids)
        return self._give(after[len(before) :], False)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        start = max(0, self._known - BEFORE)
        before = self._decode(self._ids[start : self._known])
        after = self._decode(self._ids[start:])
        return self._give(after[len(before) :] if after.startswith(before) else "", True)

    def _give(self, more: str, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + more
        found = [held.find(s) for s in self._stop if s in held]
        if found:
            self.stopped, held, keep = True, held[: min(found)], 0
        else:
            # The longest end of the text that a stop string begins with.
            lengths = (n for s in self._stop for n in range(1, len(s)) if held.endswith(s[:n]))
            keep = 0 if last else max(lengths, default=0)
        given, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += given
        return given

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
