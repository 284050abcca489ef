"""What overlap and post-processing are compared by, against arithmetic by hand."""

import numpy as np
import pandas as pd
import pytest

from dlprobe.errors import DataError
from dlprobe.studies.designs import run_study
from dlprobe.studies.designs.kinds.localization import (
    _after,
    _alike,
    _beyond_everything,
    _differences,
    _plot,
    _scores,
    _Setting,
)

PHOTOGRAPHS = [f"p{i}" for i in range(10)]


@pytest.fixture
def images():
    """Return scores of two fakes and a photograph of each source after two steps; the second adds 0.1 to fakes."""
    rng = np.random.default_rng(1)
    rows = []
    for name in PHOTOGRAPHS:
        for variant in ("sp", "sp", "real"):
            score = rng.uniform(0.2, 0.6)
            later = score + 0.1 if variant == "sp" else score
            share = 0.3 if variant == "sp" else 0.0
            steps = {"post.threshold": score, "post.holes": later}
            rows.append({"variant": variant, "source_id": name, "mask_share": share, **steps})
    return pd.DataFrame(rows)


@pytest.fixture
def settings(images):
    return [_Setting("threshold alone", _after(images, "threshold")), _Setting("to holes", _after(images, "holes"))]


def test_each_setting_is_paired_with_the_first_by_photograph(settings):
    found = pd.DataFrame(_differences(settings, seed=0)).set_index("kind")
    assert (found["comparison"] == "to holes - threshold alone").all()
    assert found.loc["sp", "difference"] == pytest.approx(0.1)
    assert found.loc["real", "difference"] == pytest.approx(0.0)
    assert found.loc["sp", "p"] < 0.01 < found.loc["real", "p"]
    assert found["metric"].to_dict() == {"sp": "iou@original_px", "real": "false_area@original_px"}


def test_scores_are_means_over_photographs_not_images(images, settings):
    row = _scores("post-processing", settings, seed=0).set_index(["kind", "setting"]).loc["sp", "threshold alone"]
    fakes = images[images["variant"] == "sp"]
    assert row["value"] == pytest.approx(fakes.groupby("source_id")["post.threshold"].mean().mean())
    assert (row["n_sources"], row["n_images"]) == (10, 20)
    assert row["low"] < row["value"] < row["high"]


def test_marking_everything_stands_beside_every_row_and_is_compared_with_by_photograph(images, settings):
    scores = _scores("overlap", settings, seed=0)
    assert scores.set_index("kind")["everything"].to_dict() == {"sp": pytest.approx(0.3), "real": 1.0}
    ax = _plot({"scores": scores}, None)
    [bars] = [line for line in ax.lines if line.get_label() == "marking everything"]
    np.testing.assert_allclose(bars.get_xdata(), [0.3, 0.3])
    [row] = _beyond_everything(settings[0], seed=0)
    fakes = images[images["variant"] == "sp"].groupby("source_id")["post.threshold"].mean()
    assert row["kind"] == "sp"
    assert row["comparison"] == "threshold alone - marking everything"
    assert row["difference"] == pytest.approx(fakes.mean() - 0.3)


def test_what_marking_everything_gets_is_drawn_for_each_kind_where_masks_differ(images):
    fr = images[images["variant"] == "sp"].assign(variant="fr", mask_share=0.5)
    both = _Setting("threshold alone", _after(pd.concat([images, fr]), "threshold"))
    ax = _plot({"scores": _scores("overlap", [both], seed=0)}, None)
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.lines if "marking everything" in line.get_label()}
    assert drawn == {
        "sp: marking everything": [pytest.approx(0.3)],
        "fr: marking everything": [pytest.approx(0.5)],
    }


def test_strides_under_which_every_score_is_the_same_are_named_without_a_cause(images):
    wide, half, quarter = (_Setting(f"stride {px} px", _after(images, "threshold")) for px in (504, 252, 126))
    moved = quarter._replace(scores=quarter.scores.assign(value=quarter.scores["value"] + 0.1))
    assert _alike([wide, half, moved]) == [
        "Every image that has a score has the same one under stride 504 px as under stride 252 px."
    ]
    silent = [setting._replace(scores=setting.scores.assign(value=np.nan)) for setting in (wide, half)]
    assert _alike(silent) == []


@pytest.mark.parametrize("strides", ["[504]", "[504, 504]", "[504, 0]"])
def test_one_stride_compares_nothing(tmp_path, strides):
    head = 'kind = "localization"\ntitle = "t"\nquestion = "q"\n'
    body = '[data]\ndemo = true\n[[backbones]]\nname = "residual:srm"\n'
    (tmp_path / "study.toml").write_text(f"{head}{body}[options]\nstrides_px = {strides}\n")
    with pytest.raises(DataError, match="at least two strides"):
        run_study(tmp_path / "study.toml", tmp_path / "out")
