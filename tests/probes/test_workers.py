"""Threads that share a batch: order, errors, and what they leave behind."""

import threading

import numpy as np
import pytest
import torch

from dlprobe.probes import HeadSpec, fit_heads
from dlprobe.probes.moments import GroupMoments
from dlprobe.probes.multihead import HeadBatch
from dlprobe.probes.multihead.workers import SMALL_NUMBERS, Workers

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Return a function that sets torch's number of threads, which is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("total", [0, 1, 2, 3, 10])
def test_parts_cover_a_range_in_order(threads, count, total):
    threads(count)
    with Workers(CPU) as workers, workers.alone():
        parts = workers.map(lambda part: list(range(total))[part], total)
    assert [number for part in parts for number in part] == list(range(total))
    assert len(parts) == min(count, total)


def test_parts_run_on_threads_of_their_own_with_one_torch_thread_each(threads):
    threads(2)
    meet = threading.Barrier(2, timeout=20)

    def work(part):
        meet.wait()
        return threading.get_ident(), torch.get_num_threads()

    with Workers(CPU) as workers:
        with workers.alone():
            found = workers.map(work, 2)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert len({ident for ident, _ in found}) == 2
    assert [count for _, count in found] == [1, 1]


def test_an_error_in_a_part_comes_out_and_the_setting_is_restored(threads):
    threads(2)
    before = set(threading.enumerate())

    def work(part):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Workers(CPU) as workers, workers.alone():
        workers.map(work, 2)
    assert torch.get_num_threads() == 2
    assert set(threading.enumerate()) <= before


def test_a_fit_is_the_same_on_any_number_of_threads_and_leaves_torch_as_it_was(threads):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(7, 40, 9)).astype(np.float16)
    targets = {"a": (embeddings[..., 0] > 0.5).astype(np.int8)}
    batch = HeadBatch(embeddings, targets, np.zeros(7, np.int64), np.arange(7))
    objectives = ("dice-batch", "dice-window", "bce", "lovasz")
    heads = [HeadSpec(scheme="a", learning_rate=1.0, objective=objective) for objective in objectives]
    moments = GroupMoments.of(embeddings, batch.groups)
    weights = {}
    for count in (1, 3, 16):
        threads(count)
        found = fit_heads(lambda epoch: [batch] * 4, heads, moments, epochs=2, steps_per_epoch=4)
        weights[count] = np.stack([head.weights for head in found])
        assert torch.get_num_threads() == count
    np.testing.assert_allclose(weights[3], weights[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights[16], weights[1], rtol=1e-4, atol=1e-6)


def test_little_work_is_done_where_it_is(threads):
    threads(3)
    with Workers(torch.device("cpu")) as workers:
        here = threading.current_thread().name
        few = workers.map(lambda part: (part, threading.current_thread().name), 10, SMALL_NUMBERS)
        assert few == [(slice(0, 10), here)]
        assert len(workers.map(lambda part: part, 10, SMALL_NUMBERS + 1)) == 3
        assert workers.map(lambda part: part, 0, 0) == []
