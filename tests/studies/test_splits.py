"""Sources never cross, donors stay with their receivers, held-out generators never train."""

import numpy as np
import pandas as pd
import pytest

from dlprobe.errors import DataError
from dlprobe.studies.fitting.splits import UNUSED, assign, files_by_part


def windows(n_sources=12, split="", donors=True):
    rows = []
    for s in range(n_sources):
        for generator in ("", "telea", "late"):
            for _ in range(3):
                donor = f"p:{s ^ 1}" if donors and generator else ""
                rows.append((f"p:{s}", donor, generator, split))
    return pd.DataFrame(rows, columns=["source_id", "donor_id", "generator", "split"])


def sources_of(frame, assignment, groups):
    return set(frame["source_id"][np.isin(assignment.groups, groups)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nested_folds_test_each_source_once_and_share_none(seed):
    frame = windows()
    found = assign(frame, n_folds=3, hold_out=["late"], seed=seed)
    tested = [sources_of(frame, found, fold.test) for fold in found.folds]
    assert set.union(*tested) == set(frame["source_id"])
    assert sum(map(len, tested)) == 12
    for fold, test in zip(found.folds, tested, strict=True):
        train, val = sources_of(frame, found, fold.train), sources_of(frame, found, fold.val)
        assert not train & val
        assert not train & test
        assert not val & test
        assert train
        assert val
        donors = set(frame["donor_id"][frame["source_id"].isin(test)]) - {""}
        assert donors <= test


def test_held_out_generators_are_tested_and_nothing_else():
    frame = windows()
    found = assign(frame, n_folds=3, hold_out=["late"])
    late = frame["generator"] == "late"
    for fold in found.folds:
        assert not late[np.isin(found.groups, fold.train + fold.val)].any()
    assert late[np.isin(found.groups, [g for fold in found.folds for g in fold.test])].sum() == late.sum()
    assert not late[np.isin(found.groups, found.final)].any()
    with pytest.raises(DataError, match="no image of the generator lama"):
        assign(frame, hold_out=["lama"])


def test_folds_do_not_depend_on_the_order_of_windows():
    frame = windows()
    shuffled = frame.sample(frac=1, random_state=0)
    first = pd.Series(assign(frame, n_folds=3).groups, frame["source_id"]).groupby(level=0).first()
    second = pd.Series(assign(shuffled.reset_index(drop=True), n_folds=3).groups, shuffled["source_id"])
    assert first.to_dict() == second.groupby(level=0).first().to_dict()


def test_defaults_few_sources_folds_many_sources_one_split():
    assert len(assign(windows(12)).folds) == 5
    many = assign(windows(400, donors=False))
    assert len(many.folds) == 1
    shares = [np.mean(many.groups == g) for g in range(3)]
    assert shares[0] == pytest.approx(0.7, abs=0.07)
    assert shares[1] == pytest.approx(0.15, abs=0.06)


def test_the_manifests_split_is_obeyed_and_validation_is_carved_from_training():
    frame = windows(40, donors=False)
    number = frame["source_id"].str[2:].astype(int)
    frame["split"] = np.where(number < 30, "train", "test")
    found = assign(frame)
    assert (found.groups[frame["split"] == "test"] == 2).all()
    train, val = (sources_of(frame, found, [g]) for g in (0, 1))
    assert val
    assert not train & val
    frame["split"] = np.select([number < 20, number < 30], ["train", "val"], "test")
    found = assign(frame)
    assert (found.groups == np.select([number < 20, number < 30], [0, 1], 2)).all()


def test_a_source_that_crosses_the_manifests_split_is_refused():
    frame = windows(12, donors=False)
    frame["split"] = "train"
    frame.loc[frame.index[:2], "split"] = "test"
    with pytest.raises(DataError, match=r"cross the manifest's splits \(first: p:0\)"):
        assign(frame)


def test_a_test_set_takes_its_sources_out_of_training():
    frame = windows(40, donors=False)
    test = (frame["source_id"].isin(["p:0", "p:1", "p:2"]) & (frame["generator"] == "telea")).to_numpy()
    found = assign(frame, test=test)
    assert (found.groups[test] == 2).all()
    shared = frame["source_id"].isin(["p:0", "p:1", "p:2"]).to_numpy() & ~test
    assert (found.groups[shared] == UNUSED).all()
    assert "3 groups of sources left out" in found.description
    with pytest.raises(DataError, match="exclude each other"):
        assign(frame, test=test, n_folds=5)


def test_windows_that_take_no_part_have_no_group():
    frame = windows()
    kept = np.arange(len(frame)) % 2 == 0
    found = assign(frame, kept=kept, n_folds=3)
    assert (found.groups[~kept] == UNUSED).all()
    assert (found.groups[kept] >= 0).all()


def test_too_few_sources_say_so():
    with pytest.raises(DataError, match="at least 3"):
        assign(windows(4), n_folds=5)
    with pytest.raises(DataError, match="leaves no window for"):
        assign(windows(2, donors=False), n_folds=0)


def test_a_test_set_leaves_the_manifests_split_of_the_others_alone():
    frame = windows(40, donors=False)
    number = frame["source_id"].str[2:].astype(int)
    frame["split"] = np.select([number < 20, number < 30], ["train", "val"], "test")
    test = (number >= 38).to_numpy()
    found = assign(frame, test=test)
    expected = np.select([test, number < 20, number < 30], [2, 0, 1], UNUSED)
    np.testing.assert_array_equal(found.groups, expected)


@pytest.mark.parametrize("count", [2, 4])
def test_training_is_thinned_and_nothing_else(count):
    frame = windows()
    whole = assign(frame, n_folds=4, hold_out=["late"])
    found = assign(frame, n_folds=4, hold_out=["late"], train_sources=count)
    for fold, old in zip(found.folds, whole.folds, strict=True):
        for name in ("val", "test"):
            here, there = (np.isin(one.groups, getattr(f, name)) for one, f in ((found, fold), (whole, old)))
            np.testing.assert_array_equal(here, there)
        chosen = sources_of(frame, found, fold.train)
        assert len(chosen) == count
        assert chosen <= sources_of(frame, whole, old.train)
        assert set(frame["donor_id"][frame["source_id"].isin(chosen)]) - {""} <= chosen
        assert not (frame["generator"] == "late")[np.isin(found.groups, fold.train)].any()
    assert len(sources_of(frame, found, found.final)) == count
    assert f"trained on {count} sources" in found.description


def test_more_training_contains_less():
    frame = windows()
    few, many = (assign(frame, n_folds=4, train_sources=count) for count in (2, 4))
    for one, other in zip(few.folds, many.folds, strict=True):
        assert sources_of(frame, few, one.train) < sources_of(frame, many, other.train)


def test_one_split_is_thinned_too():
    frame = windows(200, donors=False)
    whole, found = assign(frame, n_folds=0), assign(frame, n_folds=0, train_sources=30)
    assert len(sources_of(frame, found, (0,))) == 30
    for group in (1, 2):
        np.testing.assert_array_equal(found.groups == group, whole.groups == group)


@pytest.mark.parametrize("count", [1, 9, 100])
def test_a_number_that_no_fold_can_train_on_is_refused(count):
    with pytest.raises(DataError, match=f"{count} sources to train on are out of range: a fold can train on 2 to"):
        assign(windows(), n_folds=4, train_sources=count)


def test_a_card_lists_every_file_of_the_sources_that_had_a_part():
    frame = pd.DataFrame(
        {
            "cache": [0, 0, 0, 0, 1, 1],
            "path": ["a.png", "a.png", "a-sp.png", "b.png", "a.png", "c.png"],
            "source_id": ["a", "a", "a", "b", "z", "c"],
        }
    )
    hashes = [{"a.png": "1" * 64, "a-sp.png": "2" * 64, "b.png": "3" * 64}, {"a.png": "4" * 64}]  # c.png was rejected
    found = files_by_part({"train_sources": ["a"], "val_sources": ["z", "c"], "calibration_sources": []}, frame, hashes)
    assert found == {"train_files": ["1" * 16, "2" * 16], "val_files": ["4" * 16], "calibration_files": []}
