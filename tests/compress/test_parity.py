"""Pruning against the tools of the same name: torch, torchao, and what llm-compressor left."""

import json
import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qlab.calibrate import LayerInputs
from qlab.compress import Target, to_sparse
from qlab.compress.magnitude import magnitude
from qlab.compress.sparsegpt import SparsegptOptions, sparsegpt
from qlab.compress.wanda import wanda
from tools.record_compress import CASES, RECORDS, case_inputs, decoded
from tools.record_gptq import fingerprint


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RECORDS / "compress_llmcompressor.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def one_thread():
    """As the record was made: sums in torch's products depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def hard_weight(seed=0, rows=32, columns=64):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g)
    w[0], w[1], w[2], w[3, 5] = 0, 0.5, w[2] * 1e-40, 1e30
    return w


def test_the_record_says_which_versions_it_is_of(recorded):
    assert recorded["versions"]["llmcompressor"] == "0.14.0.1"
    assert set(recorded["weights"]) == {case.name for case in CASES}


@pytest.mark.oracle(
    "compression {case.method}", "llm-compressor (recorded)", "equal bits of every weight"
)
@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_the_weights_are_those_of_llm_compressor(recorded, case):
    given = {k: torch.from_numpy(v) for k, v in case_inputs(case).items()}
    theirs = decoded(recorded["weights"][case.name], given["weight"].shape)
    stats = LayerInputs.of(given["x"])
    target = Target.parse(case.sparsity, case.pattern)
    if case.method == "wanda":
        ours = wanda(given["weight"], stats, target)
        np.testing.assert_array_equal(ours, theirs)
        return
    options = SparsegptOptions(**case.options)
    if case.sparsity:
        # Their code takes the share of a block, and one weight more: everything that is not above
        # the first score behind the share. Half a weight on top, so that rounding cannot undo it.
        size = 16 * min(options.block_size, case.columns)
        target = Target((target.count(size) + 1.5) / size)
    ours = sparsegpt(given["weight"], stats, target, options).numpy()
    if case.pattern:
        # Row 2 is about 1e-32. Its squares vanish in their float32 scores, so that the choice among
        # 4 equal zeros is arbitrary; ours are float64.
        assert (np.count_nonzero(ours[2]), np.abs(theirs[2]).max() < 1e-29) == (64, True)
        ours, theirs = (np.delete(one, 2, axis=0) for one in (ours, theirs))
    if fingerprint() == recorded["fingerprint"]:
        np.testing.assert_array_equal(ours, theirs)
    else:  # another machine's sums: a weight on the border may go or stay, and moves its row
        assert (~np.isclose(ours, theirs, rtol=1e-3, atol=1e-30)).mean() < 0.05
    assert ((ours == 0) == (theirs == 0)).mean() > 0.99


@pytest.mark.oracle("compression magnitude", "torch", "the same weights but at ties")
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_magnitude_is_torch_prune(share):
    from torch.nn.utils import prune

    # The tiny row stays distinct from zero in both; equal weights have no order in torch.
    w = hard_weight()
    w[1] = torch.linspace(0.3, 0.7, 64)
    w[0] = torch.arange(64) * 1e-20
    layer = torch.nn.Linear(64, 32, bias=False)
    layer.weight.data = w.clone()
    prune.l1_unstructured(layer, "weight", amount=share)
    assert torch.equal(magnitude(w, None, Target(share)), layer.weight.detach())


@pytest.mark.oracle("compression 2:4", "torch", "the same mask")
def test_two_of_four_is_the_mask_of_torch_ao_pruning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier

        w = torch.randn(16, 32, generator=torch.Generator().manual_seed(3))
        model = torch.nn.Sequential(torch.nn.Linear(32, 16, bias=False))
        model[0].weight.data = w.clone()
        sparsifier = WeightNormSparsifier(
            sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
        )
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        sparsifier.squash_mask()
    assert torch.equal(magnitude(w, None, Target.parse(pattern="2:4")), model[0].weight.detach())


@pytest.mark.oracle("compression wanda", "torchao", "the same mask by its two rules")
@pytest.mark.parametrize("half", [False, True], ids=["half of the layer", "2:4"])
def test_wanda_of_torchao_compares_the_whole_layer_and_squares_the_norms(half):
    """torchao 0.18 keeps sums of squares and takes no root of them: |w| · ‖x‖² in place of ‖x‖."""
    g = torch.Generator().manual_seed(1)
    w, x = hard_weight(1), torch.randn(200, 64, generator=g) * torch.rand(64, generator=g)
    w[0], w[1] = torch.rand(64, generator=g), torch.rand(64, generator=g)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.sparsity import WandaSparsifier

        model = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
        model[0].weight.data = w.clone()
        sparsifier = WandaSparsifier(0.5, semi_structured_block_size=4 if half else None)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        model(x)
        sparsifier.step()
        sparsifier.squash_mask()
    logging.disable(logging.NOTSET)
    target = Target.parse(pattern="2:4") if half else Target(0.5)
    theirs = model[0].weight.detach()
    assert not torch.equal(wanda(w, LayerInputs.of(x), target, within="layer"), theirs)
    # Squared norms for norms: a Hessian whose diagonal is ‖x‖⁴.
    squared = SimpleNamespace(hessian=torch.diag(x.square().sum(0) ** 2))
    assert torch.equal(wanda(w, squared, target, within="layer"), theirs)


@pytest.mark.oracle("compression 2:4", "torch", "equal bytes of values and indices")
def test_the_packed_format_is_that_of_torchs_sparse_kernels():
    """Values equal, and metadata bit for bit, for every one of the 11 sets of 0 to 2 of 4."""
    from torch.sparse import _semi_structured_conversions as theirs

    g = torch.Generator().manual_seed(0)
    w = torch.randn(64, 128, generator=g).half()
    target = Target.parse(pattern="2:4")
    pruned = magnitude(w, None, target)
    pruned[:8] *= torch.rand(8, 128, generator=g) < 0.5  # fewer than two in a group
    pruned[9] = 0
    groups = {tuple(map(bool, row)) for row in (pruned != 0).reshape(-1, 4).tolist()}
    assert len(groups) == 11
    values, meta = theirs.sparse_semi_structured_from_dense_cutlass(pruned)
    ours = to_sparse(pruned, "2:4")
    assert torch.equal(ours.values, values)
    # Their metadata is reordered for the threads of a kernel: undo that.
    places = theirs._calculate_meta_reordering_scatter_offsets(64, meta.shape[1], meta.dtype, "cpu")
    plain = meta.reshape(-1).gather(0, places).reshape(meta.shape)
    assert torch.equal(ours.places.view(torch.int16), plain)
    assert torch.equal(ours.restore(), pruned)
    assert torch.equal(theirs.sparse_semi_structured_to_dense_cutlass(values, meta), pruned)
