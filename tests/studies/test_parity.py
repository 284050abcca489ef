"""The change in test IoU between two caches is that of one probe on one split."""

import numpy as np
import pytest

from dlprobe.cache import open_cache, parity
from dlprobe.extraction import extract
from dlprobe.studies import compare_caches


@pytest.fixture(scope="module")
def coarse(tiny, tiny_manifest, tiny_backbone):
    """Return the path of the tiny cache in int8, its images in another order."""
    path = tiny / "cache-int8"
    extract(tiny_manifest, tiny_backbone, path, stride_px=112, block_windows=8, dtype="int8", seed=5)
    return path


def test_a_cache_with_itself(tiny_cache):
    found = compare_caches(tiny_cache, tiny_cache)
    assert found.iou_left == found.iou_right > 0
    assert (found.iou_change, found.embeddings.max_abs) == (0.0, 0.0)


def test_another_storage_type_is_the_same_split_and_nearly_the_same_score(tiny_cache, coarse):
    found = compare_caches(tiny_cache, coarse)
    assert found.embeddings == parity(tiny_cache, coarse)
    assert found.embeddings.max_abs > 0
    assert abs(found.iou_change) < 0.05
    assert found.row()["iou_change"] == found.iou_right - found.iou_left
    assert found.change.estimate == pytest.approx(found.iou_change)
    assert found.change.low <= found.iou_change <= found.change.high


def test_other_numbers_give_another_score(tiny_cache, coarse, tmp_path, tiny_manifest):
    class Noise:
        """A backbone of the same identity whose embeddings say nothing."""

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            return getattr(self._real, name)

        def __call__(self, windows):
            import torch

            real = self._real(windows)
            return torch.randn(real.shape, generator=torch.Generator().manual_seed(int(windows.sum() % 2**31)))

    from dlprobe.backbones import load_backbone

    extract(tiny_manifest, Noise(load_backbone("residual:srm", window_px=112)), tmp_path / "noise", stride_px=112)
    found = compare_caches(tiny_cache, tmp_path / "noise")
    assert found.iou_right < found.iou_left
    assert found.iou_change < -0.02


def test_without_labels_the_embeddings_are_compared_alone(tiny_manifest, tiny_backbone, tmp_path):
    real = tiny_manifest.select((tiny_manifest.frame["variant"] == "real").to_numpy())
    extract(real, tiny_backbone, tmp_path / "real", stride_px=112)
    found = compare_caches(tmp_path / "real", tmp_path / "real")
    assert (found.iou_left, found.iou_right, found.iou_change) == (None, None, None)
    assert found.note.startswith("no probe: ")
    assert found.embeddings.windows == len(open_cache(tmp_path / "real"))
    assert np.isfinite(found.embeddings.rms)
