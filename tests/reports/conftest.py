"""A small evaluation and a localized image, for their reports."""

import pytest

from dlprobe.localization import SlidingSettings
from dlprobe.studies import EvaluateSettings, evaluate


@pytest.fixture(scope="package")
def small_evaluation(tiny_manifest, tiny_backbone, tiny_fit, tmp_path_factory):
    """Return an evaluation of one photograph and two fakes of it, clean and compressed."""
    frame = tiny_manifest.frame
    some = (frame["source_id"] == frame["source_id"].min()) & frame["generator"].isin(["", "telea+pca"])
    return evaluate(
        tiny_manifest.select(some),
        tiny_backbone,
        tiny_fit.probes["residual-srm/dice-autoencoded-pristine"],
        tmp_path_factory.mktemp("report") / "out",
        settings=EvaluateSettings(seen="keep", protocols=("dlprobe", "tgif"), degrade=("jpeg:quality=60",)),
        sliding=SlidingSettings(stride_px=56),
    )
