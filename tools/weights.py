"""Which weights of the storyteller a record is of. Needs nothing but Python."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parents[1] / "qlab/story/data/storyteller/model.safetensors"


def weights_hash() -> str:
    """SHA-256 of the storyteller's weights as they are shipped."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
