"""What a generated data set is to hold: masks, sizes and the seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlprobe.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

#: Shapes of masks: along the edges of the photograph, the box around such a one, free strokes, and a blob whose area
#: is exact to a pixel.
MASK_KINDS = ("object", "box", "random", "sized")
#: Mask kinds where none are asked for: all families, or the ladder.
FAMILY_KINDS, LADDER_KINDS = ("object", "random", "sized"), ("sized",)
#: Shares of a window among which masks go round.
SHARES = (0.02, 0.10, 0.25, 0.50)
#: Shares of a window of the mask-size ladder, for the study of scale.
LADDER = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20, 0.40, 0.60)
#: Largest share that is drawn: above it a mask leaves no room for its own irregularity.
MAX_SHARE = 0.9
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """The choices of `dlprobe.data.synthesis.synthesize` that do not depend on the back end.

    Parameters
    ----------
    seed : int
        Of masks, donors and noise; not negative. The same seed gives the same masks with every back end.
    window_px : int
        Side of the windows that the set is meant for; the shares of masks refer to one.
    side_px : int, optional
        Longest side of a photograph; larger ones are cut about the centre, never scaled. None: the back end's own.
    mask_kinds : tuple of str
        Of `MASK_KINDS`; empty: `FAMILY_KINDS`, or `LADDER_KINDS` with `ladder`.
    shares : tuple of float
        Shares of a window. Each photograph gets one mask a kind; shares go round with photographs and kinds.
    ladder : bool
        Give each photograph one mask a kind for each share of `LADDER` instead.
    object_masks : Path, optional
        Folder of masks of the photographs, ``STEM.png`` or ``STEM_mask.png``, white where the object is. They take the
        place of the ``object`` kind, and ``box`` is the box around them.
    dataset : str
        Name in the manifest, and namespace of source_ids: ``DATASET:NAME``, or ``coco:NUMBER`` where the file has one
        of COCO's names.

    Raises
    ------
    DataError
        If a value is out of range.
    """

    seed: int = 0
    window_px: int = 504
    side_px: int | None = None
    mask_kinds: tuple[str, ...] = ()
    shares: tuple[float, ...] = SHARES
    ladder: bool = False
    object_masks: Path | None = None
    dataset: str = "synthesized"

    def __post_init__(self) -> None:
        for kind in self.mask_kinds:
            if kind not in MASK_KINDS:
                msg = f"no mask kind {kind!r}; there are {', '.join(MASK_KINDS)}"
                raise DataError(msg)
        if len(set(self.mask_kinds)) < len(self.mask_kinds):
            msg = f"mask kinds {', '.join(self.mask_kinds)} name one twice; name each once"
            raise DataError(msg)
        for share in self.shares:
            if not 0 < share <= MAX_SHARE:
                msg = f"a mask share of {share:g} is out of range; give shares of a window above 0, up to {MAX_SHARE}"
                raise DataError(msg)
        if not self.shares or len(set(self.shares)) < len(self.shares):
            msg = "mask shares are none, or one stands twice; give each share of a window once"
            raise DataError(msg)
        if self.seed < 0 or self.window_px < 1 or (self.side_px is not None and self.side_px < 1):
            msg = "seed, window or side of the photographs is negative or zero; give a seed from 0 and sizes from 1 px"
            raise DataError(msg)
        if not _DATASET.fullmatch(self.dataset):
            msg = f"data set name {self.dataset!r} cannot begin source_ids; use letters, digits, '.', '_' and '-'"
            raise DataError(msg)
        if self.object_masks is not None and not self.object_masks.is_dir():
            msg = f"no folder of masks at {self.object_masks}; give one with STEM.png for each photograph"
            raise DataError(msg)

    def masks_wanted(self, turn: int) -> list[tuple[str, float | None]]:
        """Return kinds and shares of the masks of photograph number `turn`; the share is None for the user's masks."""
        kinds = self.mask_kinds or (LADDER_KINDS if self.ladder else FAMILY_KINDS)
        wanted: list[tuple[str, float | None]] = []
        for place, kind in enumerate(kinds):
            if self.object_masks is not None and kind in {"object", "box"}:
                wanted.append((kind, None))
            elif self.ladder:
                wanted.extend((kind, share) for share in LADDER)
            else:
                wanted.append((kind, self.shares[(turn + place) % len(self.shares)]))
        return wanted
