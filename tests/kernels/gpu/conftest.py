"""Kernels are tested on Linux (Triton exists nowhere else), interpreted unless ``-m gpu``."""

from __future__ import annotations

import os
import sys

import torch

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


def pytest_collect_file(parent):
    """With a GPU too the ordinary tests are interpreted: a process does one or the other."""
    if torch.cuda.is_available() and parent.config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
