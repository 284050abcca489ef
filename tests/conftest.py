"""A whole small data set with its cache and run, made once, by the paths that a user takes."""

import pytest

from dlprobe.backbones import load_backbone
from dlprobe.data import scan
from dlprobe.data.synthesis import HELD_OUT_GENERATORS, build_demo
from dlprobe.extraction import extract
from dlprobe.studies import FitSettings, fit_caches

WINDOW_PX = 112
SETTINGS = FitSettings(
    schemes=("autoencoded-pristine", "autoencoded-fake"),
    learning_rates=(0.3, 1.0, 3.0),
    weight_decays=(1e-3,),
    epochs=2,
    patience=None,
    n_folds=4,
    hold_out=HELD_OUT_GENERATORS,
    baselines=("logistic",),
    baseline_c=(0.01,),
    baseline_patches=1500,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return the folder of a tiny demo data set: 8 photographs of 128 px."""
    folder = tmp_path_factory.mktemp("tiny")
    build_demo(folder / "data", photographs=8, side_px=128, window_px=WINDOW_PX)
    return folder


@pytest.fixture(scope="session")
def tiny_manifest(tiny):
    """Return its manifest."""
    return scan(tiny / "data").manifest


@pytest.fixture(scope="session")
def tiny_backbone():
    """Return the residual backbone for its windows."""
    return load_backbone("residual:srm", window_px=WINDOW_PX)


@pytest.fixture(scope="session")
def tiny_cache(tiny, tiny_manifest, tiny_backbone):
    """Return the path of its cache."""
    extract(tiny_manifest, tiny_backbone, tiny / "cache", stride_px=WINDOW_PX, block_windows=16)
    return tiny / "cache"


@pytest.fixture(scope="session")
def tiny_fit(tiny, tiny_cache):
    """Return the result of a fit on it."""
    return fit_caches([tiny_cache], tiny / "run", settings=SETTINGS)
