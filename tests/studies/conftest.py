"""Caches of small images whose inpainted parts are a little brighter, and of every kind that cannot be fitted."""

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.backbones.base import BackboneCard
from dlprobe.data import Manifest
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.extraction import extract
from dlprobe.spec import ModelSpec, Pins
from dlprobe.studies import FitSettings

PATCH_PX, WINDOW_PX, WIDTH = 14, 56, 6
#: Of a fit that takes no time.
QUICK = FitSettings(
    schemes=("autoencoded-pristine",),
    learning_rates=(0.3, 1.0),
    weight_decays=(1e-3,),
    epochs=2,
    patience=None,
    batch_windows=8,
    n_folds=3,
    baselines=(),
)


class Statistics:
    """Mean and deviation of the colours of each patch, as layer 0, and these squared as layer 1."""

    weights = "random:0"
    card = BackboneCard(name="statistics", weights="random:0", licence="none", trained_on="nothing")
    width, patch_px, weights_sha256 = 2 * WIDTH, PATCH_PX, "0" * 64

    def __init__(self, broken=None):
        self.broken = broken
        self.pins = Pins(engine="torch", precision="float32", device="cpu", batch_size=16)
        self.spec = ModelSpec(
            backbone="statistics:colours",
            implementation="test",
            weights_sha256=self.weights_sha256,
            layers=(0, 1),
            norm=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize_rule=RESIZE_RULE,
            window_px=WINDOW_PX,
            patch_px=PATCH_PX,
            width=2 * WIDTH,
        )

    def __call__(self, windows):
        pixels = torch.from_numpy(np.ascontiguousarray(windows)).float().div(127.5).sub(1.0)
        grid = WINDOW_PX // PATCH_PX
        patches = pixels.reshape(len(pixels), grid, PATCH_PX, grid, PATCH_PX, 3).transpose(2, 3).flatten(3, 4)
        first = torch.cat([patches.mean(dim=3), patches.std(dim=3)], dim=-1)
        found = torch.cat([first, first**2], dim=-1)
        return found if self.broken is None else self.broken(found)


def write_manifest(folder, *, sources=9, variants=("real", "ae", "sp", "fr"), lift=40, seed=0):
    """Write noise photographs; inpainted regions are brighter by `lift`, auto-encoded ones less so."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for source in range(sources):
        photograph = rng.integers(40, 160, (70, 98, 3)).astype(float) + rng.normal(0, 10)
        inside = np.zeros((70, 98), bool)
        y, x = rng.integers(0, 30), rng.integers(0, 40)
        inside[y : y + 40, x : x + 56] = True
        for variant in variants:
            shade = 0.4 * lift * (variant in {"ae", "fr"}) * np.ones((70, 98))
            if variant in {"sp", "fr"}:
                shade[inside] = lift
            name = f"{source:02d}-{variant}.png"
            pixels = np.clip(photograph + shade[..., None], 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            mask = ""
            if variant in {"sp", "fr"}:
                mask = f"{source:02d}-mask.png"
                Image.fromarray(inside.astype(np.uint8) * 255).save(folder / mask)
            rows.append(
                {
                    "path": name,
                    "mask": mask,
                    "variant": variant,
                    "source_id": f"photo:{source:02d}",
                    "generator": "" if variant in {"real", "ae"} else "lift",
                    "width": 98,
                    "height": 70,
                }
            )
    return Manifest.from_records(rows, folder)


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory):
    """Return a function that extracts a small cache and returns its path."""

    def make(broken=None, **options):
        folder = tmp_path_factory.mktemp("toy")
        manifest = write_manifest(folder / "data", **options)
        extract(manifest, Statistics(broken), folder / "cache", stride_px=WINDOW_PX, block_windows=16)
        return folder / "cache"

    return make


@pytest.fixture(scope="session")
def toy_cache(make_cache):
    """Return the path of a cache of nine sources."""
    return make_cache()


@pytest.fixture(scope="session")
def quick():
    """Return settings of a fit that takes no time."""
    return QUICK
