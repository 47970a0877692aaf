"""Methods: one file an algorithm, in its paper's notation."""

from qlab.methods.registry import Method, get_method, method_names

__all__ = ["Method", "get_method", "method_names"]
