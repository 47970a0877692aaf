"""The thread that steps a scheduler, with models that are quick, slow or broken."""

import threading
import time

import pytest

from qlab.errors import QlabError
from qlab.serve import Request, Scheduler
from qlab.serve.batching import Full, Worker, wait_for

from .conftest import ToyModel


@pytest.fixture
def worker():
    found = Worker(Scheduler(ToyModel(40, 4), 3), max_waiting=50)
    found.start()
    yield found
    found.stop()
    assert not found.alive and found.scheduler.pool.free == found.scheduler.pool.count


def test_many_threads_get_their_own_answers(worker):
    found = {}

    def one(i):
        request = Request([i % 9 + 1, i // 9 + 1], 9)
        found[i] = request, wait_for(worker, request, 60)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = worker.scheduler.model
    for request, handle in found.values():
        assert (handle.tokens, handle.finish_reason) == model.alone(request)


def test_it_stops_after_what_was_begun_and_starts_again(worker):
    heard = []
    handle = worker.submit(Request([1], 20, stop=()), heard.append)
    worker.stop()
    assert handle.finish_reason == "length" and len(heard) == 21
    with pytest.raises(Full, match="going down"):
        worker.submit(Request([1]), heard.append)
    worker.start()
    assert wait_for(worker, Request([1], 3, stop=()), 60).finish_reason == "length"


class Slow(ToyModel):
    def read(self, *args):
        time.sleep(0.05)
        return super().read(*args)


def test_what_takes_too_long_is_cancelled():
    worker = Worker(Scheduler(Slow(40, 4), 2), max_waiting=1)
    worker.start()
    with pytest.raises(QlabError, match="no answer within"):
        wait_for(worker, Request([1], 60, stop=()), 0.1)
    handle = worker.submit(Request([2], 60, stop=()), lambda event: None)
    worker.stop(timeout=0.2)
    assert handle.finish_reason == "cancelled" and len(handle.tokens) < 60
    assert worker.scheduler.pool.free == worker.scheduler.pool.count


def test_a_line_has_an_end():
    worker = Worker(Scheduler(Slow(40, 4), 1), max_waiting=2)
    worker.start()
    with pytest.raises(Full, match="try again later"):
        for _ in range(9):
            worker.submit(Request([1], 5, stop=()), lambda event: None)
    worker.stop()


def test_an_observer_that_fails_ends_nothing():
    def broken(handle):
        raise ValueError("observer")

    worker = Worker(Scheduler(ToyModel(40, 4), 3), observe=broken)
    worker.start()
    assert wait_for(worker, Request([1], 3, stop=()), 60).finish_reason == "length"
    worker.stop()
    assert str(worker.failure) == "observer"
