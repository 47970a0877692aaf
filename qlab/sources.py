"""``qlab.load(SRC)``: anything that the command line calls SRC, as a model with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from qlab import story
from qlab.story.model import Storyteller, check_safetensors


def load(source: str | Path | None = None) -> Storyteller:
    """Load ``story``, a Hugging Face folder, a folder that qlab quantized, or a hub id.

    Raises: QlabError, in one line, if it cannot.
    """
    from qlab.export.folder import is_quantized_folder, load_folder

    path = Path(source or "story")
    if str(path) != "story" and path.is_dir() and is_quantized_folder(path):
        from transformers import AutoTokenizer

        check_safetensors(sorted(path.glob("*.safetensors")))
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        return Storyteller(load_folder(path), tokenizer, str(source))
    return story.load(source)
