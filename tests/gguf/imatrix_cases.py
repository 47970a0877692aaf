"""What tools/record_imatrix.py records and tests/parity/test_imatrix.py compares."""

from tests.gguf.seeded_models import PROMPTS

# Two layers of the small models of fixed random weights: kinds of layers matter, not their number.
CASES = {
    "llama": {"name": "odd", "kind": "llama", "num_hidden_layers": 2},
    "qwen3": {"name": "grouped", "kind": "qwen3", "num_hidden_layers": 2, "head_dim": 32},
    "tied": {"name": "odder", "kind": "qwen2", "num_hidden_layers": 2},
}
CHUNK = 64


def text():
    return " ".join(PROMPTS * 4)
