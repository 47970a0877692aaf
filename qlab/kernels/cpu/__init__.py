"""Kernels for the CPU, compiled by Numba when they are first called."""
