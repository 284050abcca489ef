"""Moments of groups against NumPy on the pooled rows."""

import numpy as np
import pytest

from dlprobe.errors import ProbeError
from dlprobe.probes import GroupMoments

RNG = np.random.default_rng(0)
EMBEDDINGS = (RNG.normal(size=(12, 7, 5)) * [1, 5, 0.1, 0, 2] + [0, 100, 3, 4.25, -1]).astype(np.float16)
GROUPS = np.array([0, 1, 2, -1] * 3)


def test_pooled_groups_agree_with_the_rows_themselves():
    moments = GroupMoments.of(EMBEDDINGS, GROUPS)
    for groups in [(0,), (1, 2), (0, 1, 2)]:
        rows = EMBEDDINGS[np.isin(GROUPS, groups)].reshape(-1, 5).astype(np.float64)
        mean, deviation = moments.standardisation(groups)
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(deviation, rows.std(axis=0), rtol=1e-7)


def test_float32_sums_of_windows_do_just_as_well_and_a_constant_feature_stays_constant():
    sums = EMBEDDINGS.sum(axis=1, dtype=np.float32)
    squares = np.square(EMBEDDINGS, dtype=np.float32).sum(axis=1)
    moments = GroupMoments.from_windows(GROUPS, sums, squares, 7, n_groups=3)
    exact = GroupMoments.of(EMBEDDINGS, GROUPS)
    np.testing.assert_allclose(moments.sum, exact.sum, rtol=1e-6)
    standard = moments.standardisation((0, 1, 2))
    assert standard.deviation[3] == standard.inverse[3] == 0
    np.testing.assert_allclose(standard.deviation[:3], exact.standardisation((0, 1, 2)).deviation[:3], rtol=1e-3)


def test_a_constant_feature_whose_sums_are_rounded_is_constant():
    window = np.full((1296, 1), 3.3, np.float16).astype(np.float32)
    sums, squares = (np.repeat(each.sum(axis=0)[None], 4, axis=0) for each in (window, window**2))
    moments = GroupMoments.from_windows(np.zeros(4, np.int64), sums, squares, 1296)
    assert moments.sum_of_squares[0, 0] / moments.count[0] != (moments.sum[0, 0] / moments.count[0]) ** 2
    assert moments.standardisation((0,)).deviation[0] == 0


def test_missing_and_empty_groups_are_refused():
    moments = GroupMoments.of(EMBEDDINGS, np.where(GROUPS == 1, 0, GROUPS))
    with pytest.raises(ProbeError, match="no moments; there are groups 0 to 2"):
        moments.standardisation((0, 3))
    with pytest.raises(ProbeError, match="hold no patch"):
        moments.standardisation((1,))
