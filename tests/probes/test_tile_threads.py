"""Threads that add up tiles, against one thread."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dlprobe.probes.exact import Rows, stream_logistic
from dlprobe.probes.exact import threads as threads_module
from dlprobe.probes.exact.threads import TileThreads


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    with threadpool_limits(request.param, user_api="blas"), TileThreads() as made:
        assert made.count == request.param
        yield made


def max_threads():
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


def test_every_tile_is_added_once_in_turns_and_one_accumulator_is_never_shared(threads):
    inside = [threading.Lock() for _ in range(threads.count)]

    def add(sums, tile):
        lock = inside[tile % threads.count]
        assert lock.acquire(blocking=False)
        time.sleep(0.001)
        sums.append(tile)
        lock.release()

    found = threads.fold(range(101), list, add)
    assert found == [list(range(turn, 101, threads.count)) for turn in range(threads.count)]


def test_what_a_tile_raises_is_raised_and_the_threads_go_on(threads):
    def add(sums, tile):
        if tile == 7:
            raise ValueError("tile 7")
        sums.append(tile)

    with pytest.raises(ValueError, match="tile 7"):
        threads.fold(range(20), list, add)
    with pytest.raises(ValueError, match="tile 7"):
        threads.fold(range(8), list, add)  # the last one
    assert sorted(tile for part in threads.fold(range(5), list, add) for tile in part) == [0, 1, 2, 3, 4]


def test_what_the_tiles_raise_themselves_waits_for_those_at_work(threads):
    done = []

    def tiles():
        yield 1
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        threads.fold(tiles(), list, lambda _sums, tile: done.append(tile))
    assert done == [1]


def test_the_blas_has_one_thread_inside_and_its_own_again_at_the_end():
    with threadpool_limits(3, user_api="blas"):
        with TileThreads():
            assert max_threads() == 1
        assert max_threads() == 3


def test_another_thread_may_set_limits_afterwards():
    def limited():
        with threadpool_limits(3, user_api="blas"):
            before = max_threads()
            with TileThreads() as threads:
                return before, threads.count, max_threads()

    assert limited() == (3, 3, 1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(limited).result() == (3, 3, 1)


def test_a_machine_of_many_cores_does_not_keep_as_many_hessians(monkeypatch):
    many = [{"user_api": "blas", "num_threads": 64}, {"user_api": "openmp", "num_threads": 128}]
    monkeypatch.setattr(threads_module, "threadpool_info", lambda: many)
    assert TileThreads().count == threads_module.MOST_THREADS < 64


def test_a_solution_does_not_depend_on_the_number_of_threads_and_is_the_same_again():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(9000, 12)).astype(np.float16)
    y = (X @ rng.normal(size=12) + rng.logistic(size=9000) > 1).astype(np.int8)

    def solved(threads):
        with threadpool_limits(threads, user_api="blas"):
            return stream_logistic(lambda: [Rows(X[i : i + 700], y[i : i + 700]) for i in range(0, 9000, 700)], 12)

    alone, together = solved(1), solved(2)
    np.testing.assert_allclose(together.weights, alone.weights, atol=1e-9)
    np.testing.assert_array_equal(together.weights, solved(2).weights)
