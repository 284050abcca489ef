"""Windows: the published counts, and properties that hold for every size."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlprobe.data import Box, tile, working_size
from dlprobe.errors import DataError

WINDOW = 28
sides = st.integers(WINDOW, 200)
strides = st.integers(1, 90)


def starts(boxes, axis):
    return sorted({box[axis] for box in boxes})


@pytest.mark.parametrize(
    ("side", "expected"),
    [(504, [0]), (512, [4]), (755, [125]), (756, [0, 252]), (1016, [0, 512]), (1024, [0, 520]), (1512, [0, 504, 1008])],
)
def test_spread_puts_these_windows_on_a_side(side, expected):
    boxes = tile(side, 504, 504, 504, "spread")
    assert starts(boxes, 0) == expected
    assert starts(boxes, 1) == [0]
    assert len(boxes) == len(expected)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (504, [0]),
        (505, [0, 1]),
        (632, [0, 128]),
        (633, [0, 128, 129]),
        (1016, [0, 128, 256, 384, 512]),
        (1017, [0, 128, 256, 384, 512, 513]),
    ],
)
def test_cover_puts_these_windows_on_a_side(side, expected):
    assert starts(tile(504, side, 504, 128, "cover"), 1) == expected


@pytest.mark.parametrize(
    ("height", "width", "spread", "cover"),
    [(512, 512, 1, 4), (480, 640, 4, 28), (1024, 1024, 4, 36), (1016, 1016, 4, 25), (256, 256, 4, 25)],
)
def test_number_of_windows_of_usual_images(height, width, spread, cover):
    size = working_size(height, width, 504)
    assert len(tile(*size, 504, 504)) == spread
    assert len(tile(*size, 504, 128, "cover")) == cover


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (504, 504, (504, 504)),
        (504, 9000, (504, 9000)),
        (256, 256, (1016, 1016)),
        (503, 503, (1016, 1016)),
        (480, 640, (880, 1173)),
        (640, 480, (1173, 880)),
        (503, 4000, (504, 4008)),  # the area rule would shrink it: enlarged to the window instead
        (100, 1000, (504, 5040)),
        (225, 256, (952, 1084)),  # 952.5: Python's round, as in the published inference, goes to the even number
    ],
)
def test_working_size_at_504(height, width, expected):
    assert working_size(height, width, 504) == expected


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([28, 224, 448, 504]))
@settings(deadline=None)
def test_working_size_against_a_transcription(height, width, window):
    found = working_size(height, width, window)
    if height >= window and width >= window:
        assert found == (height, width)
        return
    scale = math.sqrt((1016 * window / 504) ** 2 / (height * width))
    if min(height, width) * scale < window:
        scale = window / min(height, width)
    assert found[0] == pytest.approx(height * scale, abs=0.500001)
    assert found[1] == pytest.approx(width * scale, abs=0.500001)
    assert min(found) >= window
    assert found[0] >= height
    assert found[1] >= width


@given(sides, sides, strides, st.sampled_from(["spread", "cover"]))
@settings(deadline=None)
def test_windows_are_distinct_lie_inside_and_reach_both_borders(height, width, stride, tiling):
    stride = min(stride, WINDOW) if tiling == "cover" else stride
    boxes = tile(height, width, WINDOW, stride, tiling)
    assert len(set(boxes)) == len(boxes)
    assert boxes == sorted(boxes)
    for box in boxes:
        assert box.h == box.w == WINDOW
        assert 0 <= box.y <= height - WINDOW
        assert 0 <= box.x <= width - WINDOW
    for axis, side in ((0, height), (1, width)):
        found = starts(boxes, axis)
        if len(found) > 1 or tiling == "cover":
            assert found[0] == 0
            assert found[-1] == side - WINDOW


@given(sides, sides, st.integers(1, WINDOW))
@settings(max_examples=50, deadline=None)
def test_cover_sees_each_pixel_and_steps_by_the_stride(height, width, stride):
    boxes = tile(height, width, WINDOW, stride, "cover")
    seen = [[0] * width for _ in range(height)]
    for y in {box.y for box in boxes}:
        for row in range(y, y + WINDOW):
            seen[row] = [1] * width
    columns = {x for box in boxes for x in range(box.x, box.x + WINDOW)}
    assert all(all(row) for row in seen)
    assert columns == set(range(width))
    gaps = [b - a for a, b in pairwise(starts(boxes, 0))]
    assert all(gap == stride for gap in gaps[:-1])
    assert all(0 < gap <= stride for gap in gaps[-1:])


@given(sides, strides)
@settings(deadline=None)
def test_spread_is_even_and_has_the_designed_number(side, stride):
    found = starts(tile(side, WINDOW, WINDOW, stride, "spread"), 0)
    slack = side - WINDOW
    assert len(found) in {max(1, 1 + n) for n in (math.floor(slack / stride + 0.5), round(slack / stride))}
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    if len(found) == 1:
        assert abs((side - WINDOW - found[0]) - found[0]) <= 1  # centred


def test_box_slices_cut_its_pixels():
    assert Box(2, 3, 4, 5).slices == (slice(2, 6), slice(3, 8))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((503, 600, 504, 504), "600x503"),
        ((600, 503, 504, 504), "503x600"),
        ((600, 600, 504, 0), "stride_px is 0"),
        ((600, 600, 504, 504, "clamp"), "spread, cover"),
    ],
)
def test_impossible_tilings_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        tile(*arguments)


def test_an_image_without_pixels_has_no_working_size():
    with pytest.raises(DataError, match="no pixels"):
        working_size(0, 10, 504)


def test_a_stride_that_leaves_pixels_unseen_is_refused():
    with pytest.raises(DataError, match="never be seen"):
        tile(2000, 2000, 504, 505, "cover")
    assert len(tile(2000, 2000, 504, 505, "spread")) == 16
