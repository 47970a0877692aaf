"""The three vector types, and how LLVM holds them.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import models, register_model


class Vector(types.Type):
    """A register full of numbers. ``count`` elements of the LLVM type ``element``."""

    def __init__(self, name: str, element: ir.Type, count: int) -> None:
        self.element, self.count = element, count
        self.vector = ir.VectorType(element, count)
        super().__init__(name=name)


class BytesType(Vector):
    """64 unsigned bytes."""


class IntsType(Vector):
    """16 int32."""


class FloatsType(Vector):
    """16 float32."""


Bytes = BytesType("Bytes", ir.IntType(8), 64)
Ints = IntsType("Ints", ir.IntType(32), 16)
Floats = FloatsType("Floats", ir.FloatType(), 16)


@register_model(BytesType)
@register_model(IntsType)
@register_model(FloatsType)
class VectorModel(models.PrimitiveModel):
    """LLVM's own vectors: they live in registers and are passed by value."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.vector)
