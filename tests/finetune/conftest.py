"""A small vision transformer with random weights, and the windows of the tiny data set for it."""

import pytest

from dlprobe.backbones import load_backbone
from dlprobe.finetune import FinetuneSettings

NAME, WINDOW_PX = "timm:test_vit", 64


@pytest.fixture
def vit():
    """Return a function that loads the same small transformer anew."""

    def load(name=NAME, **options):
        return load_backbone(name, **{"weights": "random:5", "window_px": WINDOW_PX, "device": "cpu", **options})

    return load


@pytest.fixture(scope="session")
def few(tiny_manifest):
    """Return the manifest of five photographs in four variants each, with a split by photograph."""
    frame = tiny_manifest.frame
    rows = frame[(frame["donor_id"] == "") & frame["source_id"].isin(sorted(set(frame["source_id"]))[:5])]
    rows = rows.groupby(["source_id", "variant"]).head(1)
    splits = dict(zip(sorted(rows["source_id"].unique()), ("train", "train", "train", "val", "test"), strict=True))
    return type(tiny_manifest)(rows.assign(split=rows["source_id"].map(splits)), tiny_manifest.root)


@pytest.fixture
def brief():
    """Return a function that makes settings for a short adaptation."""

    def make(**changes):
        short = {"stride_px": WINDOW_PX, "epochs": 2, "batch_windows": 8, "rank": 2, "alpha": 4.0}
        return FinetuneSettings(**{**short, "learning_rate": 1e-3, **changes})

    return make
