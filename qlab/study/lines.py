"""The configurations of the case study: one line of a TOML file each.

Chapter: The case study, whole.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from qlab.errors import QlabError

KINDS = ("whole", "method", "mix", "mixed", "student")


@dataclass(frozen=True)
class Line:
    """One configuration.

    Attributes:
        name: what tables show; unique.
        family: rows of a family are drawn alike; default: the method, or GGUF.
        method: a name of ``qlab.methods``; "" for a mix of GGUF, a student, or the model as it is.
        scheme: such as ``int4-g128-sfp16``, or a mix of GGUF such as ``q4_k_m``; "" for the model
            as it is.
        activations: scheme of the layers' inputs, such as ``int8-token``; "" leaves them.
        importance: for a mix: compute an importance matrix on the calibration texts.
        among: mixed precision: the schemes that layers choose from, by ``method``.
        budget: mixed precision: bits per weight that all layers together may take.
        steps: a student: so many steps of training with rounding in the loop; 0 is no training.
        lr, seed: of the training.
    """

    name: str
    family: str = ""
    method: str = ""
    scheme: str = ""
    activations: str = ""
    importance: bool = False
    among: tuple[str, ...] = ()
    budget: float = 0.0
    steps: int = 0
    lr: float = 5e-4
    seed: int = 0

    @property
    def kind(self) -> str:
        """One of ``KINDS``: what makes the model."""
        if self.among:
            return "mixed"
        if self.steps:
            return "student"
        if not self.scheme:
            return "whole"
        return "method" if self.method else "mix"


@dataclass(frozen=True)
class Settings:
    """What all rows of a study share.

    Attributes:
        texts: how many validation texts are scored.
        openings: how many of them are continued after their second sentence.
        world: how many stories of the world are continued for the consistency score.
        tokens: length of each continuation, in pieces.
        calibration: how many calibration texts methods and importance matrices see.
    """

    texts: int = 42
    openings: int = 16
    world: int = 16
    tokens: int = 64
    calibration: int = 16


def read_lines(path: str | Path | None = None) -> list[Line]:
    """The lines of a file; default: those of the storyteller's case study.

    Raises: QlabError, naming the line, for an unknown key, a value of another type, a name that
        stands twice, or a line that says nothing that can be made.

    Chapter: The case study, whole.
    """
    return lines_of(_read(path).get("lines", []))


def read_settings(path: str | Path | None = None) -> Settings:
    """``[study]`` of the same file. Raises: QlabError for an unknown key or a bad number."""
    found = _read(path).get("study", {})
    known = {f.name for f in fields(Settings)}
    for key, value in found.items():
        if key not in known:
            raise QlabError(f"[study] has no '{key}': there are {', '.join(sorted(known))}")
        least = 0 if key == "world" else 2
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise QlabError(f"[study] {key} = {value!r}: a whole number, at least {least}")
    return Settings(**found)


def lines_of(tables: Sequence[dict[str, Any]]) -> list[Line]:
    """Lines of what a TOML file says. Raises: QlabError as ``read_lines`` does."""
    lines = [_line(table) for table in tables]
    names = [line.name for line in lines]
    if twice := [n for n in names if names.count(n) > 1]:
        raise QlabError(f"two lines are called '{twice[0]}': give each a name of its own")
    return lines


def lines_of_words(methods: Sequence[str], schemes: Sequence[str]) -> list[Line]:
    """The model as it is, then each method in each scheme; a mix of GGUF once, without a method.

    Raises: QlabError for unknown words.
    """
    from qlab.core import Scheme
    from qlab.gguf.mixes import get_mix, is_mix
    from qlab.methods import get_method

    tables: list[dict[str, Any]] = [{"name": "as it is"}]
    for word in dict.fromkeys(schemes):
        if is_mix(word):
            mix = get_mix(word).name
            # GGUF refuses these without an importance matrix.
            need = mix.startswith(("iq1", "iq2", "iq3", "q2_k_s"))
            tables.append({"name": f"GGUF {mix}", "scheme": mix, "importance": need})
            continue
        for method in dict.fromkeys(methods):
            name = get_method(method).name
            scheme = Scheme.parse(word).name
            tables.append({"name": f"{name} {scheme}", "method": name, "scheme": scheme})
    return lines_of(tables)


def _read(path: str | Path | None) -> dict[str, Any]:
    try:
        if path is None:
            text = (resources.files("qlab.study") / "storyteller.toml").read_text("utf-8")
        else:
            text = Path(path).read_text("utf-8")
        return tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise QlabError(f"the lines of '{path}' cannot be read: {error}") from None


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "family", "method", "scheme", "activations"), (str,)),
    "importance": (bool,),
    "among": (list, tuple),
    "budget": (int, float),
    "steps": (int,),
    "lr": (float,),
    "seed": (int,),
}


def _line(table: dict[str, Any]) -> Line:
    name = table.get("name")
    if not isinstance(name, str) or not name.strip():
        raise QlabError(f"a line without a name: {table}")
    for key, value in table.items():
        if key not in _TYPES:
            raise QlabError(f"line '{name}' has no '{key}': there are {', '.join(_TYPES)}")
        wrong_bool = isinstance(value, bool) and key != "importance"
        if not isinstance(value, _TYPES[key]) or wrong_bool:
            raise QlabError(f"line '{name}': {key} = {value!r} is of another type")
    line = Line(**{**table, "among": tuple(table.get("among", ()))})
    _check(line)
    family = line.family or _FAMILIES.get(line.kind) or line.method.upper()
    return Line(**{**line.__dict__, "family": family})


_FAMILIES = {"whole": "whole", "mix": "GGUF", "mixed": "mixed", "student": "student"}


def _check(line: Line) -> None:
    """What can be told without a model. Raises: QlabError."""
    from qlab.core import Scheme
    from qlab.gguf.mixes import get_mix, is_mix
    from qlab.methods import get_method

    said = f"line '{line.name}'"
    try:
        if line.method:
            get_method(line.method)
        for word in (*line.among, *filter(None, (line.activations,))):
            Scheme.parse(word)
        if line.kind == "mix":
            get_mix(line.scheme) if is_mix(line.scheme) else Scheme.parse(line.scheme)
        elif line.scheme:
            Scheme.parse(line.scheme)
    except QlabError as error:
        raise QlabError(f"{said}: {error}") from None
    if line.kind == "mix" and not is_mix(line.scheme):
        raise QlabError(f"{said}: scheme '{line.scheme}' needs a method, such as rtn")
    if line.kind == "mixed" and (line.budget <= 0 or not line.method):
        raise QlabError(f"{said}: among needs a method, and a budget in bits per weight")
    if line.kind == "student" and not line.scheme:
        raise QlabError(f"{said}: steps without a scheme to train for")
    if line.kind == "whole" and line.method:
        raise QlabError(f"{said}: method '{line.method}' needs a scheme")
