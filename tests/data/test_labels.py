"""Coverage against a loop over pixels, and every labelling scheme against a truth table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlprobe.data import SCHEMES, LabelScheme, Provenance, label_patches, patch_coverage
from dlprobe.data.labels import positive_patches
from dlprobe.errors import DataError, RegistryError

P, A, I, V = (Provenance.PRISTINE, Provenance.AUTOENCODED, Provenance.INPAINTED, Provenance.VOID)  # noqa: E741
CLASSES = (P, A, I, V)


def largest_remainder(counts, total):
    """Share out `total` units by counts, one unit at a time, in exact integers."""
    area = sum(counts)
    shares = [count * total // area for count in counts]
    left = [count * total - share * area for count, share in zip(counts, shares, strict=True)]
    for _ in range(total - sum(shares)):
        best = left.index(max(left))
        shares[best] += 1
        left[best] = -1
    return shares


region_maps = hnp.arrays(np.uint8, st.just((2, 6, 9)), elements=st.sampled_from([int(c) for c in CLASSES]))


@given(region_maps)
@settings(deadline=None)
def test_coverage_against_a_loop(regions):
    found = patch_coverage(regions, 3)
    assert found.shape == (2, 2, 3, 4)
    assert found.dtype == np.uint8
    for index in np.ndindex(2, 2, 3):
        n, row, col = index
        patch = regions[n, 3 * row : 3 * row + 3, 3 * col : 3 * col + 3].ravel().tolist()
        expected = largest_remainder([patch.count(int(c)) for c in CLASSES], 255)
        assert found[index].tolist() == expected
        assert sum(expected) == 255


@given(st.lists(st.integers(0, 196), min_size=3, max_size=3))
@settings(deadline=None)
def test_coverage_of_14_px_patches_adds_to_255(cuts):
    a, b, c = sorted(cuts)
    values = np.repeat(np.array([0, 1, 2, 255], np.uint8), [a, b - a, c - b, 196 - c]).reshape(14, 14)
    found = patch_coverage(values, 14)[0, 0]
    assert found.sum(dtype=int) == 255
    assert found.tolist() == largest_remainder([a, b - a, c - b, 196 - c], 255)


@pytest.mark.parametrize(
    ("regions", "patch", "words"),
    [
        (np.zeros((28, 27), np.uint8), 14, "27x28"),
        (np.zeros((27, 28), np.uint8), 14, "28x27"),
        (np.full((14, 14), 3, np.uint8), 14, "no provenance class"),
    ],
)
def test_coverage_refuses(regions, patch, words):
    with pytest.raises(DataError, match=words):
        patch_coverage(regions, patch)


#       P    A    I    V      pristine  fake  ignored
BINARY = sorted(set(SCHEMES) - {"three-class"})
TRUTH = [
    ([255, 0, 0, 0], 0, 0, 0),
    ([0, 255, 0, 0], 0, 1, -1),
    ([0, 0, 255, 0], 1, 1, 1),
    ([0, 0, 0, 255], -1, -1, -1),
    ([128, 0, 127, 0], 0, 0, 0),
    ([127, 0, 128, 0], 1, 1, 1),
    ([0, 128, 127, 0], 0, 1, -1),
    ([0, 127, 128, 0], 1, 1, 1),
    ([128, 127, 0, 0], 0, 0, 0),
    ([127, 128, 0, 0], 0, 1, -1),
    ([64, 0, 64, 127], 1, 1, 1),  # half of what is known is inpainted
    ([64, 0, 63, 128], -1, -1, -1),  # VOID covers more than half
    ([65, 0, 63, 127], 0, 0, 0),
    ([100, 60, 95, 0], 0, 1, 0),
]


@pytest.mark.parametrize("patch_px", [255, 256, 300])
def test_coverage_of_patches_as_long_as_a_byte_and_longer(patch_px):
    regions = np.zeros((patch_px, 2 * patch_px), np.uint8)
    regions[:, patch_px:] = Provenance.INPAINTED
    assert patch_coverage(regions, patch_px).tolist() == [[[255, 0, 0, 0], [0, 0, 255, 0]]]
    assert patch_coverage(regions[None, :0], patch_px).shape == (1, 0, 2, 4)


@pytest.mark.parametrize(("coverage", "pristine", "fake", "ignored"), TRUTH)
def test_schemes_against_the_truth_table(coverage, pristine, fake, ignored):
    patch = np.array(coverage, np.uint8)
    assert patch.sum(dtype=int) == 255
    assert label_patches(patch, "autoencoded-pristine") == pristine
    assert label_patches(patch, "autoencoded-fake") == fake
    assert label_patches(patch, "autoencoded-ignored") == ignored
    for name in BINARY:
        assert positive_patches(label_patches(patch, name), name) == (label_patches(patch, name) == 1)


@pytest.mark.parametrize(("coverage", "pristine"), [row[:2] for row in TRUTH])
def test_classes_are_the_truth_where_inpainted_and_the_larger_of_the_others_elsewhere(coverage, pristine):
    patch = np.array(coverage, np.uint8)
    found = label_patches(patch, "three-class")
    expected = 2 if pristine == 1 else -1 if pristine == -1 else int(coverage[1] >= coverage[0])
    assert found == expected
    assert found.dtype == np.int8
    assert positive_patches(found, "three-class") == (pristine == 1)


def test_classes_have_no_positive_share():
    with pytest.raises(DataError, match="gives each patch a class"):
        label_patches(np.zeros(4, np.uint8), "three-class", soft=True)


@pytest.mark.parametrize("name", BINARY)
@given(region_maps)
@settings(deadline=None)
def test_labels_against_a_loop(name, regions):
    scheme = SCHEMES[name]
    coverage = patch_coverage(regions, 3)
    hard, soft = label_patches(coverage, name), label_patches(coverage, name, soft=True)
    assert hard.dtype == np.int8
    assert soft.dtype == np.float32
    for index in np.ndindex(coverage.shape[:-1]):
        shares = dict(zip(CLASSES, coverage[index].tolist(), strict=True))
        positive = sum(shares[c] for c in scheme.positive)
        negative = sum(shares[c] for c in scheme.negative)
        if (255 - positive - negative) / 255 > 0.5:
            assert hard[index] == -1
            assert np.isnan(soft[index])
        else:
            assert hard[index] == (positive / (positive + negative) >= 0.5)
            assert soft[index] == np.float32(positive / (positive + negative))


@pytest.mark.parametrize(("share", "expected"), [(0.1, 1), (0.2, 1), (0.21, 0), (1.0, 0)])
def test_the_positive_share_is_the_threshold(share, expected):
    scheme = LabelScheme(frozenset({I}), frozenset({P, A}), positive_share=share)
    assert label_patches(np.array([204, 0, 51, 0], np.uint8), scheme) == expected


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_decides_nothing_is_refused(share):
    with pytest.raises(DataError, match="positive_share"):
        label_patches(np.zeros(4, np.uint8), LabelScheme(frozenset({I}), frozenset({P}), share))


@pytest.mark.parametrize(
    ("positive", "negative", "words"), [({I}, {I, P}, "INPAINTED"), ({I, V}, {P}, "VOID"), (set(), {P}, "positive")]
)
def test_a_scheme_that_contradicts_itself_is_refused(positive, negative, words):
    with pytest.raises(DataError, match=words):
        LabelScheme(frozenset(positive), frozenset(negative))


def test_unknown_scheme_and_wrong_axis_are_refused():
    with pytest.raises(RegistryError, match="autoencoded-fake"):
        label_patches(np.zeros(4, np.uint8), "autoencoded-fakes")
    with pytest.raises(DataError, match=r"\(2, 3\)"):
        label_patches(np.zeros((2, 3), np.uint8), "autoencoded-fake")
