"""Storage codecs against their definitions, with hypothesis."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from dlprobe.cache.stores.codecs import dequantise
from dlprobe.extraction.embedding import encode

VALUES = arrays(np.float32, (2, 2, 3, 4), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_int8_errs_by_half_a_step_at_most_and_keeps_extremes(values):
    codes, scale, peak = (part.numpy() for part in encode(torch.from_numpy(values), "int8"))
    largest = np.abs(values).max(axis=(1, 2))
    assert_array_equal(peak, largest)
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)) <= 127).all()
    found = dequantise(codes, scale).astype(np.float64)
    assert (np.abs(found - values) <= largest[:, None, None] * (0.5 / 127 * (1 + 1e-5)) + 1e-38).all()
    assert (np.abs(codes.astype(int)).max(axis=(1, 2))[largest > 1e-30] == 127).all()


def test_a_feature_of_zeros_stays_zero():
    codes, scale, _ = encode(torch.zeros(1, 2, 2, 3), "int8")
    assert not scale.any()
    assert not dequantise(codes.numpy(), scale.numpy()).any()


def test_each_window_is_scaled_by_its_own_scale():
    codes = np.arange(24, dtype=np.int8).reshape(2, 2, 2, 3)
    scale = np.array([[1, 2, 3], [10, 20, 30]], np.float32)
    expected = np.empty(codes.shape, np.float32)
    for window, row, col, feature in np.ndindex(codes.shape):
        expected[window, row, col, feature] = int(codes[window, row, col, feature]) * scale[window, feature]
    assert_array_equal(dequantise(codes, scale), expected)
    out = np.empty_like(expected)
    assert dequantise(codes, scale, out) is out
    assert_array_equal(out, expected)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (1, 2, 2, 3), elements=st.floats(-65504, 65504, width=32)))
def test_floats_are_numpy_s_rounding(values):
    stored, scale, _ = encode(torch.from_numpy(values), "float16")
    assert scale is None
    assert_array_equal(stored.numpy(), values.astype(np.float16))
    assert_array_equal(encode(torch.from_numpy(values), "float32")[0].numpy(), values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_peak_shows_what_is_not_finite(value, dtype):
    tokens = torch.ones(2, 2, 2, 3)
    tokens[1, 0, 1, 2] = value
    finite = torch.isfinite(encode(tokens, dtype)[2])
    assert finite.tolist() == [[True, True, True], [True, True, False]]
