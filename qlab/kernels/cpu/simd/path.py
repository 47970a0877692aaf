"""Which instructions the kernels may use: the processor's features, or the variable ``QLAB_CPU``.

    avx512      dot products of bytes in 512-bit registers (AVX512-VNNI: Intel from Ice Lake, AMD
                from Zen 4)
    avxvnni     the same in 256-bit registers (Intel's desktop processors from Alder Lake)
    avx2        products of pairs of bytes or of int16 in 256-bit registers (all since about 2015)
    portable    no instruction of a certain processor: any that LLVM knows, ARM included

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import functools
import os

from qlab.errors import QlabError

# Path -> the features it needs, and the processor that stands for it where it is forced.
PATHS = {
    "avx512": ({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "fma", "f16c"}, "icelake-server"),
    "avxvnni": ({"avx2", "avxvnni", "fma", "f16c"}, "alderlake"),
    "avx2": ({"avx2", "fma", "f16c"}, "haswell"),
    "portable": (set(), "generic"),
}


@functools.cache
def path() -> str:
    """The path in use; decided once, at the first call.

    Raises: QlabError if ``QLAB_CPU`` names no path, or one that this processor cannot run.
    """
    import llvmlite.binding as llvm
    import numba

    have = {name for name, there in llvm.get_host_cpu_features().items() if there}
    word = os.environ.get("QLAB_CPU", "")
    if not word:
        # Code for a processor that was named to Numba must not use what this one can do.
        if numba.config.CPU_NAME not in (None, llvm.get_host_cpu_name()):
            return "portable"
        return next(name for name, (needs, _) in PATHS.items() if needs <= have)
    if word not in PATHS:
        raise QlabError(f"QLAB_CPU={word} is unknown: use one of {', '.join(PATHS)}, or leave it")
    lacking = PATHS[word][0] - have
    if lacking:
        raise QlabError(f"QLAB_CPU={word}: this processor lacks {', '.join(sorted(lacking))}")
    return word


def tell_numba() -> None:
    """Where a path is forced, let Numba compile for the processor that stands for it.

    Numba keeps compiled code by the processor's name, so the code of two paths is kept apart. It
    must be told before it compiles anything.
    """
    import numba

    if os.environ.get("QLAB_CPU"):
        numba.config.CPU_NAME = PATHS[path()][1]
        numba.config.CPU_FEATURES = ""
