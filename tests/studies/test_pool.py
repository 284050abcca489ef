"""Mini-batches of pooled caches: read by whoever wants them, in the same order as from the stream."""

import numpy as np
import pytest

from dlprobe.cache import FeatureCache, open_cache
from dlprobe.cache.stream import epoch_seed
from dlprobe.extraction import extract
from dlprobe.probes import default_grid, fit_heads
from dlprobe.studies.fitting.pool import CachePool, minibatches, open_pools, steps_per_epoch

SCHEMES = ("autoencoded-pristine", "autoencoded-ignored")
BATCH = 7


@pytest.fixture(scope="module")
def pool(tiny_manifest, tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled")
    frame = tiny_manifest.frame
    for name, mask in (("real", frame["variant"] == "real"), ("fake", frame["variant"] == "sp")):
        extract(tiny_manifest.select(mask), tiny_backbone, folder / name, stride_px=112, block_windows=4)
    [(found, _)] = open_pools([folder / "real", folder / "fake"])
    return found


def parts(pool):
    """Groups of the windows, one of which trains nothing, and which windows do."""
    groups = np.arange(len(pool.windows)) % 4 - 1
    return groups, groups >= 0


@pytest.mark.parametrize("seed", [1, 2])
def test_batches_on_demand_are_those_of_the_stream(pool, seed):
    groups, selected = parts(pool)
    options = {"batch_windows": BATCH, "seed": seed}
    streamed = list(minibatches(pool, groups, SCHEMES, selected, **options))
    lazy = list(minibatches(pool, groups, SCHEMES, selected, on_demand=True, **options))
    assert len(lazy) == len(streamed) == steps_per_epoch(pool, selected, BATCH)
    some = np.array([3, 0, 5])
    for one, other in zip(streamed, lazy, strict=True):
        np.testing.assert_array_equal(one.windows, other.windows)
        np.testing.assert_array_equal(one.groups, other.groups)
        for places in (np.arange(len(one.windows)), some[some < len(one.windows)]):
            np.testing.assert_array_equal(other.embeddings(places), one.embeddings[places])
            for scheme, expected in one.targets.items():
                np.testing.assert_array_equal(other.targets(places)[scheme], expected[places])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_windows_that_stay_on_the_device_are_not_read_from_the_cache_again(pool, share, monkeypatch):
    groups, selected = parts(pool)
    heads = default_grid(["autoencoded-pristine"], [(0, 1), (1, 2)], learning_rates=(0.1, 1.0), weight_decays=(0.0,))
    reads = [0, 0]

    def fit(on_demand, **options):
        epochs = []

        def batches(epoch):
            epochs.append(tuple(reads))
            order = {"batch_windows": BATCH, "seed": epoch_seed(0, epoch), "on_demand": on_demand}
            return minibatches(pool, groups, SCHEMES, selected, **order)

        steps = steps_per_epoch(pool, selected, BATCH)
        options |= {"epochs": 3, "steps_per_epoch": steps, "window_weights": "ones"}
        found = fit_heads(batches, heads, pool.group_moments(groups), **options)
        return found, np.diff([*epochs, tuple(reads)], axis=0)

    expected, _ = fit(on_demand=False)
    for i, name in enumerate(("read", "coverage")):
        plain = getattr(FeatureCache, name)

        def counting(self, windows, i=i, plain=plain):
            reads[i] += len(windows)
            return plain(self, windows)

        monkeypatch.setattr(FeatureCache, name, counting)
    total = int(selected.sum())
    block = pool.caches[0].read([0])
    one_window = block.embeddings.nbytes + block.coverage.nbytes // 4  # a target is a byte a patch
    kept = int(share * total)
    found, counts = fit(on_demand=True, resident_bytes=kept * one_window)
    assert counts.tolist() == [[total, total], [total - kept] * 2, [total - kept] * 2]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)


def test_caches_whose_windows_cannot_be_read_alone_are_streamed_all_the_same(tiny_manifest, tiny_backbone, tmp_path):
    extract(tiny_manifest, tiny_backbone, tmp_path / "cache", stride_px=112, block_windows=4, compress=True)
    pool = CachePool([open_cache(tmp_path / "cache")])
    groups, selected = parts(pool)
    batches = minibatches(pool, groups, SCHEMES, selected, batch_windows=BATCH, seed=1, on_demand=True)
    assert not pool.reads_single_windows
    assert all(isinstance(batch.embeddings, np.ndarray) for batch in batches)
