"""Both promises through the path that a fit takes: sources dealt, heads fitted and chosen among many, calibrated."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dlprobe.probes import GroupMoments
from dlprobe.spec import ModelSpec
from dlprobe.studies import FitSettings
from dlprobe.studies.fitting.calibration import calibrate
from dlprobe.studies.fitting.methods.base import Task
from dlprobe.studies.fitting.pool import CachePool, PooledBlock
from dlprobe.studies.fitting.scoring import FLAGGED_SHARE, Stack
from dlprobe.studies.fitting.selection import select
from dlprobe.studies.fitting.splits import CALIBRATION, assign, sources_by_part

SOURCES, GRID, WIDTH = 30, 4, 5
SPEC = ModelSpec(
    backbone="noise:levels",
    implementation="test",
    weights_sha256="0" * 64,
    layers=(0,),
    norm=False,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    resize_rule="none",
    window_px=GRID * 14,
    patch_px=14,
    width=WIDTH,
)
#: More than 50 heads and penalties to choose from.
SETTINGS = FitSettings(
    schemes=("autoencoded-pristine",),
    learning_rates=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    weight_decays=(0.0, 1e-3, 1e-2),
    positive_weights=(1.0, 3.0),
    epochs=1,
    patience=None,
    n_folds=3,
    baselines=("ridge",),
)


def photographs(rng, count):
    """Return embeddings of two authentic windows a source: a level of the source, skewed, and noise of the patch."""
    level = rng.exponential(size=(count, 1, 1, 1, WIDTH)) - 1
    return (level + rng.normal(size=(count, 2, GRID, GRID, WIDTH))).astype(np.float32)


def drawn(rng, count):
    """Return the windows of some sources: two authentic ones, and one that is inpainted in its upper half."""
    authentic = photographs(rng, count)
    fake = authentic[:, :1].copy()
    fake[:, :, : GRID // 2, :, 0] += 2
    return np.concatenate([authentic, fake], axis=1).reshape(-1, GRID, GRID, WIDTH)


class Drawn(CachePool):
    """A pool in memory, which notes the windows that are read."""

    model_spec = SPEC

    def __init__(self, rng):
        self.embeddings, self.seen = drawn(rng, SOURCES), set()
        self.coverage = np.zeros((3 * SOURCES, GRID, GRID, 4), np.uint8)
        self.coverage[..., 0] = 255
        self.coverage[2::3, : GRID // 2] = [0, 0, 255, 0]
        columns = {"path": np.repeat(np.arange(SOURCES), 3) * 3 + np.tile([0, 1, 2], SOURCES)}
        self.windows = pd.DataFrame(columns).assign(
            source_id=np.repeat([f"p:{i}" for i in range(SOURCES)], 3),
            variant=["real", "real", "sp"] * SOURCES,
            image=lambda rows: rows["path"],
            donor_id="",
            generator="",
            split="",
            view=0,
            cache=0,
        )
        self.kept = np.ones(len(self.windows), bool)

    def blocks(self, selected, seed=None):
        numbers = np.flatnonzero(selected & self.kept)
        if seed is not None:
            numbers = np.random.default_rng(seed).permutation(numbers)
        self.seen |= set(numbers)
        yield PooledBlock(self.embeddings[numbers], self.coverage[numbers], numbers)

    def group_moments(self, groups):
        return GroupMoments.of(self.embeddings.reshape(len(self.embeddings), -1, WIDTH), groups)


def dealt(pool, policy, seed):
    found = assign(pool.windows, kept=pool.kept, n_folds=3, calibration=policy.sources_needed, seed=seed)
    for fold in range(-1, 3):
        parts = sources_by_part(found, pool.windows["source_id"], pool.kept, fold)
        train, val, calibration = (set(names) for names in parts.values())
        assert train
        assert calibration
        assert not calibration & (train | val)
        assert not train & val
        assert val or fold < 0
    return found


def losses(column, threshold, images, policy):
    """Return for each new source what the promise is about, of its worst image."""
    marked = (Stack([column])(images)[..., 0] >= threshold).mean(axis=(2, 3)).max(axis=1)
    return marked > FLAGGED_SHARE if policy.kind == "image-fpr" else marked


@pytest.mark.parametrize(("text", "exact"), [("image-fpr:0.2", 1 / 7), ("area:0.2", None)])
def test_a_promise_holds_for_what_was_chosen_among_many(text, exact):
    """No window that calibrates is read before; then these are drawn again and again, and new sources judged."""
    settings = replace(SETTINGS, threshold_policy=text)
    policy, rates = settings.policy, []
    for repetition in range(5):
        rng = np.random.default_rng([repetition, 5])
        pool = Drawn(rng)
        assignment = dealt(pool, policy, repetition)
        apart = np.flatnonzero(assignment.groups == CALIBRATION)
        chosen = select(Task(pool, assignment, settings, pool.group_moments(assignment.groups)))
        assert not pool.seen & set(apart)
        columns = [*chosen.tested, *chosen.final]
        assert {column.method for column in columns} == {"dice", "ridge"}
        for _ in range(50):
            pool.seen.clear()
            pool.embeddings[apart] = drawn(rng, len(apart) // 3)
            promises = calibrate(pool, assignment, columns, policy)
            assert pool.seen == set(apart[pool.windows["variant"][apart] == "real"])
            assert {promise.n for promise in promises} == {len(apart) // 3} == {6}
            fresh = photographs(rng, 40)
            pairs = zip(columns, promises, strict=True)
            rates.append(np.mean([losses(c, p.threshold, fresh, policy).mean() for c, p in pairs]))
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert error < 0.012
    assert np.mean(rates) <= policy.alpha + 2 * error
    if exact is not None:
        assert np.mean(rates) == pytest.approx(exact, abs=3 * error)
    else:  # no more than the last source of the sum is given away
        assert np.mean(rates) >= policy.alpha - 1.5 / 7
