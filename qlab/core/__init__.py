"""What a quantized tensor is. Imports NumPy and array-api-compat alone."""

from qlab.core.formats import IntFormat, format_names, get_format
from qlab.core.granularity import Granularity
from qlab.core.measures import cosine, max_error, mse, sqnr
from qlab.core.packing import pack, packed_length, unpack
from qlab.core.qtensor import QTensor, from_codes, from_params, quantize
from qlab.core.scheme import Scheme
from qlab.core.shared import quantize_shared, shared_params

__all__ = [
    "Granularity",
    "IntFormat",
    "QTensor",
    "Scheme",
    "cosine",
    "format_names",
    "from_codes",
    "from_params",
    "get_format",
    "max_error",
    "mse",
    "pack",
    "packed_length",
    "quantize",
    "quantize_shared",
    "shared_params",
    "sqnr",
    "unpack",
]
