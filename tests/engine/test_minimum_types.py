"""The engine on GGUF types with a scale and a minimum: Q4_1, Q5_1 and Q2_K have kernels."""

import warnings

import numpy as np
import pytest

import qlab.engine
from qlab.gguf import load_gguf, to_gguf
from tests.gguf.llama_model import LlamaModel
from tests.gguf.seeded_models import seeded_model, tokenizer

from .test_engine import draw, reference
from .test_schemes import spread


@pytest.mark.oracle("engine logits", "llama.cpp", "nearer to float than twice its distance")
@pytest.mark.parametrize(("mix", "kind"), [("q4_1", "Q4_1"), ("q5_1", "Q5_1"), ("q2_k", "Q2_K")])
def test_a_file_with_minima(tmp_path, mix, kind):
    path = tmp_path / f"{mix}.gguf"
    to_gguf(seeded_model("tied"), tokenizer(), path, mix, name="tied")
    ids = draw(6, 48, 300)
    model, _ = load_gguf(path)
    expected = reference(model, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback would warn
        quick = qlab.engine.load(path)
    assert kind in quick.kinds.values() and "F32" not in quick.kinds.values()
    found = spread(quick.logits(ids), expected)
    with LlamaModel(path) as peer:
        assert found < max(2 * spread(peer.logits(ids.tolist()), expected), 1e-4)
    # Many tokens at once and one by one: the same products, but for attention's order of sums.
    cache = quick.cache()
    one_by_one = np.concatenate([quick.logits(ids[i : i + 1], cache) for i in range(8)])
    np.testing.assert_allclose(one_by_one, quick.logits(ids[:8]), rtol=1e-3, atol=1e-3)
