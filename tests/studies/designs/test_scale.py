"""The size at which detection falls to half, against a direct maximisation and by simulation."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from dlprobe.metrics.intervals.resampling import jackknife_interval
from dlprobe.studies.designs.kinds.scale import detection_growth


def drawn(rng, n, half=-4.0, slope=1.2):
    size = rng.uniform(-8, -1, n)
    return size, rng.random(n) < expit(slope * (size - half))


def penalised(size, hit):
    """Maximise the likelihood times the square root of the information's determinant."""
    design = np.column_stack([np.ones_like(size), size])

    def loss(beta):
        z = design @ beta
        chance = expit(z)
        information = design.T @ ((chance * (1 - chance))[:, None] * design)
        return -(hit * z - np.logaddexp(0, z)).sum() - 0.5 * np.linalg.slogdet(information)[1]

    beta = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9999}).x
    return -beta[0] / beta[1], beta[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_that_of_a_direct_maximisation(seed):
    size, hit = drawn(np.random.default_rng(seed), 40)
    half, slope = penalised(size, hit)
    assert detection_growth(size, hit) == (pytest.approx(half, abs=1e-4), pytest.approx(slope, abs=1e-4))


def test_sizes_that_separate_hits_from_misses_give_a_finite_curve():
    size = np.arange(-8.0, 0)
    found = detection_growth(size, size > -4.5)
    assert found.half == pytest.approx(-4.5, abs=0.2)
    assert 0 < found.slope < 10


def test_what_does_not_rise_has_no_half():
    size = np.arange(-8.0, 0)
    assert np.isnan(detection_growth(size, size < -4).half)
    assert np.isnan(detection_growth(np.zeros(9), np.arange(9) > 4).half)


def test_the_interval_holds_the_true_half_as_often_as_it_says():
    rng, hits, runs = np.random.default_rng(0), 0, 200
    for _ in range(runs):
        shift = np.repeat(rng.normal(0, 0.5, 16), 8)  # photographs differ
        size, _ = drawn(rng, 128)
        hit = rng.random(128) < expit(1.2 * (size + 4 - shift))
        found = jackknife_interval(
            lambda rows, size=size, hit=hit: detection_growth(size[rows], hit[rows])._asdict(),
            np.repeat(np.arange(16), 8).astype(str),
            resamples=499,
        )["half"]
        hits += found.low <= -4 <= found.high
    assert 0.90 <= hits / runs <= 0.99
