"""Memory is used again, but never while somebody can see it."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.testing import assert_array_equal

from dlprobe.cache import Block, open_cache
from dlprobe.cache.buffers import Buffers
from dlprobe.cache.stream import _PATIENCE_S, stream

F16 = np.dtype("float16")


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_it_was_dropped():
    buffers = Buffers(2)
    first = buffers.take((50, 70), F16)
    place = address(first)
    del first
    assert address(buffers.take((50, 70), F16)) == place
    assert address(buffers.take((50, 69), F16)) == place


def test_a_small_array_does_not_take_a_large_piece():
    buffers = Buffers(2)
    large = buffers.take((5000, 7), F16)
    place = address(large)
    del large
    small = buffers.take((50, 7), F16)
    assert address(small) != place
    assert address(buffers.take((4000, 7), F16)) == place


def test_not_while_a_view_a_tensor_or_a_memoryview_is_left():
    buffers = Buffers(4)
    holders = [lambda a: a[1:2, ::2], torch.from_numpy, memoryview, lambda a: a.view("u2").T]
    for hold in holders:
        array = buffers.take((40, 9), F16)
        place, held = address(array), hold(array)
        del array
        for _ in range(5):
            fresh = buffers.take((40, 9), F16)
            assert address(fresh) != place
            fresh[:] = 1
        del held


def test_arrays_are_aligned_and_of_the_shape_and_type_asked_for():
    buffers = Buffers(1)
    for shape in [(1,), (3, 5), (0, 4), (129,)]:
        array = buffers.take(shape, F16)
        assert (array.shape, array.dtype, address(array) % 64) == (shape, F16, 0)
        assert array.flags.writeable


def test_no_more_is_kept_than_agreed():
    buffers = Buffers(2)
    held = [buffers.take((1000,), F16) for _ in range(5)]
    places = {address(array) for array in held}
    del held
    found = [buffers.take((1000,), F16) for _ in range(5)]
    assert len(places & {address(array) for array in found[:2]}) == 2
    assert len(buffers._kept) == 2


def test_threads_never_share_memory():
    buffers, barrier = Buffers(8), threading.Barrier(8)

    def work(number):
        barrier.wait()
        for turn in range(300):
            mine = buffers.take((64,), np.dtype("int64"))
            mine[:] = number * 1000 + turn
            assert (mine == number * 1000 + turn).all()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_stream_uses_the_memory_of_dropped_blocks_again(whole):
    cache = open_cache(whole)
    for _ in cache.blocks(seed=0, buffer_blocks=1):
        pass
    seen = {address(block.embeddings) for block in cache.blocks(seed=0, buffer_blocks=1)}
    assert len(seen) < cache.n_blocks
    expected = open_cache(whole).read(np.arange(len(cache)))
    kept = list(cache.blocks(seed=1, buffer_blocks=1))
    for block in kept:
        assert_array_equal(block.embeddings, expected.embeddings[block.windows])
        assert_array_equal(block.coverage, expected.coverage[block.windows])


class TestReadingAhead:
    """As many blocks are in memory as it takes, whatever the threads' luck."""

    BLOCKS, WINDOWS = 20, 4

    def run(self, keep):
        """Go through a stream; return how many blocks were alive when one was read, at most, and all that was kept."""
        alive, most = [], 0

        def read(windows):
            nonlocal most
            most = max(most, sum(seen() is not None for seen in alive) + 1)
            embeddings = windows[:, None, None, None].astype(np.float32)
            alive.append(weakref.ref(embeddings))
            return Block(embeddings, embeddings.astype(np.uint8), windows)

        def slow(*fields):
            time.sleep(0.005)  # the thread that reads ahead is there before the caller has dropped its block
            return Block(*fields)

        count = self.BLOCKS * self.WINDOWS
        settings = {"seed": 0, "buffer_blocks": 2, "block": slow, "by_group": False}
        blocks = stream(read, np.arange(count), self.WINDOWS, **settings)
        kept = [block if keep else block.windows for block in blocks]
        return most, kept

    def test_two_blocks_where_the_caller_drops_them(self):
        most, kept = self.run(keep=False)
        assert most == 2
        assert sorted(np.concatenate(kept)) == list(range(self.BLOCKS * self.WINDOWS))

    def test_a_caller_that_keeps_them_is_waited_for_once(self):
        start = time.perf_counter()
        most, kept = self.run(keep=True)
        assert most == len(kept) == self.BLOCKS
        assert time.perf_counter() - start < self.BLOCKS * _PATIENCE_S
