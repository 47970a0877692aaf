"""The registry of methods: how codes are chosen for a scheme.

A method is a function of a weight, what calibration learned of its inputs, a scheme, and options of
its own. Each lives in a file of its own and registers itself with ``@register``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from qlab.core import QTensor
from qlab.errors import QlabError

# name -> module; importing the module registers the method.
_MODULES = {
    "autoround": "qlab.methods.autoround",
    "awq": "qlab.methods.awq",
    "eetq": "qlab.methods.eetq",
    "gptq": "qlab.methods.gptq",
    "hqq": "qlab.methods.hqq",
    "kmeans": "qlab.methods.kmeans",
    "llm_int8": "qlab.methods.llm_int8",
    "mse": "qlab.methods.mse",
    "nf4": "qlab.methods.nf4",
    "obq": "qlab.methods.obq",
    "rotation": "qlab.methods.rotation",
    "rtn": "qlab.methods.rtn",
    "smoothquant": "qlab.methods.smoothquant",
    "vq": "qlab.methods.vq",
}


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: what a reader types, such as ``gptq``.
        quantize: (weight (out_features, in_features), stats or None, scheme, options) -> QTensor.
        needs_calibration: whether ``stats`` may not be None.
        options: the frozen dataclass of its options; ``options()`` gives the defaults.
        source: the paper, with section and arXiv id.
        chapter: file name of the chapter that explains it, without ending.
        takes_params: whether ``quantize`` takes ``params``, a scale and a zero point that were
            fitted to the whole model (granularity ``global``).
        needs: what ``stats`` (a ``qlab.calibrate.LayerInputs``) must hold: ``hessian``, ``sample``,
            ``cross``; or a function of the options that says so.
        prepare: changes the whole model before any layer is quantized, so that it computes the
            same and quantizes better: (model, calibration, scheme, options, *, skip, progress) ->
            layer name -> ``stats`` of that layer. Where it is None and ``needs_calibration``, each
            layer gets the LayerInputs that the already quantized layers before it produce.
    """

    name: str
    quantize: Callable[[Any, Any, Any, Any], QTensor]
    needs_calibration: bool
    options: type
    source: str
    chapter: str
    takes_params: bool = False
    needs: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("hessian",)
    prepare: Callable[..., Mapping[str, Any]] | None = None

    def needs_of(self, options: Any) -> tuple[str, ...]:
        """What ``stats`` must hold with these options."""
        return self.needs(options) if callable(self.needs) else self.needs

    def options_from(self, given: Any) -> Any:
        """The options: ``given`` itself, or made of a dict of what differs from the defaults.

        Raises: QlabError for the name of no option, or the options of another method.
        """
        if given is None:
            return self.options()
        if isinstance(given, self.options):
            return given
        names = [field.name for field in fields(self.options)]
        if not isinstance(given, Mapping):
            raise QlabError(
                f"method '{self.name}' takes {self.options.__name__}, not "
                f"{type(given).__name__}: pass it, or a dict of {', '.join(names)}"
            )
        unknown = [str(name) for name in given if name not in names]
        if unknown:
            raise QlabError(
                f"method '{self.name}' has no option '{unknown[0]}': it has "
                f"{', '.join(names) or 'none'}"
            )
        return self.options(**given)


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    options: type,
    source: str,
    chapter: str,
    needs_calibration: bool = False,
    takes_params: bool = False,
    needs: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("hessian",),
    prepare: Callable[..., Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., QTensor]], Callable[..., QTensor]]:
    """Decorator that registers a function as the method ``name``."""

    def decorate(function: Callable[..., QTensor]) -> Callable[..., QTensor]:
        _METHODS[name] = Method(
            name,
            function,
            needs_calibration,
            options,
            source,
            chapter,
            takes_params,
            needs,
            prepare,
        )
        return function

    return decorate


def method_names() -> list[str]:
    """Names of all methods."""
    return sorted(_MODULES)


def get_method(name: str) -> Method:
    """The method of that name.

    Raises: QlabError naming the nearest known methods.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=3, cutoff=0.3) or method_names()
        raise QlabError(f"unknown method '{name}': did you mean {', '.join(near)}?")
    importlib.import_module(_MODULES[name])
    return _METHODS[name]
