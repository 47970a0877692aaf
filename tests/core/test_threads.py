"""Working on pieces with several threads: the same results, and nothing of torch's is disturbed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import qlab
from qlab.core.threads import each


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the number of threads was changed"
    torch.set_num_threads(before)


def names(pieces, x):
    """(piece, name of the thread, torch's threads there) of each piece."""
    return each(lambda p: (p, threading.current_thread().name, torch.get_num_threads()), pieces, x)


def test_pieces_go_to_threads_that_torch_does_not_divide(two_threads):
    seen = names(range(100), torch.ones(4))
    assert [p for p, _, _ in seen] == list(range(100))
    assert all(name.startswith("qlab-") for _, name, _ in seen)
    assert {count for _, _, count in seen} == {1}
    assert threading.active_count() < 20


def test_where_it_is_not_safe_pieces_stay_in_the_thread(two_threads):
    main = threading.current_thread().name
    x = torch.ones(4, requires_grad=True)
    with torch.inference_mode():
        inferred = torch.ones(4)
    for where in (np.ones(4), x, inferred, torch.ones(4, device="meta")):
        assert {name for _, name, _ in names(range(4), where)} == {main}
    assert {name for _, name, _ in names([1], torch.ones(4))} == {main}
    with torch.no_grad():
        assert main not in {name for _, name, _ in names(range(4), x)}
    torch.set_num_threads(1)
    assert {name for _, name, _ in names(range(4), torch.ones(4))} == {main}
    torch.set_num_threads(2)


def test_a_thread_that_works_on_a_piece_does_not_wait_for_others(two_threads):
    """Nested calls run where they are: a pool whose threads wait for the pool would hang."""
    x = torch.ones(4)
    nested = each(lambda p: each(lambda q: (p, q), range(3), x), range(50), x)
    assert nested == [[(p, q) for q in range(3)] for p in range(50)]


def test_errors_come_out(two_threads):
    def fail(piece):
        if piece == 7:
            raise qlab.QlabError("piece 7 is bad")
        return piece

    with pytest.raises(qlab.QlabError, match="piece 7"):
        each(fail, range(20), torch.ones(4))
    assert each(fail, range(7), torch.ones(4)) == list(range(7))


@pytest.mark.parametrize("word", ["int4-g128", "int3-asym-channel", "nf4-g64", "int8-tensor"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_number_of_threads_changes_nothing(two_threads, word, rounding):
    w = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    two = qlab.quantize(w, word, rounding=rounding, seed=3)
    there = two.dequantize()
    torch.set_num_threads(1)
    one = qlab.quantize(w, word, rounding=rounding, seed=3)
    assert torch.equal(one.packed, two.packed) and torch.equal(one.scale, two.scale)
    assert torch.equal(one.dequantize(), there)
    torch.set_num_threads(2)


def test_gradients_reach_the_scale_as_with_one_thread(two_threads):
    w = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q = qlab.quantize(w, "int4-g128")
    q.dequantize().sum().backward()
    assert w.grad is not None and bool(w.grad.abs().sum() > 0)


def test_many_callers_at_once(two_threads):
    ws = [torch.randn(1024, 512, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    expected = [qlab.quantize(w, "int4-g128").packed for w in ws]
    with ThreadPoolExecutor(6) as callers:
        found = list(callers.map(lambda w: qlab.quantize(w, "int4-g128").packed, ws * 4))
    for i, packed in enumerate(found):
        assert torch.equal(packed, expected[i % 6])


def test_a_forked_child_starts_threads_of_its_own():
    code = """
import os, torch, qlab
torch.set_num_threads(2)
w = torch.randn(1024, 1024)
packed = qlab.quantize(w, "int4-g128").packed
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    from qlab.core import threads
    assert not threads._pools
    same = torch.equal(qlab.quantize(w, "int4-g128").packed, packed)
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
