"""AutoRound against auto-round 0.16.1, recorded by tools/record_autoround.py (its pins conflict).

With a zero point both use the same grid. Without one auto-round takes the sign of the scale from
the larger end of the range, so that its grid is not qlab's.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import qlab
from qlab.calibrate.inputs import LayerInputs
from qlab.core import Scheme
from qlab.methods.autoround import AutoRoundOptions, Learned, _Grid, learn

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location(
    "record_autoround", ROOT / "tools" / "record_autoround.py"
)
record = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(record)


@pytest.fixture(scope="module")
def recorded():
    with np.load(record.OUT) as data:
        return dict(data)


def scheme_of(bits, group_size):
    cut = "channel" if group_size == -1 else f"g{group_size}"
    return Scheme.parse(f"int{bits}-asym-{cut}")


def restored(grid, learned):
    """Ŵ and the scales by way of the codes."""
    stored, zero, codes = grid.codes(learned)
    q = qlab.core.from_codes(codes, stored, zero, grid.scheme)
    return q.dequantize().numpy(), q.scale.numpy()


def test_the_versions_are_named(recorded):
    assert json.loads(str(recorded["versions"]))["auto-round"] == "0.16.1"


@pytest.mark.oracle(
    "method autoround", "auto-round (recorded)", "equal weights for the same V, alpha and beta"
)
@pytest.mark.parametrize("kind", record.KINDS)
@pytest.mark.parametrize(("bits", "group_size"), record.GRIDS)
def test_given_v_alpha_and_beta_the_weights_are_the_same(recorded, kind, bits, group_size):
    name = f"rounded {kind} {bits} {group_size}"
    grid = _Grid(torch.from_numpy(record.matrix(kind)), scheme_of(bits, group_size), record.COLUMNS)
    given = Learned(*map(torch.from_numpy, record.parameters(group_size)))
    w, scale = restored(grid, given)
    np.testing.assert_array_equal(w, recorded[name])
    if kind != "zeros":  # they take 1e-8 for a block of zeros, qlab 1; both restore zeros
        np.testing.assert_array_equal(scale.reshape(-1), recorded[f"{name} scales"].reshape(-1))
    # What the gradients go through is what is stored, up to the rounding of y + (round(y) - y).
    np.testing.assert_allclose(
        grid.restored(given).numpy(), w, rtol=1e-5, atol=1e-6 * np.abs(w).max()
    )


@pytest.mark.oracle(
    "method autoround", "auto-round (recorded)", "the same learned rounding from the same seed"
)
@pytest.mark.parametrize(("bits", "group_size", "steps"), record.RUNS)
def test_the_same_is_learned(recorded, bits, group_size, steps):
    x, w = torch.from_numpy(record.inputs()), torch.from_numpy(record.matrix("normal"))
    scheme = scheme_of(bits, group_size)
    learned, losses = learn(w, LayerInputs.of(x), scheme, AutoRoundOptions(steps=steps))
    theirs = recorded[f"run {bits} {group_size} losses"]
    ours = np.array(losses) / (2 * record.ROWS)  # theirs is the mean over outputs too
    # The same steps, hence the same losses, to the rounding of float32. Where a gradient is zero
    # but for rounding its sign is chance, and a code flips back and forth for some steps.
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-5)
    assert np.mean(np.abs(ours / theirs - 1) < 1e-5) >= 0.9
    assert ours.min() == pytest.approx(theirs.min(), rel=1e-5)
    found, _ = restored(_Grid(w, scheme, record.COLUMNS), learned)
    # Their schedule multiplies the step by a factor each time: alpha differs in the last digit.
    step = np.abs(found).max() / 2**bits
    assert np.abs(found - recorded[f"run {bits} {group_size}"]).max() < 1e-3 * step
