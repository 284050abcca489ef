"""Storage codecs against their definitions, with hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from dlprobe.cache.stores.codecs import dequantise, quantise, to_float
from dlprobe.errors import CacheError

VALUES = arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_int8_errs_by_half_a_step_at_most_and_keeps_extremes(values):
    codes, scale = quantise(values)
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)) <= 127).all()
    found = dequantise(codes[None], scale[None])[0]
    largest = np.abs(values).max(axis=(0, 1))
    assert (np.abs(found.astype(np.float64) - values) <= largest * (0.5 / 127 * (1 + 1e-5)) + 1e-38).all()
    normal = largest > 1e-30
    assert (np.abs(codes).max(axis=(0, 1))[normal] == 127).all()


def test_a_feature_of_zeros_stays_zero():
    codes, scale = quantise(np.zeros((2, 2, 3), np.float32))
    assert not scale.any()
    assert not dequantise(codes[None], scale[None]).any()


def test_each_window_is_scaled_by_its_own_scale():
    codes = np.arange(24, dtype=np.int8).reshape(2, 2, 2, 3)
    scale = np.array([[1, 2, 3], [10, 20, 30]], np.float32)
    expected = np.array(
        [
            [[[c * s for c, s in zip(p, w, strict=True)] for p in r] for r in g]
            for g, w in zip(codes.tolist(), scale.tolist(), strict=True)
        ],
        np.float32,
    )
    assert_array_equal(dequantise(codes, scale), expected)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 2, 3), elements=st.floats(-65504, 65504, width=32)))
def test_float16_is_numpy_s_rounding(values):
    assert_array_equal(to_float(values, np.dtype("float16"), "x"), values.astype(np.float16))


@pytest.mark.parametrize("value", [65520, -7e4, 3e38])
def test_what_float16_cannot_hold_is_refused_with_its_channel(value):
    values = np.zeros((2, 2, 3), np.float32)
    values[1, 0, 2] = value
    with pytest.raises(CacheError, match=r"channel 2 reaches .* in photo\.png, too large for float16"):
        to_float(values, np.dtype("float16"), "photo.png")
    assert_array_equal(to_float(values, np.dtype("float32"), "x"), values)
