"""The settings of a training run, read from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qlab.errors import QlabError

DEFAULT = Path(__file__).with_name("config.toml")


@dataclass(frozen=True)
class ModelSettings:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    context: int


@dataclass(frozen=True)
class TrainingSettings:
    seed: int
    steps: int
    batch: int
    sequence: int
    warmup: int
    decay: float
    muon_lr: float
    muon_weight_decay: float
    adamw_lr: float
    feature_limit: float
    evaluate_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class Settings:
    """Everything a run is determined by, besides the corpora given on the command line."""

    model: ModelSettings
    vocab_size: int
    shares: dict[str, float]
    training: TrainingSettings


def read_settings(path: str | Path = DEFAULT) -> Settings:
    """Read a configuration file.

    Raises: QlabError naming a missing file, an unknown key or a missing one.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QlabError(f"no configuration file at {path}: start from {DEFAULT}") from None
    except tomllib.TOMLDecodeError as error:
        raise QlabError(f"{path} is not valid TOML: {error}") from None
    try:
        return Settings(
            _section(ModelSettings, raw["model"], "model"),
            _number(raw["tokenizer"]["vocab_size"], "int", "tokenizer", "vocab_size"),
            {str(k): _number(v, "float", "data", k) for k, v in raw["data"].items()},
            _section(TrainingSettings, raw["training"], "training"),
        )
    except KeyError as error:
        raise QlabError(f"{path}: section or key {error} is missing; see {DEFAULT}") from None


def _section(kind: type, raw: dict[str, Any], name: str) -> Any:
    known = {f.name: str(f.type) for f in fields(kind)}
    if unknown := set(raw) - set(known):
        raise QlabError(f"[{name}] has unknown keys: {', '.join(sorted(unknown))}")
    if missing := set(known) - set(raw):
        raise QlabError(f"[{name}] lacks: {', '.join(sorted(missing))}")
    return kind(**{k: _number(v, known[k], name, k) for k, v in raw.items()})


def _number(value: Any, kind: str, section: str, key: str) -> Any:
    """The value as an int or a float; a number with a fraction is no int."""
    allowed = (int,) if kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        wanted = "a whole number" if kind == "int" else "a number"
        raise QlabError(f"[{section}] {key} = {value!r}: expected {wanted}")
    return float(value) if kind == "float" else value
