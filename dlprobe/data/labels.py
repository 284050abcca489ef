"""From pixels to patch targets: coverage of a patch by each provenance class, and labelling schemes on top of it.

Coverage is stored with the embeddings; a scheme is applied when probes are fitted, so that a new one costs no
extraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from dlprobe.data.provenance import COVERAGE_CLASSES, Provenance
from dlprobe.errors import DataError
from dlprobe.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Full coverage of a patch in the uint8 arithmetic.
FULL = 255
IGNORE = -1


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """Which classes are positive, which negative; the rest, and VOID, are ignored.

    Parameters
    ----------
    positive, negative : frozenset of Provenance
        Disjoint sets of classes without VOID, not empty.
    positive_share : float
        A patch is positive when the positive classes cover at least this share of what is not ignored in it; in (0, 1].

    Raises
    ------
    DataError
        If a class is on both sides or VOID, a side is empty, or the share lies outside (0, 1].
    """

    positive: frozenset[Provenance]
    negative: frozenset[Provenance]
    positive_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            msg = "a labelling scheme has no positive or no negative class; name at least one of each"
            raise DataError(msg)
        if wrong := (self.positive & self.negative) | ({Provenance.VOID} & (self.positive | self.negative)):
            names = " and ".join(sorted(kind.name for kind in wrong))
            msg = f"{names} cannot be a class of this side; VOID is always ignored, other classes have one side"
            raise DataError(msg)
        if not 0 < self.positive_share <= 1:
            msg = f"positive_share is {self.positive_share}; it must lie in (0, 1]"
            raise DataError(msg)


@dataclass(frozen=True, slots=True)
class ClassScheme:
    """Every provenance class is a class of its own; VOID is ignored.

    INPAINTED wins where it covers at least half of what is not ignored, as in the truth; otherwise AUTOENCODED where it
    covers as much as PRISTINE or more.
    """


#: A scheme whose targets are class numbers, in the order of `CLASSES`.
THREE_CLASS_SCHEME = "three-class"
CLASSES = (Provenance.PRISTINE, Provenance.AUTOENCODED, Provenance.INPAINTED)
SCHEMES: Registry[LabelScheme | ClassScheme] = Registry("labelling scheme", "dlprobe.schemes")
_P, _A, _I = Provenance.PRISTINE, Provenance.AUTOENCODED, Provenance.INPAINTED
SCHEMES.register("autoencoded-pristine")(LabelScheme(frozenset({_I}), frozenset({_P, _A})))  # the paper's
SCHEMES.register("autoencoded-fake")(LabelScheme(frozenset({_I, _A}), frozenset({_P})))
SCHEMES.register("autoencoded-ignored")(LabelScheme(frozenset({_I}), frozenset({_P})))
SCHEMES.register(THREE_CLASS_SCHEME)(ClassScheme())

#: What every scheme is scored on: INPAINTED against the rest.
TRUTH_SCHEME = "autoencoded-pristine"


def patch_coverage(regions: NDArray[np.uint8], patch_px: int) -> NDArray[np.uint8]:
    """Return the share of each provenance class in each patch, in 255ths that add to 255.

    Shares are rounded by largest remainder; of equal remainders the earlier class gets the unit.

    Parameters
    ----------
    regions : ndarray of uint8, shape (..., height, width)
        Region maps; both sides are multiples of `patch_px`.
    patch_px : int
        Side of a patch.

    Returns
    -------
    ndarray of uint8, shape (..., height // patch_px, width // patch_px, 4)
        In the order of `COVERAGE_CLASSES`: PRISTINE, AUTOENCODED, INPAINTED, VOID.

    Raises
    ------
    DataError
        If a side is no multiple of `patch_px`, or a value is no provenance class.
    """
    *lead, height, width = regions.shape
    if height % patch_px or width % patch_px:
        msg = f"a region map of {width}x{height} px does not divide into patches of {patch_px} px"
        raise DataError(msg)
    counts = _counted(regions.reshape(*lead, height // patch_px, patch_px, width), patch_px)
    area = patch_px * patch_px
    if (counts.sum(axis=-1) != area).any():
        msg = f"a region map has values that are no provenance class; allowed are {[int(k) for k in COVERAGE_CLASSES]}"
        raise DataError(msg)
    shares, remainders = np.divmod(counts * FULL, area)
    missing = FULL - shares.sum(axis=-1, keepdims=True)
    rank = np.argsort(np.argsort(-remainders, axis=-1, kind="stable"), axis=-1, kind="stable")
    coverage: NDArray[np.uint8] = (shares + (rank < missing)).astype(np.uint8)
    return coverage


def _counted(rows: NDArray[np.uint8], patch_px: int) -> NDArray[np.int64]:
    """Count the pixels of each class in patches, given (..., rows of patches, patch_px, width).

    Columns of a patch first, in the smallest type that holds their length: whole lines of the image at a time, which is
    what processors add fast.
    """
    *lead, _, width = rows.shape
    small = np.min_scalar_type(patch_px)
    columns = [(rows == np.uint8(kind)).view(np.uint8).sum(axis=-2, dtype=small) for kind in COVERAGE_CLASSES]
    patches = np.stack([found.reshape(*lead, width // patch_px, patch_px) for found in columns], axis=-2)
    counts: NDArray[np.int64] = patches.sum(axis=-1, dtype=np.int64)
    return counts


@overload
def label_patches(
    coverage: NDArray[np.uint8], scheme: str | LabelScheme | ClassScheme, soft: Literal[False] = False
) -> NDArray[np.int8]: ...
@overload
def label_patches(
    coverage: NDArray[np.uint8], scheme: str | LabelScheme | ClassScheme, soft: Literal[True]
) -> NDArray[np.float32]: ...
@overload
def label_patches(
    coverage: NDArray[np.uint8], scheme: str | LabelScheme | ClassScheme, soft: bool
) -> NDArray[np.int8] | NDArray[np.float32]: ...
def label_patches(
    coverage: NDArray[np.uint8], scheme: str | LabelScheme | ClassScheme, soft: bool = False
) -> NDArray[np.int8] | NDArray[np.float32]:
    """Return the target of each patch under a labelling scheme.

    A patch is ignored when ignored classes and VOID cover more than half of it.

    Parameters
    ----------
    coverage : ndarray of uint8, shape (..., 4)
        As `patch_coverage` returns it.
    scheme : str, LabelScheme or ClassScheme
        A registered name, or a scheme of your own.
    soft : bool
        Return the positive share itself instead of a decision; classes have none.

    Returns
    -------
    ndarray, shape (...)
        Hard: int8, 1 positive, 0 negative, -1 ignored; the numbers of `CLASSES` under a `ClassScheme`. Soft: float32 in
        [0, 1], NaN where ignored.

    Raises
    ------
    DataError
        If the last axis is not 4, or shares are asked of classes.
    RegistryError
        If no scheme has that name.
    """
    if coverage.shape[-1:] != (len(COVERAGE_CLASSES),):
        msg = f"coverage has shape {coverage.shape}; its last axis must be {len(COVERAGE_CLASSES)}"
        raise DataError(msg)
    rules = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    if isinstance(rules, ClassScheme):
        if soft:
            msg = f"{scheme!r} gives each patch a class and has no positive share; ask for it without soft"
            raise DataError(msg)
        return _classes(coverage)
    positive = _covered(coverage, rules.positive)
    known = positive + _covered(coverage, rules.negative)
    ignored = 2 * (FULL - known) > FULL
    share = positive / np.maximum(known, 1)
    if soft:
        return np.where(ignored, np.nan, share).astype(np.float32)
    return np.where(ignored, IGNORE, share >= rules.positive_share).astype(np.int8)


def positive_patches(labels: NDArray[np.int8], scheme: str) -> NDArray[np.bool_]:
    """Return which labelled patches a scheme wants to be marked: the positive ones, or those of class INPAINTED.

    Parameters
    ----------
    labels : ndarray of int8, any shape
        As `label_patches` returns them, hard.
    scheme : str
        A registered name.
    """
    marked = CLASSES.index(Provenance.INPAINTED) if isinstance(SCHEMES[scheme], ClassScheme) else 1
    return np.asarray(labels == marked)


def _classes(coverage: NDArray[np.uint8]) -> NDArray[np.int8]:
    pristine, autoencoded, inpainted = (_covered(coverage, frozenset({kind})) for kind in CLASSES)
    known = pristine + autoencoded + inpainted
    found = np.where(2 * inpainted >= known, 2, np.where(autoencoded >= pristine, 1, 0))
    return np.where(2 * (FULL - known) > FULL, IGNORE, found).astype(np.int8)


def _covered(coverage: NDArray[np.uint8], kinds: frozenset[Provenance]) -> NDArray[np.int64]:
    columns = [i for i, kind in enumerate(COVERAGE_CLASSES) if kind in kinds]
    total: NDArray[np.int64] = coverage[..., columns].sum(axis=-1, dtype=np.int64)
    return total
