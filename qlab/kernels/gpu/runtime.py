"""Triton, ready for the machine at hand: compiled on a GPU, interpreted on a CPU.

Triton compiles a kernel for the GPU. It also has an *interpreter*, which runs the same kernel on
the CPU in NumPy, one program after another: slow, but it tells a right kernel from a wrong one.
``load_triton`` chooses the interpreter where there is no GPU, and gives the two names that kernels
are written with.

Source: Tillet, Kung and Cox, "Triton: an intermediate language and compiler for tiled neural
network computations", 2019. Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

from qlab.errors import MissingExtraError, QlabError


@cache
def load_triton() -> tuple[Any, Any]:
    """The modules (triton, triton.language).

    The choice holds for the whole process, since ``@triton.jit`` makes it when a kernel is read.
    ``TRITON_INTERPRET=1`` asks for the interpreter on a machine with a GPU too, and
    ``TRITON_INTERPRET=0`` for the compiler on one without (to look at what it makes).

    Raises: MissingExtraError without Triton, which exists for Linux and Windows.
    """
    import torch

    try:
        triton = importlib.import_module("triton")
        tl = importlib.import_module("triton.language")
    except ImportError:
        raise MissingExtraError("triton", "gpu", "a kernel for the GPU") from None
    wish = os.environ.get("TRITON_INTERPRET")
    if not torch.cuda.is_available() and wish in (None, "", "1"):
        triton.knobs.runtime.interpret = True
    if triton.knobs.runtime.interpret:
        _interpret_the_library(tl)
    return triton, tl


def _interpret_the_library(tl: Any) -> None:
    """Make ``tl.sum`` and the like interpreted, if another package has imported Triton before.

    They are kernels themselves, so each was made compiled or interpreted when Triton was imported.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for module in (tl.standard, tl):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                # One object a function, under all its names: the interpreter compares them.
                own = vars(tl.standard).get(value.fn.__name__)
                if not isinstance(own, InterpretedFunction):
                    own = InterpretedFunction(value.fn)
                setattr(module, name, own)


def interpreted() -> bool:
    """Whether kernels run under the interpreter."""
    return bool(load_triton()[0].knobs.runtime.interpret)


def check_device(*tensors: Any) -> None:
    """Raises: QlabError if tensors lie on several devices, or on the CPU where kernels do not."""
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        raise QlabError(f"weight and input lie on {' and '.join(sorted(devices))}: move one")
    if not interpreted() and not tensors[0].is_cuda:
        raise QlabError(
            f"the tensors lie on {tensors[0].device}, and kernels are compiled for the GPU: move "
            "them there, or set TRITON_INTERPRET=1 to run the kernels in NumPy"
        )
