"""The batch size: found where a cache is begun, halved where memory ends, pinned once a block is written."""

import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.batching import (
    MOST,
    Resizable,
    evened,
    find_batch_size,
    is_out_of_memory,
    largest_worthwhile,
)
from dlprobe.cache import open_cache
from dlprobe.errors import BackboneError, IdentityError
from dlprobe.extraction import estimate, extract, plan
from dlprobe.extraction.estimating import windows_per_s

SETTINGS = {"stride_px": 40, "block_windows": 4}


@pytest.fixture
def limited(projection):
    """Return a function that makes a backbone in whose memory a number of windows fits."""

    class Limited(projection.Projection):
        """Raises what torch raises when a batch does not fit, and fits less once it has seen the reference window."""

        def __init__(self, fits, *, then=None, automatic=True, batch_size=4, error=torch.OutOfMemoryError):
            super().__init__(batch_size=batch_size)
            self.fits, self.then, self.automatic_batch, self.error = fits, then, automatic, error

        def with_batch_size(self, batch_size):
            return Limited(self.fits, then=self.then, automatic=False, batch_size=batch_size, error=self.error)

        def __call__(self, windows):
            if len(windows) > self.fits:
                raise self.error
            if len(windows) == 1 and self.then:
                self.fits = self.then
            return super().__call__(windows)

    return Limited


class StopError(Exception):
    pass


@pytest.fixture
def stopped(manifest, tmp_path):
    """Return a function that begins a cache and breaks off after two blocks."""

    def begin(backbone):
        def stop(done, _total):
            if done > SETTINGS["block_windows"]:
                raise StopError

        with pytest.raises(StopError):
            extract(manifest, backbone, tmp_path / "cache", progress=stop, **SETTINGS)

    return begin


def test_the_test_s_backbone_is_one(limited):
    assert isinstance(limited(8), Resizable)


@pytest.mark.parametrize(
    ("rates", "fits", "found"),
    [
        ({8: 10, 16: 19, 32: 30, 64: 30.5}, 1000, 32),  # doubling no longer pays
        ({8: 10, 16: 19, 32: 30, 64: 60}, 33, 32),  # memory ends
        ({8: 10, 16: 9}, 1000, 8),
        ({8: 10, 4: 8, 2: 5, 1: 3}, 7, 4),  # the first is too large
        ({8: 10, 4: 8, 2: 5, 1: 3}, 1, 1),
        ({8 << i: 2.0**i for i in range(9)}, 10_000, MOST),
    ],
)
def test_a_size_grows_until_memory_or_speed_ends(rates, fits, found):
    def rate(size):
        if size > fits:
            raise torch.OutOfMemoryError
        return rates[size]

    assert largest_worthwhile(rate, "a") == found


def test_not_one_window_fits():
    def rate(_size):
        raise torch.OutOfMemoryError

    with pytest.raises(BackboneError, match="memory does not hold one window of big"):
        largest_worthwhile(rate, "big")


def test_what_is_found_fits(limited):
    assert 1 <= find_batch_size(limited(20), windows_per_s) <= 16
    assert find_batch_size(limited(3), windows_per_s) == 2


@pytest.mark.parametrize(
    ("most", "tried"), [(1, [1]), (5, [5]), (8, [8]), (20, [8, 16, 20]), (1000, [8 << i for i in range(7)])]
)
def test_no_size_is_tried_that_a_block_does_not_fill(most, tried):
    seen = []

    def rate(size):
        seen.append(size)
        return float(size)

    assert largest_worthwhile(rate, "a", most=min(most, MOST)) == tried[-1]
    assert seen == tried


def test_batches_of_a_block_are_equal():
    assert [evened(size, 64) for size in (512, 64, 48, 32, 30, 1)] == [64, 64, 32, 32, 22, 1]
    for block in range(1, 70):
        for size in range(1, 80):
            found = evened(size, block)
            batches = -(-block // found)
            assert found <= size
            assert batches == -(-block // size)  # not one more than there would have been
            assert batches * found - block < batches  # and filled up by less than a window each


def test_what_is_found_is_no_larger_than_a_block(limited, manifest, tmp_path):
    extract(manifest, limited(1000), tmp_path / "cache", **SETTINGS)
    assert open_cache(tmp_path / "cache").pins.batch_size <= SETTINGS["block_windows"]


def test_compiled_batches_are_filled_up_to_a_block_at_most(manifest, tmp_path, monkeypatch):
    computed = []
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)
    backbone = load_backbone(
        "timm:test_vit", weights="random:0", device="cpu", window_px=160, compiled=True, batch_size=32
    )
    whole = type(backbone).tokens
    monkeypatch.setattr(
        type(backbone), "tokens", lambda self, pixels: computed.append(len(pixels)) or whole(self, pixels)
    )
    backbone.engine._tokens = backbone.tokens
    report = extract(manifest, backbone, tmp_path / "cache", stride_px=160, block_windows=4)
    assert set(computed) == {4}  # the reference window, too: one shape is one compilation
    assert open_cache(tmp_path / "cache").pins.batch_size == 4
    assert len(computed) == 1 + -(-report.windows // 4)


def test_shards_that_begin_together_take_the_size_that_is_written(limited, manifest, tmp_path, tree, monkeypatch):
    extract(manifest, limited(3), tmp_path / "whole", **SETTINGS)
    found = iter([4, 2])

    def race(_backbone, _rate, **_options):
        size = next(found)
        if size == 4:  # while this one is still measuring, the other makes the cache
            extract(manifest, limited(3), tmp_path / "cache", shard=(0, 2), **SETTINGS)
        return size

    monkeypatch.setattr("dlprobe.backbones.engines.batching.find_batch_size", race)
    extract(manifest, limited(1000), tmp_path / "cache", shard=(1, 2), **SETTINGS)
    assert open_cache(tmp_path / "cache").pins.batch_size == 2
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_a_size_that_was_chosen_is_not_given_up(limited, manifest, tmp_path):
    extract(manifest, limited(3), tmp_path / "cache", **SETTINGS)
    with pytest.raises(IdentityError, match="batch_size: 2 != 4"):
        extract(manifest, limited(1000, automatic=False), tmp_path / "cache", **SETTINGS)


def test_what_cuda_s_libraries_say_of_memory():
    for words in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDA error: out of memory",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_library_s_lack_of_memory_halves_it_too(limited, manifest, tmp_path):
    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    extract(manifest, limited(3, error=error), tmp_path / "cache", **SETTINGS)
    assert open_cache(tmp_path / "cache").pins.batch_size == 2


def test_another_error_of_a_device_is_no_lack_of_memory(limited, manifest, tmp_path):
    with pytest.raises(RuntimeError, match="illegal"):
        extract(manifest, limited(3, error=RuntimeError("illegal")), tmp_path / "cache", **SETTINGS)


def test_memory_is_given_back_when_no_traceback_holds_it(limited, manifest, tmp_path, monkeypatch):
    import gc
    import sys
    import weakref

    held = []

    class Limited(type(limited(1))):
        def with_batch_size(self, batch_size):
            return Limited(self.fits, automatic=False, batch_size=batch_size)

        def __call__(self, windows):
            tensor = torch.zeros(1)
            held.append(weakref.ref(tensor))
            return super().__call__(windows)

    free = []

    def release():
        assert sys.exc_info() == (None, None, None)
        free.append(all(reference() is None for reference in held))

    gc.disable()
    try:
        monkeypatch.setattr("dlprobe.backbones.engines.batching.release_memory", release)
        find_batch_size(Limited(3), windows_per_s)
    finally:
        gc.enable()
    assert free
    assert all(free)


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_nothing_of_what_filled_the_memory_is_left_where_a_smaller_batch_begins(
    limited, manifest, tmp_path, in_a_cycle
):
    """Batches at work, the one that failed, and what an exception holds that refers to itself."""
    import gc
    import weakref

    held, left = [], []

    class Filled(type(limited(1))):
        def with_batch_size(self, batch_size):
            left.append(sum(reference() is not None for reference in held))
            return Filled(self.fits, automatic=False, batch_size=batch_size)

        def __call__(self, windows):
            tensor = torch.zeros(len(windows))
            held.append(weakref.ref(tensor))
            try:
                found = super().__call__(windows)
            except RuntimeError as error:
                if in_a_cycle:
                    error.itself = error
                raise
            held.append(weakref.ref(found))
            if len(windows) == 1:  # the reference window; the first block is embedded in two batches
                self.fits = 2
            return found

    gc.collect()
    gc.disable()
    try:
        extract(manifest, Filled(1000, batch_size=4), tmp_path / "cache", stride_px=40, block_windows=4)
    finally:
        gc.enable()
    assert open_cache(tmp_path / "cache").pins.batch_size == 2
    assert held
    assert left[-2:] == [0, 0]  # halved, and evened


def test_an_estimate_takes_the_size_that_an_extraction_would_find(limited, manifest):
    planned = plan(manifest, limited(3).spec, **SETTINGS)
    assert estimate(planned, limited(3))["windows"] == len(planned.windows)
    with pytest.raises(BackboneError, match=r"does not hold batches of 4 windows; give fewer \(--batch-size 2\)"):
        estimate(planned, limited(3, automatic=False))


def test_it_is_found_where_a_cache_is_begun_and_pinned(limited, manifest, tmp_path):
    extract(manifest, limited(3), tmp_path / "cache", **SETTINGS)
    assert open_cache(tmp_path / "cache").pins.batch_size == 2


def test_a_cache_that_is_there_says_it(limited, manifest, tmp_path, tree, stopped):
    extract(manifest, limited(3), tmp_path / "whole", **SETTINGS)
    stopped(limited(3))
    assert open_cache(tmp_path / "cache").missing_blocks
    extract(manifest, limited(1000), tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_memory_that_ends_before_the_first_block_halves_it(limited, manifest, tmp_path, tree):
    extract(manifest, limited(1000, automatic=False, batch_size=2), tmp_path / "chosen", **SETTINGS)
    extract(manifest, limited(1000, then=3), tmp_path / "halved", **SETTINGS)
    assert open_cache(tmp_path / "halved").pins.batch_size == 2
    assert tree(tmp_path / "halved") == tree(tmp_path / "chosen")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"automatic": False, "batch_size": 4}, r"does not hold batches of 4 windows; give fewer \(--batch-size 2\)"),
        ({}, "does not hold batches of 4 windows any more, which the cache pins"),
    ],
)
def test_memory_that_ends_after_the_first_block_is_one_line(limited, manifest, tmp_path, *, stopped, backbone, message):
    stopped(limited(1000, automatic=False, batch_size=4))
    before = open_cache(tmp_path / "cache").missing_blocks
    assert before
    with pytest.raises(BackboneError, match=message) as caught:
        extract(manifest, limited(1000, then=3, **backbone), tmp_path / "cache", **SETTINGS)
    assert "\n" not in str(caught.value)
    assert open_cache(tmp_path / "cache").missing_blocks == before
