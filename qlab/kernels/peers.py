"""Products of other libraries, for measuring beside our own kernels.

Chapter: Why it is fast, or isn't.
"""

from __future__ import annotations

from typing import Any


def matmul_nbits(q: Any, tokens: int) -> tuple[bytes, int]:
    """An ONNX model of ONNX Runtime's ``MatMulNBits`` with int8 inputs, blocks of 32.

    Args:
        q: QTensor (rows, columns), symmetric integers of 4 or 8 bits in groups of 32 with all
            codes in use (``int4-full-g32``).
        tokens: vectors in the input ``x``, float32 (tokens, columns).

    Returns: the serialized model, whose output ``y`` is float32 (tokens, rows); bytes of its
    weights and scales.

    Source: the operator's page in ONNX Runtime's ContribOperators.md.
    Chapter: Why it is fast, or isn't.
    """
    import numpy as np
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    bits = q.scheme.format.bits
    rows, columns = q.shape
    stored = (q.codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    if bits == 4:
        stored = stored[:, ::2] | stored[:, 1::2] << 4
    blocks = stored.reshape(rows, columns // 32, -1)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=bits, block_size=32, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [tokens, columns])],
        [helper.make_tensor_value_info("y", T.FLOAT, [tokens, rows])],
        [numpy_helper.from_array(blocks, "w"),
         numpy_helper.from_array(q.scale.astype(np.float32).reshape(-1), "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model, blocks.nbytes + 4 * q.scale.size
