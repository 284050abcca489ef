"""The variant table, spelled out, and region maps against a loop."""

import numpy as np
import pytest

from dlprobe.data import Provenance, Variant, region_map
from dlprobe.data.provenance import COVERAGE_CLASSES, VARIANTS
from dlprobe.errors import DataError

MASK = np.array([[True, False, False], [True, True, False]])
TABLE = {"real": (None, 0), "ae": (None, 1), "aesp": (1, 0), "sp": (2, 0), "fr": (2, 1)}


def test_the_classes_have_their_published_numbers():
    assert {kind.name: int(kind) for kind in Provenance} == {
        "PRISTINE": 0,
        "AUTOENCODED": 1,
        "INPAINTED": 2,
        "VOID": 255,
    }
    assert [int(kind) for kind in COVERAGE_CLASSES] == [0, 1, 2, 255]


def test_the_variant_table_is_complete_and_as_designed():
    assert {str(name): tuple(row) for name, row in VARIANTS.items()} == TABLE
    assert set(VARIANTS) == set(Variant)


@pytest.mark.parametrize("variant", TABLE)
def test_region_maps_follow_the_table(variant):
    inside, outside = TABLE[variant]
    found = region_map(variant, (2, 3), None if inside is None else MASK)
    expected = [[inside if inside is not None and inner else outside for inner in row] for row in MASK.tolist()]
    assert found.tolist() == expected
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("variant", "mask", "words"),
    [
        ("splice", None, "real, ae, aesp, sp, fr"),
        ("sp", None, "needs a mask"),
        ("real", MASK, "has no mask"),
        ("ae", MASK, "has no mask"),
        ("fr", MASK.T, "2x3, its image 3x2"),
    ],
)
def test_wrong_variants_and_masks_are_refused(variant, mask, words):
    with pytest.raises(DataError, match=words):
        region_map(variant, (2, 3), mask)
