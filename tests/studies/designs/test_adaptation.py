"""What frozen and moved backbones are compared by, against arithmetic by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from dlprobe.data import Manifest
from dlprobe.errors import DataError, ProbeError
from dlprobe.studies.designs import run_study
from dlprobe.studies.designs.kinds.adaptation import HELD_OUT, SEEN, _differences, _kind, _lost, _notes, _place, _scores
from dlprobe.studies.designs.workshop import _folds

PHOTOGRAPHS = [f"p{i}" for i in range(12)]
#: IoU of a mode on a generator; photographs add noise of their own, the same for all modes.
MEANS = {("head", "lama"): 0.5, ("head", "sd"): 0.45, ("full", "lama"): 0.7, ("full", "sd"): 0.4}


@pytest.fixture
def images():
    noise = np.random.default_rng(0).normal(0, 0.05, (len(PHOTOGRAPHS), 2))
    rows = []
    for (mode, generator), mean in MEANS.items():
        for number, name in enumerate(PHOTOGRAPHS):
            score = mean + noise[number, int(generator == "sd")] + 0.01 * number * (mode == "full")
            common = {"model": f"timm:vit {mode}", "source_id": name, "grid": "patch", "scheme": "s"}
            fake = {**common, "variant": "fr", "generator": generator, "iou": score, "false_area": np.nan}
            rows += [{**fake, "method": "dice"}, {**fake, "method": "everything", "iou": 0.2}]
            real = {**common, "variant": "real", "generator": "", "iou": np.nan, "false_area": score / 10}
            rows += [{**real, "method": "dice"}]
    frame = pd.DataFrame(rows)
    return frame.assign(mode=frame["model"].str.split().str[-1], kind=_kind(frame, ("sd",)))


def test_kinds_tell_generators_that_were_trained_on_from_those_held_out(images):
    assert set(images["kind"]) == {f"fr, {SEEN}", f"fr, {HELD_OUT}", "real"}
    assert set(_kind(images, ())) == {"fr", "real"}


def test_the_loss_to_held_out_generators_is_a_difference_of_differences_by_photograph(images):
    found = _differences(images, ["full"], seed=0).set_index("kind")
    assert (found["comparison"] == "full - head").all()
    steps = 0.01 * np.arange(len(PHOTOGRAPHS))
    assert found.loc[f"fr, {SEEN}", "difference"] == pytest.approx(0.2 + steps.mean())
    assert found.loc[f"fr, {HELD_OUT}", "difference"] == pytest.approx(-0.05 + steps.mean())
    assert found.loc["fr, held out minus trained on", "difference"] == pytest.approx(-0.25)
    assert found.loc["real", "metric"] == "false_area@patch"
    assert (found["n_sources"] == len(PHOTOGRAPHS)).all()
    normal = ttest_1samp(0.2 + steps, 0).confidence_interval(0.95)
    row = found.loc[f"fr, {SEEN}"]
    assert (row["low"], row["high"]) == pytest.approx((normal.low, normal.high), abs=0.01)
    assert (found["p_holm"] >= found["p"]).all()


def test_more_false_alarms_on_other_generators_are_no_loss_of_iou():
    row = {"comparison": "full - head", "kind": "ae, held out minus trained on", "metric": "false_area@patch"}
    numbers = {"difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.01, "n_sources": 12}
    assert _lost(pd.Series({**row, **numbers})) == (
        "From generators trained on to those held out, the falsely marked share of ae changes by +0.100 "
        "[+0.050, +0.150] under full against head, the frozen backbone (12 photographs, p .010 after Holm)."
    )
    iou = _lost(pd.Series({**row, **numbers, "metric": "iou@patch", "kind": "fr, held out minus trained on"}))
    assert "full loses 0.100 [0.050, 0.150] less IoU on fr than head" in iou


def test_images_set_apart_for_calibration_take_no_part_in_folds():
    names = [f"p{i}" for i in range(9)]
    rows = [
        {"path": f"{name}.png", "variant": "real", "source_id": name, "split": "calibration" if i == 0 else ""}
        for i, name in enumerate(names)
    ]
    parts = _folds(Manifest.from_records(rows, "."), 3, seed=0)
    assert len(parts) == 3
    for part in parts:
        splits = part.frame.set_index("source_id")["split"]
        assert splits["p0"] == ""
        assert set(splits.drop("p0")) == {"train", "val", "test"}
    assert sorted(name for part in parts for name in part.frame.query("split == 'test'")["source_id"]) == names[1:]


def test_scores_stand_beside_what_marking_everything_gets(images):
    scores = _scores(images, ("head", "full"), seed=0).set_index(["kind", "mode"])
    by_hand = images[(images["method"] == "dice") & (images["mode"] == "full") & (images["generator"] == "sd")]
    row = scores.loc[f"fr, {HELD_OUT}", "full"]
    assert row["value"] == pytest.approx(by_hand["iou"].mean())
    assert (row["everything"], row["n_images"]) == (pytest.approx(0.2), len(PHOTOGRAPHS))
    assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize(
    ("old", "new", "error", "complaint"),
    [
        ('modes = ["head", "lora"]', 'modes = ["lora"]', DataError, "compares 'head' with at least one other mode"),
        ('name = "timm:vit_tiny_patch16_224"', 'cache = "somewhere"', DataError, "which a cache has no more"),
        ("folds = 3", "folds = 2", DataError, "nested folds need at least 3"),
        ("epochs = 1", "epochs = 0", ProbeError, "epochs 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, old, new, error, complaint):
    text = """kind = "adaptation"
title = "t"
question = "q"
[data]
demo = true
photographs = 8
side_px = 128
[[backbones]]
name = "timm:vit_tiny_patch16_224"
weights = "random:0"
window_px = 112
[finetune]
epochs = 1
[options]
modes = ["head", "lora"]
folds = 3
"""
    if new.startswith("cache"):
        text = text.replace('weights = "random:0"\nwindow_px = 112\n', "")
    path = tmp_path / "study.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(error, match=complaint):
        run_study(path, tmp_path / "out")


def test_what_only_some_folds_say_names_them():
    runs = [
        SimpleNamespace(record={"notes": ["v head: the same", f"v head: epoch {epoch} of 3 (the last)", said]})
        for epoch, said in ((3, "v head: still rising"), (2, "v full: still rising"))
    ]
    assert _notes(runs) == [
        "v head: epochs 3, 2 of 3 (the last), fold by fold",
        "v head: the same",
        "Fold 1 of 2: v head: still rising",
        "Fold 2 of 2: v full: still rising",
    ]
    assert _notes(runs[:1]) == ["v head: the same", "v head: epoch 3 of 3 (the last)", "v head: still rising"]


def test_epochs_that_not_every_fold_tells_alike_name_their_folds():
    said = ["v lora: epoch 2 of 3", "v lora: epoch 2 of 3", "v lora: epoch 3 of 3 (the last)"]
    runs = [SimpleNamespace(record={"notes": [line]}) for line in said]
    assert _notes(runs) == [
        "Fold 1 and 2 of 3: v lora: epoch 2 of 3",
        "Fold 3 of 3: v lora: epoch 3 of 3 (the last)",
    ]


def test_rows_stand_by_variant_and_known_generators_before_those_held_out():
    kinds = [f"fr, {HELD_OUT}", "real", f"sp, {HELD_OUT}", f"fr, {SEEN}", f"sp, {SEEN}"]
    assert sorted(kinds, key=_place) == [kinds[4], kinds[2], kinds[3], kinds[0], "real"]


def test_the_loss_to_held_out_generators_is_told_from_the_moved_backbone(images):
    table = _differences(images, ["full"], seed=0)
    row = table[table["kind"] == "fr, held out minus trained on"].iloc[0]
    assert _lost(row).startswith("From generators trained on to those held out, full loses 0.250 [0.2")
    assert "more IoU on fr than head, the frozen backbone (12 photographs, p " in _lost(row)
