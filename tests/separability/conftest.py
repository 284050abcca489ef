"""Two small caches of the same windows, of nine photographs without donors, and what a measurement of them gives."""

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.backbones.base import BackboneCard
from dlprobe.cache import open_cache
from dlprobe.data import Manifest
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.extraction import extract
from dlprobe.separability import SeparabilitySettings, separate
from dlprobe.spec import ModelSpec, Pins

SETTINGS = SeparabilitySettings(sample_per_class=60, neighbours=5)


class Colours:
    """The mean and spread of the colours of each patch, beside one constant; `seed` mixes them."""

    weights = "random:0"
    card = BackboneCard(name="colours", weights="random:0", licence="none", trained_on="nothing")
    width = 7

    def __init__(self, patch_px=16, seed=None):
        self.patch_px, self.weights_sha256 = patch_px, f"{seed}".rjust(64, "0")
        self.mix = np.eye(7) if seed is None else np.random.default_rng(seed).normal(size=(7, 7))
        self.pins = Pins(engine="torch", precision="float32", device="cpu", batch_size=4)
        self.spec = ModelSpec(
            backbone=f"colours:{patch_px}:{seed}",
            implementation="colours",
            weights_sha256=self.weights_sha256,
            layers=(),
            norm=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize_rule=RESIZE_RULE,
            window_px=96,
            patch_px=patch_px,
            width=7,
        )

    def __call__(self, windows):
        n, h, w, _ = windows.shape
        p = self.patch_px
        tiles = np.asarray(windows).reshape(n, h // p, p, w // p, p, 3).astype(np.float64) / 255
        parts = [tiles.mean(axis=(2, 4)), tiles.std(axis=(2, 4)), np.ones((n, h // p, w // p, 1))]
        return torch.from_numpy((np.concatenate(parts, axis=-1) @ self.mix).astype(np.float32))


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Return the paths of the caches: plain, of mixed colours on the same grid, and on a coarser grid."""
    folder = tmp_path_factory.mktemp("separable")
    rng = np.random.default_rng(0)
    rows = []
    mask = np.zeros((96, 96), np.uint8)
    mask[16:64, 32:96] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for source in range(9):
        real = rng.integers(0, 256, (6, 6, 3)).repeat(16, axis=0).repeat(16, axis=1)
        real = np.clip(real + rng.normal(0, 12, real.shape), 0, 255)
        smooth = np.clip(real + 6, 0, 255) * 0.9
        spliced = np.where(mask[..., None] > 0, 0.6 * real + 70, real)
        for variant, pixels in (("real", real), ("ae", smooth), ("sp", spliced)):
            name = f"{variant}{source}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append({"path": name, "mask": "mask.png" if variant == "sp" else "", "variant": variant})
            rows[-1] |= {"source_id": f"s{source}", "generator": "test", "width": 96, "height": 96}
    manifest = Manifest.from_records(rows, folder)
    made = {"plain": Colours(), "mixed": Colours(seed=1), "coarse": Colours(patch_px=24)}
    for name, backbone in made.items():
        extract(manifest, backbone, folder / name, window_px=96, stride_px=96, block_windows=4, dtype="float32")
    extract(manifest, made["plain"], folder / "blocks", window_px=96, stride_px=96, block_windows=27, dtype="float32")
    return {name: folder / name for name in (*made, "blocks")}


@pytest.fixture(scope="session")
def measured(paths):
    """Return the result on the plain and the mixed cache."""
    return separate([paths["plain"], paths["mixed"]], settings=SETTINGS)


@pytest.fixture(scope="session")
def rows(paths):
    """Return every patch of the plain cache in memory: embeddings in float64, coverage, source_id."""
    cache = open_cache(paths["plain"])
    block = cache.read(np.arange(len(cache)))
    sources = np.repeat(cache.windows["source_id"].to_numpy(str), 36)
    return block.embeddings.reshape(-1, 7).astype(np.float64), block.coverage.reshape(-1, 4), sources
