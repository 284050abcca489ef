"""Near-duplicate photographs in different splits: a perceptual hash proposes, thumbnails decide.

The hash follows the usual recipe (signs of the low frequencies of the cosine transform of a 32x32 thumbnail, without
the mean; Zauner 2010). Two photographs are near-duplicates if their hashes differ in few bits and their thumbnails,
standardised, correlate; recompression, rescaling and slight changes of tone keep both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

THUMBNAIL_PX = 32
HASH_SIDE = 8
MOST_BITS = 8
LEAST_CORRELATION = 0.97
#: Thumbnails flatter than this many grey levels look like each other without being of one photograph.
LEAST_CONTRAST = 4.0
#: Agreements held at a time, so that memory stays bounded for any number of photographs.
_MOST_NUMBERS = 2**24
_ANGLES = np.outer(np.arange(HASH_SIDE), np.arange(THUMBNAIL_PX) + 0.5) * np.pi / THUMBNAIL_PX
_COSINES = (np.cos(_ANGLES) * np.where(np.arange(HASH_SIDE) == 0, 0.5, 1.0)[:, None] ** 0.5).astype(np.float32)


class Look(NamedTuple):
    """How a photograph looks: ``signs`` of 63 frequencies as +1 and -1, and its standardised ``thumbnail``."""

    signs: NDArray[np.float32]
    thumbnail: NDArray[np.float32]


def look(pixels: NDArray[np.uint8]) -> Look | None:
    """Return how a photograph looks, or None if it is too flat to tell.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        RGB.
    """
    size = THUMBNAIL_PX, THUMBNAIL_PX
    small = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX), np.float32)
    if small.std() < LEAST_CONTRAST:
        return None
    low = (_COSINES @ small @ _COSINES.T).ravel()[1:]
    signs = np.where(low > np.median(low), 1.0, -1.0).astype(np.float32)
    return Look(signs, ((small - small.mean()) / small.std()).ravel())


def near_duplicates(looks: list[Look], groups: list[str]) -> Iterator[tuple[int, int]]:
    """Yield pairs of near-duplicates that stand in different groups.

    Parameters
    ----------
    looks : list of Look
        As `look` returns them.
    groups : list of str
        Of each: only pairs whose groups differ are yielded.

    Yields
    ------
    tuple of int
        Positions, the smaller first.
    """
    if not looks:
        return
    signs = np.stack([each.signs for each in looks])
    names = np.unique(groups, return_inverse=True)[1]
    alike = signs.shape[1] - 2 * MOST_BITS
    rows = max(1, _MOST_NUMBERS // len(looks))
    for start in range(0, len(looks), rows):
        agreement = signs[start : start + rows] @ signs[start:].T
        for first, second in np.argwhere(agreement >= alike) + start:
            if first < second and names[first] != names[second] and _alike(looks[first], looks[second]):
                yield int(first), int(second)


def _alike(left: Look, right: Look) -> bool:
    return float(left.thumbnail @ right.thumbnail) / left.thumbnail.size >= LEAST_CORRELATION
