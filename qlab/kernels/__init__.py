"""Kernels: the loops that NumPy cannot express, compiled."""
