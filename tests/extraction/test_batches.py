"""The batch size: found where a cache is begun, halved where memory ends, pinned once a block is written."""

import pytest
import torch

from dlprobe.backbones.engines.batching import MOST, Resizable, find_batch_size, largest_worthwhile
from dlprobe.cache import open_cache
from dlprobe.errors import BackboneError
from dlprobe.extraction import extract

SETTINGS = {"stride_px": 40, "block_windows": 4}


@pytest.fixture
def limited(projection):
    """Return a function that makes a backbone in whose memory a number of windows fits."""

    class Limited(projection.Projection):
        """Raises what torch raises when a batch does not fit, and fits less once it has seen the reference window."""

        def __init__(self, fits, *, then=None, automatic=True, batch_size=4):
            super().__init__(batch_size=batch_size)
            self.fits, self.then, self.automatic_batch = fits, then, automatic

        def with_batch_size(self, batch_size):
            return Limited(self.fits, then=self.then, automatic=False, batch_size=batch_size)

        def __call__(self, windows):
            if len(windows) > self.fits:
                raise torch.OutOfMemoryError
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
    assert 1 <= find_batch_size(limited(20)) <= 16
    assert find_batch_size(limited(3)) == 2


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
