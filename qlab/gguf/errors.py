"""The error of this room."""

from __future__ import annotations

from qlab.errors import QlabError


class GGUFError(QlabError):
    """A GGUF file, or a piece of one, that is not what the format says.

    Attributes:
        offset: where in the file, in bytes from its start; None where there is no file.
    """

    def __init__(self, message: str, offset: int | None = None) -> None:
        self.offset = offset
        super().__init__(message if offset is None else f"{message} (at byte {offset})")
