"""A model trained for low bits, as a GGUF file, in llama.cpp and in transformers.

Both trainings are short: what is tested is that nothing is lost on the way, not what is learned.
The layers' weights pass into the file exactly, because the schemes are those of the block types.
The embeddings are rounded by the mix (Q6_K and Q4_K), so the perplexity to agree with is that
of the file as qlab reads it.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.evaluate.perplexity import cut
from qlab.gguf import dequantize as gguf_dequantize
from qlab.gguf import quantize as gguf_quantize
from qlab.gguf import to_gguf
from qlab.nn import quant_layers
from qlab.training import TrainOptions, convert, prepare, story_batches, train
from qlab.training.q4_0 import Q4_0
from tests.gguf.llama_model import LlamaModel

CASES = {
    # The levels of the block type itself (qlab.training.q4_0).
    "q4_0": ("int4-asym-g32-sfp16", "q4_0", 3e-4),
    # A scale a row; TQ2_0 has one for 256 weights, so it is only written more often.
    "tq2_0": ("ternary-channel-sfp16", "absmean", 2e-3),
}
TEXTS = 2


@pytest.fixture(scope="module")
def story():
    return qlab.story.load()


@pytest.fixture(scope="module", params=CASES)
def exported(request, story, tmp_path_factory):
    """(mix, trained and converted model, file)"""
    scheme, method, rate = CASES[request.param]
    fake = prepare(story.model, scheme, method=method)
    batches = story_batches(story.tokenizer, 2, 48)
    train(fake, batches, TrainOptions(steps=6, lr=rate, warmup=1, distill=1.0), teacher=story.model)
    small = convert(fake)
    path = tmp_path_factory.mktemp("trained") / f"{request.param}.gguf"
    to_gguf(small, story.tokenizer, path, request.param, name="trained")
    return request.param, small, path


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(-5, 6))
def test_q4_0_is_the_block_type(seed, power):
    """Rounded once by us and then by GGUF's rule: nothing changes. Gradients pass unchanged."""
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    w[0], w[1, :32], w[2, 5] = 0, 3.0, w.abs().max() * 100  # zeros, a constant, an outlier
    w[3, 32:] = -w[3, 32:].abs().max()
    w = w.clamp(-5e5, 5e5).requires_grad_()
    w_hat = Q4_0()(w)
    again = gguf_dequantize(gguf_quantize(w_hat.detach().numpy(), "Q4_0"), "Q4_0")
    assert np.array_equal(again, w_hat.detach().numpy())
    w_hat.backward(torch.ones_like(w_hat))
    assert bool((w.grad == 1).all())
    if -4 < power < 4:  # the first rounding is Q4_0's too, but for ties and float16's first bits
        theirs = gguf_dequantize(gguf_quantize(w.detach().numpy(), "Q4_0"), "Q4_0")
        step = Q4_0().qtensor(w.detach()).scale.float().repeat_interleave(32, 1).numpy()
        apart = np.abs(theirs - w_hat.detach().numpy()) / step
        assert apart.max() < 1.01 and (apart > 0.01).mean() < 0.05


def test_q4_0_has_one_scheme():
    with pytest.raises(QlabError, match="not 'int4-g32'"):
        Q4_0("int4-g32")
    with pytest.raises(QlabError, match="NaN or infinity"):
        Q4_0()(torch.full((2, 32), math.inf))


def texts(story):
    return story.validation()[:TEXTS]


@pytest.mark.oracle("training q4_0", "gguf", "equal trained weights, read from a Q4_0 file")
@pytest.mark.oracle("training absmean", "gguf", "equal trained weights, read from a TQ2_0 file")
def test_the_trained_weights_are_in_the_file(exported):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    mix, small, path = exported
    layers = dict(quant_layers(small))
    for block in range(small.config.num_hidden_layers):
        # Of a llama file queries and keys lie in another order of rows; these do not.
        for theirs, ours in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            name = f"blk.{block}.{theirs}.weight"
            (tensor,) = (t for t in GGUFReader(path).tensors if t.name == name)
            if tensor.tensor_type.name != mix.upper():
                continue  # some mixes keep single layers in more bits
            found = dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(found, layers[f"model.layers.{block}.{ours}"].weight.numpy())


@pytest.mark.engine("training q4_0", "transformers")
@pytest.mark.engine("training absmean", "transformers")
def test_transformers_reads_the_same_model(exported, story):
    from transformers import AutoModelForCausalLM

    _, _, path = exported
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ours = qlab.perplexity(qlab.load(path).model, story.tokenizer, texts(story))
    # The same weights; sums of float32 in the same order but for the layout of q and k.
    assert qlab.perplexity(theirs, story.tokenizer, texts(story)) == pytest.approx(ours, rel=1e-4)


@pytest.mark.engine("training q4_0", "llama.cpp")
@pytest.mark.engine("training absmean", "llama.cpp")
def test_llamacpp_reads_the_same_model(exported, story):
    _, small, path = exported
    back = qlab.load(path).model
    nll, count = 0.0, 0
    context = int(small.config.max_position_embeddings)
    with LlamaModel(path, context=context) as model:
        for text in texts(story):
            for window in cut(story.tokenizer, text, context):
                scores = torch.from_numpy(model.logits(window.ids)[:-1]).double().log_softmax(-1)
                picked = scores[torch.arange(len(scores)), torch.tensor(window.ids[1:])]
                nll -= float(picked[-window.scored :].sum())
                count += window.scored
    ours = qlab.perplexity(back, story.tokenizer, texts(story))
    # llama.cpp rounds the inputs of quantized layers to 8 bits, a 127th of the largest of 32 (256
    # for ternary blocks and the Q6_K output matrix, where one of the storyteller's inputs is thirty
    # times as large as most), which moves perplexity by 1.3 percent.
    assert math.exp(nll / count) == pytest.approx(ours, rel=0.02)
