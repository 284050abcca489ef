"""Who trains, who chooses, who is tested: by source, never by image, window or patch.

With `n_folds` of 0 there is one split: the manifest's where it has one, else by hash of the source. Otherwise sources
are dealt into folds, and each fold is tested by probes that were fitted on all folds but two and chosen on the one
that remains. Sources joined by a donor stay together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.data.manifest import crossing_sources, source_groups
from dlprobe.errors import DataError
from dlprobe.probes.probe import FILE_DIGITS, FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

#: Below this number of source groups one hash split wastes too much, and folds are the default.
FOLDS_BELOW_GROUPS = 100
DEFAULT_FOLDS = 5
#: Shares of validation and test in a hash split, in hundredths.
_VAL_PCT, _TEST_PCT = 15, 15
#: Group of windows that take no part.
UNUSED = -1
#: Group of windows that calibrate a threshold, and nothing else.
CALIBRATION = -2
#: Share of the sources that calibrate where the manifest does not say, in hundredths, if their number allows.
_CALIBRATION_PCT = 20


@dataclass(frozen=True, slots=True)
class Fold:
    """Numbers of the groups that train, that choose, and that are tested."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The group of every window, and the folds made of groups.

    Attributes
    ----------
    groups : ndarray of int64, shape (window,)
        Group number.
    folds : tuple of Fold
        Each tested group belongs to one fold.
    final : tuple of int
        Groups on which the probe for new images is fitted.
    description : str
        One line for the results table.
    """

    groups: NDArray[np.int64]
    folds: tuple[Fold, ...]
    final: tuple[int, ...]
    description: str


def assign(
    windows: pd.DataFrame,
    *,
    kept: NDArray[np.bool_] | None = None,
    n_folds: int | None = None,
    hold_out: Collection[str] = (),
    test: NDArray[np.bool_] | None = None,
    calibration: int = 0,
    train_sources: int | None = None,
    seed: int = 0,
) -> Assignment:
    """Assign windows to groups.

    Parameters
    ----------
    windows : DataFrame
        With columns source_id, donor_id, generator and split, one row a window.
    kept : ndarray of bool, shape (window,), optional
        Windows that take part; the others get the group `UNUSED` and count nowhere.
    n_folds : int, optional
        0 for one split, 3 or more for nested cross-validation; by default one split where the manifest names one or
        there are at least `FOLDS_BELOW_GROUPS` groups of sources, else 5 folds (fewer if there are fewer groups).
    hold_out : collection of str
        Generators whose images are tested but neither train nor choose.
    test : ndarray of bool, shape (window,), optional
        Windows of data sets that are only tested. Then all others train or choose, except those that share a source
        with a tested one.
    calibration : int
        Sources with authentic images that a promise needs. The manifest's split ``calibration`` then calibrates, or,
        where it names none, sources dealt by hash (of its split ``train``, if it has one): this many or a fifth,
        whichever is more, but no more than half. They get the group `CALIBRATION`. With 0, the manifest's split
        ``calibration`` takes no part.
    train_sources : int, optional
        Train on so many sources and leave the others of the training part out; who chooses and is tested stays.
    seed : int
        Of the hash that deals sources.

    Raises
    ------
    DataError
        If sources cross the manifest's splits, there are too few groups for the folds or for calibration, or a part is
        empty.
    """
    kept = np.ones(len(windows), bool) if kept is None else kept
    apart = _set_apart(windows, kept, test, calibration, seed)
    found = _dealt(windows, kept & ~apart, n_folds=n_folds, hold_out=hold_out, test=test, seed=seed)
    if train_sources is not None:
        found = _thinned(found, windows, train_sources, seed)
    if not calibration:
        return found
    n_sources = windows["source_id"][apart].nunique()
    return replace(
        found,
        groups=np.where(apart, CALIBRATION, found.groups),
        description=f"{found.description}; {n_sources} sources set apart for calibration",
    )


def sources_by_part(
    assignment: Assignment, source_ids: pd.Series, kept: NDArray[np.bool_], fold: int = -1
) -> dict[str, list[str]]:
    """Return the sources that had a part in a probe, for its card.

    Parameters
    ----------
    assignment : Assignment
        Who trained, chose and calibrated.
    source_ids : Series of str, length windows
        Of each window.
    kept : ndarray of bool, shape (window,)
        Windows that took part.
    fold : int
        Of the probe; -1 is the one for new images, which all folds chose.

    Returns
    -------
    dict of str to list of str
        ``train_sources``, ``val_sources`` (those that chose and did not train) and ``calibration_sources``.
    """
    folds = assignment.folds if fold < 0 else assignment.folds[fold : fold + 1]
    trained = assignment.final if fold < 0 else folds[0].train
    chose = {group for each in folds for group in each.val} - set(trained)
    parts = {"train": trained, "val": tuple(chose), "calibration": (CALIBRATION,)}
    return {
        f"{name}_sources": sorted(source_ids[np.isin(assignment.groups, groups) & kept].unique())
        for name, groups in parts.items()
    }


def files_by_part(
    took_part: Mapping[str, Collection[str]], windows: pd.DataFrame, hashes: Sequence[Mapping[str, str]]
) -> dict[str, list[str]]:
    """Return the image files of the sources that had a part in a probe, for its card.

    Parameters
    ----------
    took_part : mapping of str to collection of str
        As `sources_by_part` returns it.
    windows : DataFrame
        With ``cache``, ``path`` and ``source_id``: every file of a source counts, whether or not it took part itself.
    hashes : sequence of mapping of str to str
        Of each cache, the sha256 of files by path.

    Returns
    -------
    dict of str to list of str
        ``train_files`` and so on: the first `FILE_DIGITS` digits of each hash, sorted.
    """
    images = windows[["cache", "path", "source_id"]].drop_duplicates()
    marks = [
        hashes[number].get(path, "")[:FILE_DIGITS] for number, path in zip(images["cache"], images["path"], strict=True)
    ]
    found = images.assign(mark=marks)
    return {
        name.replace("_sources", FILES): sorted(set(found.loc[found["source_id"].isin(list(sources)), "mark"]) - {""})
        for name, sources in took_part.items()
    }


def _dealt(
    windows: pd.DataFrame,
    kept: NDArray[np.bool_],
    *,
    n_folds: int | None,
    hold_out: Collection[str],
    test: NDArray[np.bool_] | None,
    seed: int,
) -> Assignment:
    """Deal what is left after calibration to those who train, choose and are tested."""
    frame = windows[kept].reset_index(drop=True)
    held = frame["generator"].isin(list(hold_out)).to_numpy(dtype=bool)
    if missing := sorted(set(hold_out) - set(frame["generator"])):
        msg = f"no image of the generator {', '.join(missing)} to hold out; there are {sorted(set(frame['generator']))}"
        raise DataError(msg)
    sources = source_groups(frame)
    named = bool((frame["split"] != "").any())
    if test is not None and test.any():
        if n_folds:
            msg = f"{n_folds} folds and a test set exclude each other; leave out --folds or --test"
            raise DataError(msg)
        found = _held_out_set(frame, sources, held, test[kept], seed)
    else:
        if not named:
            _require_two_groups(frame, sources)
        if n_folds is None:
            many = sources.nunique() >= FOLDS_BELOW_GROUPS
            n_folds = 0 if named or many else min(DEFAULT_FOLDS, int(sources.nunique()))
        found = _nested(sources, held, n_folds, seed) if n_folds else _split(frame, sources, held, seed, named)
    groups = np.full(len(windows), UNUSED, np.int64)
    groups[kept] = found.groups
    return replace(found, groups=groups)


def _require_two_groups(frame: pd.DataFrame, sources: pd.Series) -> None:
    if sources.nunique() > 1:
        return
    names = sorted(frame["source_id"].unique())
    if len(names) < 2:
        what = f"there is one source, {names[0]}," if names else "there is no source"
    else:
        what = f"all {len(names)} sources are joined by donors of pasted content (first: {names[0]}),"
    msg = f"{what} and one part would train, choose and be tested: add photographs, at least 3 with images of their own"
    raise DataError(msg)


def _set_apart(
    windows: pd.DataFrame, kept: NDArray[np.bool_], test: NDArray[np.bool_] | None, needed: int, seed: int
) -> NDArray[np.bool_]:
    """Return the windows that calibrate, of sources that do nothing else."""
    named: NDArray[np.bool_] = kept & (windows["split"] == "calibration").to_numpy()
    if not needed:
        return named
    frame = windows[kept]
    if crossing := crossing_sources(frame):
        msg = f"{len(crossing)} sources cross the manifest's splits (first: {crossing[0]}); split by source_id"
        raise DataError(msg)
    sources = source_groups(windows)
    free = kept if test is None else kept & ~sources.isin(set(sources[test & kept])).to_numpy(dtype=bool)
    if not named.any() and (windows["split"] == "train").any():
        free = free & (windows["split"] == "train").to_numpy()  # the manifest's val and test stay what they are
    authentic = free & (windows["variant"] == "real").to_numpy()
    if named.any():
        chosen: NDArray[np.bool_] = free & named
        limit = there = windows["source_id"][authentic & named].nunique()
    else:
        sizes = windows[authentic].groupby(sources[authentic])["source_id"].nunique()
        there, limit = int(sizes.sum()), int(sizes.sum()) // 2
        order = sorted(sizes.index, key=lambda name: _hash(f"calibration:{name}", seed))
        wanted = min(limit, max(needed, there * _CALIBRATION_PCT // 100))
        enough = int(np.searchsorted(np.cumsum([sizes[name] for name in order]), wanted)) + 1
        chosen = free & sources.isin(order[:enough]).to_numpy(dtype=bool)
    if limit < needed:
        msg = (
            f"the promise needs {needed} sources with authentic images for calibration alone; there are "
            f"{there}{'' if named.any() else ', of which half may be set apart'}; add sources or ask for a larger rate"
        )
        raise DataError(msg)
    return chosen


def _held_out_set(
    frame: pd.DataFrame, sources: pd.Series, held: NDArray[np.bool_], test: NDArray[np.bool_], seed: int
) -> Assignment:
    shared = sources.isin(set(sources[test])).to_numpy(dtype=bool) & ~test
    rest = frame["split"].where(~pd.Series(test, index=frame.index), "")
    if (rest != "").any():
        splits = _named_splits(frame.assign(split=rest), sources, seed)
        text = "test set apart, the rest as the manifest's train and val"
    else:
        percent = sources.map(lambda name: _hash(name, seed) % 100).to_numpy()
        splits = np.where(percent < _VAL_PCT, "val", "train")
        text = f"test set apart, the rest by hash of source_id {100 - _VAL_PCT}/{_VAL_PCT}"
    groups = np.select([test, shared | held, splits == "val", splits == "train"], [2, UNUSED, 1, 0], UNUSED)
    groups = groups.astype(np.int64)
    if shared.any():
        text += f"; {sources[shared].nunique()} groups of sources left out of training because the test set holds them"
    return _single(groups, text)


def _nested(sources: pd.Series, held: NDArray[np.bool_], n_folds: int, seed: int) -> Assignment:
    names = sorted(sources.unique(), key=lambda name: _hash(name, seed))
    if n_folds < 3 or len(names) < n_folds:
        msg = (
            f"{n_folds} folds of {len(names)} groups of sources (joined by donors, the largest of "
            f"{sources.value_counts().iloc[0]} windows): nested folds need at least 3, and as many groups; "
            "add photographs, or name splits in the manifest"
        )
        raise DataError(msg)
    number = {name: i % n_folds for i, name in enumerate(names)}
    groups = sources.map(number).to_numpy(np.int64, copy=True)
    groups[held] += n_folds
    folds = tuple(
        Fold(
            train=tuple(g for g in range(n_folds) if g not in {k, (k + 1) % n_folds}),
            val=((k + 1) % n_folds,),
            test=(k, k + n_folds),
        )
        for k in range(n_folds)
    )
    text = f"nested cross-validation, {n_folds} folds of {len(names)} groups of sources, each source tested once"
    return Assignment(groups, folds, tuple(range(n_folds)), text)


def _thinned(found: Assignment, windows: pd.DataFrame, train_sources: int, seed: int) -> Assignment:
    """Train on the first sources by hash, as many as were asked for; sources joined by a donor come together."""
    used = found.groups >= 0
    joined = np.full(len(windows), "", object)
    joined[used] = source_groups(windows[used].reset_index(drop=True)).to_numpy()
    size = windows["source_id"][used].groupby(joined[used]).nunique()
    ranked = sorted(size.index, key=lambda name: _hash(str(name), seed))
    text = f"{found.description}; trained on {train_sources} sources"

    def first(train: tuple[int, ...]) -> list[str]:
        there = set(joined[np.isin(found.groups, train)])
        candidates = [name for name in ranked if name in there]
        reached = size[candidates].cumsum()
        if reached.empty or reached.iloc[0] > train_sources or reached.iloc[-1] < train_sources:
            few, many = (0, 0) if reached.empty else (reached.iloc[0], reached.iloc[-1])
            msg = f"{train_sources} sources to train on are out of range: a fold can train on {few} to {many}"
            raise DataError(msg)
        return [name for name in candidates if reached[name] <= train_sources]

    if len(found.folds) == 1:
        left_out = np.isin(found.groups, found.final) & ~np.isin(joined, first(found.final))
        return replace(found, groups=np.where(left_out, UNUSED, found.groups), description=text)
    return replace(_regrouped(found, joined, ranked, first), description=text)


def _regrouped(
    found: Assignment, joined: NDArray[np.object_], ranked: list[str], first: Callable[[tuple[int, ...]], list[str]]
) -> Assignment:
    """Give every source a group of its own, so that a fold can leave out a source which the next fold tests."""
    used = found.groups >= 0
    cells = sorted(
        set(zip(joined[used], found.groups[used].tolist(), strict=True)), key=lambda c: (ranked.index(c[0]), c[1])
    )
    number = {cell: i for i, cell in enumerate(cells)}
    groups = np.full(len(joined), UNUSED, np.int64)
    groups[used] = [number[cell] for cell in zip(joined[used], found.groups[used].tolist(), strict=True)]

    def within(olds: tuple[int, ...], names: Collection[str] = ranked) -> tuple[int, ...]:
        chosen = set(names)
        return tuple(i for i, (name, old) in enumerate(cells) if old in olds and name in chosen)

    folds = tuple(
        Fold(within(fold.train, first(fold.train)), within(fold.val), within(fold.test)) for fold in found.folds
    )
    return Assignment(groups, folds, within(found.final, first(found.final)), found.description)


def _split(windows: pd.DataFrame, sources: pd.Series, held: NDArray[np.bool_], seed: int, named: bool) -> Assignment:
    if named:
        splits = _named_splits(windows, sources, seed)
        text = "the manifest's split"
    else:
        percent = sources.map(lambda name: _hash(name, seed) % 100).to_numpy()
        splits = np.select([percent < _TEST_PCT, percent < _TEST_PCT + _VAL_PCT], ["test", "val"], "train")
        text = f"by hash of source_id, {100 - _VAL_PCT - _TEST_PCT}/{_VAL_PCT}/{_TEST_PCT}"
    number = {"train": 0, "val": 1, "test": 2, "": UNUSED}
    groups = np.array([number[str(split)] for split in splits], np.int64)
    groups[held & (groups != 2)] = UNUSED
    return _single(groups, text)


def _named_splits(windows: pd.DataFrame, sources: pd.Series, seed: int) -> NDArray[np.object_]:
    """Return the manifest's splits; where it has no val, some sources of train choose."""
    if crossing := crossing_sources(windows):
        msg = f"{len(crossing)} sources cross the manifest's splits (first: {crossing[0]}); split by source_id"
        raise DataError(msg)
    splits: NDArray[np.object_] = windows["split"].to_numpy(dtype=object).copy()
    if not (splits == "val").any():
        young = np.array([_hash(name, seed) % 100 < _VAL_PCT for name in sources])
        splits[(splits == "train") & young] = "val"
    return splits


def _single(groups: NDArray[np.int64], text: str) -> Assignment:
    for number, name in enumerate(("train", "val", "test")):
        if not (groups == number).any():
            msg = f"the split ({text}) leaves no window for {name}; name splits in the manifest or use --folds"
            raise DataError(msg)
    return Assignment(groups, (Fold((0,), (1,), (2,)),), (0,), text)


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
