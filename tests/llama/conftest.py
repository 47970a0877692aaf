"""Tests that run llama-cpp-python itself: where it is installed, and nowhere else.

pip install -e .[llama]      # compiles llama.cpp: minutes
pytest tests/llama
"""

import importlib.util

# Elsewhere the record of it and the prebuilt llama.cpp in xllamacpp stand in: tests/parity.
collect_ignore_glob = [] if importlib.util.find_spec("llama_cpp") else ["test_*.py"]
