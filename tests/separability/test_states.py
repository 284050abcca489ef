"""Sums and samples: streamed in any pieces and merged in any order, they are what one look at everything gives."""

import numpy as np
import pytest

from dlprobe.errors import MetricError
from dlprobe.separability.states import MomentsState, SampleState, patch_classes

RNG = np.random.default_rng(0)
N, WIDTH, GROUPS = 3000, 5, 4
#: Whole numbers, whose sums of products are exact in float64 whatever the order.
WHOLE = RNG.integers(-40, 40, (N, WIDTH)).astype(np.float16)
CLASSES = RNG.integers(-1, 3, N)
GROUP = RNG.integers(0, GROUPS, N)
SOURCES, PLACES, NUMBERS = GROUP + GROUPS * RNG.integers(0, 3, N), RNG.integers(0, 900, N), RNG.permutation(N)
ORIGIN = np.arange(WIDTH, dtype=np.float64)


def moments(parts, rows=WHOLE):
    first, *others = (MomentsState(ORIGIN, GROUPS).update(rows[part], CLASSES[part], GROUP[part]) for part in parts)
    for other in others:
        first.merge(other)
    return first


def sampled(parts, seed=0):
    first, *others = (
        SampleState(50, seed).update(WHOLE[p], CLASSES[p], GROUP[p], SOURCES[p], places=PLACES[p], numbers=NUMBERS[p])
        for p in parts
    )
    for other in others:
        first.merge(other)
    return first.sample()


@pytest.mark.parametrize("pieces", [1, 2, 7, 100])
def test_streamed_and_merged_moments_equal_those_of_everything_bit_for_bit(pieces):
    whole = moments([np.arange(N)])
    parts = moments(np.array_split(np.random.default_rng(pieces).permutation(N), pieces))
    for kind in range(3):
        for one, other in zip(whole.gaussian(kind, range(GROUPS)), parts.gaussian(kind, range(GROUPS)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("groups", [(0,), (1, 3), range(GROUPS)])
@pytest.mark.parametrize("kind", range(3))
def test_a_gaussian_is_numpys_mean_and_covariance_of_those_groups(kind, groups):
    rows = RNG.normal(1e3, 1, (N, WIDTH)).astype(np.float32)
    found = moments([np.arange(N)], rows).gaussian(kind, groups)
    chosen = rows[(kind == CLASSES) & np.isin(GROUP, list(groups))].astype(np.float64)
    assert found.patches == len(chosen)
    np.testing.assert_allclose(found.mean, chosen.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(chosen.T, bias=True), rtol=1e-6, atol=1e-8)


def test_a_class_without_patches_has_no_gaussian():
    state = MomentsState(ORIGIN, GROUPS).update(WHOLE, np.zeros(N, int), GROUP)
    assert state.gaussian(1, range(GROUPS)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_where_they_count(bad):
    rows = WHOLE[:4].copy()
    rows[2, 1] = bad
    MomentsState(ORIGIN, 1).update(rows, np.array([0, 1, -1, 2]), np.zeros(4, int))
    with pytest.raises(MetricError, match="not finite"):
        MomentsState(ORIGIN, 1).update(rows, np.array([0, 1, 1, 2]), np.zeros(4, int))


def test_states_that_began_differently_do_not_merge():
    with pytest.raises(MetricError, match="origin"):
        MomentsState(ORIGIN, 2).merge(MomentsState(ORIGIN + 1, 2))
    with pytest.raises(MetricError, match="seed"):
        SampleState(5, 0).merge(SampleState(5, 1))
    with pytest.raises(MetricError, match="width 5"):
        MomentsState(ORIGIN, 1).update(WHOLE[:, :3], CLASSES, GROUP)


@pytest.mark.parametrize("pieces", [2, 9])
def test_a_sample_does_not_depend_on_the_order_of_the_patches(pieces):
    whole = sampled([np.arange(N)])
    parts = sampled(np.array_split(np.random.default_rng(pieces).permutation(N), pieces))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.bincount(whole.classes).tolist() == [50, 50, 50]


def test_a_sample_is_even_and_depends_on_the_seed():
    counts = np.zeros(N)
    for seed in range(200):
        state = SampleState(50, seed)
        zeros = np.zeros(N, int)
        state.update(NUMBERS[:, None].astype(float), zeros, zeros, zeros, places=zeros, numbers=NUMBERS)
        counts[state.sample().embeddings[:, 0].astype(int)] += 1
    expected = 200 * 50 / N
    # a binomial's variance around its mean: a biased hash would spread wider
    assert 0.8 * expected < counts.var() < 1.2 * expected
    assert abs(np.corrcoef(counts, np.arange(N))[0, 1]) < 0.08


def test_a_patch_belongs_to_the_class_that_covers_most_of_it():
    coverage = np.array(
        [[255, 0, 0, 0], [128, 127, 0, 0], [127, 0, 127, 1], [0, 0, 200, 55], [0, 100, 0, 155]], np.uint8
    )
    assert patch_classes(coverage).tolist() == [0, 0, -1, 2, -1]
    assert patch_classes(coverage, 1.0).tolist() == [0, -1, -1, -1, -1]
    assert patch_classes(coverage, 200 / 255).tolist() == [0, -1, -1, 2, -1]
    with pytest.raises(MetricError, match=r"0\.4"):
        patch_classes(coverage, 0.4)
