"""Load a storyteller: the embedded one, a Hugging Face folder, or a model of the hub.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qlab.errors import QlabError
from qlab.story.hub import hub_answers
from qlab.story.stories import texts


@dataclass(frozen=True)
class Storyteller:
    """A causal language model with its tokenizer.

    Attributes:
        model: a transformers model in float32, on the CPU, in evaluation mode.
        tokenizer: its tokenizer; ``tokenizer(text)`` begins with BOS where the model has one.
        name: where it came from.
    """

    model: Any
    tokenizer: Any
    name: str

    def calibration(self, language: str = "en") -> list[Any]:
        """Token ids, int64 (1, length) each, of the stories kept for calibration."""
        context = int(getattr(self.model.config, "max_position_embeddings", 2048))
        return [
            self.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, :context]
            for text in texts("calibration", language)
        ]

    def validation(self, language: str = "en") -> list[str]:
        """Texts of the stories for choosing between configurations."""
        return texts("validation", language)

    def test(self, language: str = "en") -> list[str]:
        """Texts of the stories for the last number only."""
        return texts("test", language)


def load(source: str | Path | None = None) -> Storyteller:
    """Load a storyteller.

    Args:
        source: None or ``"story"`` for the embedded model (no network), a folder with
            ``config.json`` and safetensors, or a hub id such as ``"roneneldan/TinyStories-33M"``.

    Raises: QlabError, in one line, for a missing folder, a folder that is no model, weights that
        are cut or hold NaN, or a hub that cannot be reached.
    """
    if source is None or str(source) == "story":
        folder = Path(str(resources.files("qlab.story") / "data" / "storyteller"))
        return _load_folder(folder, "story")
    path = Path(source)
    if path.exists():
        return _load_folder(path, str(source))
    if str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        return _load_hub(str(source))
    raise QlabError(
        f"no file or folder at '{source}': check the path, or name a hub id as org/name"
    )


def _load_folder(path: Path, name: str) -> Storyteller:
    if not path.is_dir() or not (path / "config.json").is_file():
        raise QlabError(
            f"'{name}' is not a model folder: it needs config.json, tokenizer.json and "
            "*.safetensors, as save_pretrained writes them"
        )
    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise QlabError(f"'{name}': config.json is not valid JSON ({error})") from None
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise QlabError(f"'{name}' has no *.safetensors: convert its weights to safetensors first")
    check_safetensors(files)
    return _from_pretrained(str(path), name, local=True)


def _load_hub(name: str) -> Storyteller:
    try:
        # Without a network, a model that was fetched before still loads from the client's cache.
        return _from_pretrained(name, name, local=not hub_answers(name), hub=True)
    except QlabError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise QlabError(
            f"'{name}' is no local folder, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}): go online, check the name, or use the embedded 'story'"
        ) from None


def _from_pretrained(source: str, name: str, local: bool, hub: bool = False) -> Storyteller:
    import torch

    with _quiet_imports():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # What from_pretrained would import later, where its parts are heard.
        importlib.import_module("transformers.models.llama.modeling_llama")
    from transformers.utils import logging as transformers_logging

    # A bar for a model that loads in a second is noise in a chapter.
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=local,
            # Where peft is installed, transformers looks for an adapter too.
            adapter_kwargs={"local_files_only": local},
        )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except (ValueError, KeyError, OSError) as error:
        if hub:
            raise
        reason = str(error).splitlines()[0]
        raise QlabError(f"'{name}' could not be loaded by transformers: {reason}") from None
    return Storyteller(model.eval(), tokenizer, name)


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """Keep out of a chapter what transformers' optional parts say about parts of their own."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            yield
    finally:
        logging.disable(logging.NOTSET)


def check_safetensors(files: list[Path]) -> None:
    """Raise QlabError if a file is cut, is no safetensors file, or holds NaN or infinity."""
    import torch
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    tensor = tensors.get_tensor(key)
                    # torch has no isfinite for the float8 types; float32 holds all of them.
                    wide = tensor.float() if tensor.element_size() == 1 else tensor
                    if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
                        raise QlabError(
                            f"{file.name}: tensor '{key}' holds NaN or infinity: "
                            "the file is damaged or the training diverged; use other weights"
                        )
        except SafetensorError as error:
            raise QlabError(
                f"{file.name} is cut or is no safetensors file ({error}): copy it again"
            ) from None
