"""What a fit refuses, in one line and before anything is fitted or written."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from dlprobe_cli.main import app
from typer.testing import CliRunner

from dlprobe.cache import open_cache
from dlprobe.errors import CacheError, DataError, DlprobeError
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fitting.methods.heads import HeadGrid
from dlprobe.studies.fitting.splits import CALIBRATION, assign


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"baseline_c": (-1.0,)}, "baseline_c holds -1; each must be a number above 0"),
        ({"baseline_c": (0.0, 1.0)}, "baseline_c holds 0;"),
        ({"learning_rates": (float("inf"),)}, "learning_rates holds inf; each must be a number above 0"),
        ({"learning_rates": (1.0, float("nan"))}, "learning_rates holds nan;"),
        ({"positive_weights": (float("inf"),)}, "positive_weights holds inf;"),
        ({"weight_decays": (-0.1,)}, "weight_decays holds -0.1; each must be a number 0 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"device": "gpu"}, "no device 'gpu'; write cpu, cuda or cuda:N"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(wrong, words):
    with pytest.raises(DlprobeError, match=words):
        FitSettings(**wrong)


@pytest.mark.parametrize(
    "options", [("--baseline-c", "0"), ("--lr", "inf"), ("--positive-weight", "inf"), ("--wd", "nan"), ("--seed", "-2")]
)
def test_the_command_says_so_in_one_line_and_exits_with_2(toy_cache, tmp_path, options):
    found = CliRunner().invoke(app, ["fit", str(toy_cache), "-o", str(tmp_path / "run"), *options])
    assert found.exit_code == 2
    assert found.stdout == ""
    assert "must be" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()


def test_one_source_is_called_one_source(make_cache, quick, tmp_path):
    cache = make_cache(sources=1)
    for settings in (quick, replace(quick, n_folds=0)):
        with pytest.raises(DataError, match=r"^there is one source, photo:00, .* add photographs"):
            fit_caches([cache], tmp_path / "run", settings=settings)
    frame = open_cache(cache).windows
    joined = frame.assign(source_id=[f"p:{i % 2}" for i in range(len(frame))], donor_id="p:0")
    with pytest.raises(DataError, match=r"all 2 sources are joined by donors of pasted content \(first: p:0\)"):
        assign(joined)


def test_embeddings_that_are_all_the_same_are_refused(make_cache, quick, tmp_path):
    cache = make_cache(broken=torch.ones_like)
    with pytest.raises(CacheError, match="have the same embedding: nothing can be learned") as caught:
        fit_caches([cache], tmp_path / "run", settings=replace(quick, baselines=("logistic", "ridge")))
    assert str(cache) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_calibration_images_without_a_patch_that_counts_are_told_before_the_fit(
    make_cache, quick, tmp_path, monkeypatch
):
    source = make_cache(sources=16)
    windows = open_cache(source).windows
    assert (assign(windows, n_folds=3, calibration=3).groups == CALIBRATION).any()
    shutil.copytree(source, tmp_path / "cache")
    array = zarr.open_group(tmp_path / "cache" / "features.zarr", mode="r+")["coverage"]
    real = np.flatnonzero(windows["variant"] == "real")
    array[real] = np.broadcast_to(np.array([0, 0, 0, 255], np.uint8), array[real].shape)
    monkeypatch.setattr(HeadGrid, "candidates", lambda _: pytest.fail("fitted before the promise was looked at"))
    with pytest.raises(DataError, match=r"needs 3 sources .* of those set apart only 0 have one with patches that c"):
        fit_caches([tmp_path / "cache"], tmp_path / "run", settings=replace(quick, threshold_policy="area:0.25"))
    assert not (tmp_path / "run").exists()
