"""``qlab.load(SRC)``: anything that the command line calls SRC, as a model with its tokenizer."""

from __future__ import annotations

import importlib
from pathlib import Path

from qlab import story
from qlab.story.model import Storyteller, check_safetensors
from qlab.story.model import _quiet_imports as quiet_imports


def load(source: str | Path | None = None) -> Storyteller:
    """Load ``story``, a model folder of Hugging Face or qlab, a GGUF file, or a hub id.

    Folders in the formats of GPTQ, AWQ and compressed-tensors stay quantized; all else is floating
    point.

    Raises: QlabError, in one line, if it cannot.
    """
    from qlab.export.folder import is_quantized_folder, load_folder
    from qlab.export.foreign import foreign_format, load_foreign

    path = Path(source or "story")
    if path.is_file() or path.suffix == ".gguf":
        with quiet_imports():
            from qlab.gguf.load import load_gguf

            importlib.import_module("transformers.models.llama.modeling_llama")
        model, tokenizer = load_gguf(path)
        return Storyteller(model, tokenizer, str(source))
    own = str(path) != "story" and path.is_dir() and is_quantized_folder(path)
    if own or (str(path) != "story" and path.is_dir() and foreign_format(path)):
        from transformers import AutoTokenizer

        check_safetensors(sorted(path.glob("*.safetensors")))
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        return Storyteller((load_folder if own else load_foreign)(path), tokenizer, str(source))
    return story.load(source)
