"""From kept score maps to rows: each image under each condition, by each yardstick, beside marking everything."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dlprobe.data.images import enlarge_regions
from dlprobe.data.manifest import MASK_READING
from dlprobe.data.provenance import Provenance, region_map
from dlprobe.data.samples import mask_of
from dlprobe.metrics import evaluate_map
from dlprobe.studies.evaluation.maps import moved_regions
from dlprobe.studies.evaluation.settings import OWN_PROTOCOL
from dlprobe.studies.evaluation.subjects import size_bin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.studies.evaluation.maps import MapStore, StoredMap
    from dlprobe.studies.evaluation.settings import Condition, Yardstick

Row = dict[str, float]
#: What the tables know of an image under a condition.
BASE_COLUMNS = (
    "path",
    "mask",
    "source_id",
    "dataset",
    "variant",
    "generator",
    "mask_kind",
    "height",
    "width",
    "mask_size",
    "mask_share",
    "degradation",
    "strength",
    "chain",
    "image_score",
    "background_marked",
    "image_sha256",
    "map",
    MASK_READING,
)
#: Protocols of maps that were saved with 8 bits; MVSS-Net's code rounds down when it saves them.
_EIGHT_BIT = frozenset({"mvss"})


class Case(NamedTuple):
    """An image under a condition, with the file of its map."""

    row: Mapping[str, Any]
    image_sha256: str
    condition: Condition
    map_path: Path


@dataclass(slots=True, eq=False)
class Scored:
    """Rows of all images under all conditions.

    Attributes
    ----------
    frame : DataFrame
        The columns `BASE_COLUMNS`, one row an image and condition.
    rows, everything : dict of str to DataFrame
        By the yardstick's label, row by row as `frame`: the protocol's metrics of the map, and of marking everything.
    """

    frame: pd.DataFrame
    rows: dict[str, pd.DataFrame]
    everything: dict[str, pd.DataFrame]

    def select(self, chosen: NDArray[np.bool_]) -> Scored:
        """Return the rows where `chosen` is True."""

        def part(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
            return {label: table[chosen].reset_index(drop=True) for label, table in tables.items()}

        return Scored(self.frame[chosen].reset_index(drop=True), part(self.rows), part(self.everything))

    def clean(self) -> Scored:
        """Return the rows of images as they are."""
        return self.select((self.frame["chain"] == "clean").to_numpy())

    def clean_places(self) -> NDArray[np.int64]:
        """Return the numbers of the rows that `clean` returns."""
        return np.flatnonzero(self.frame["chain"] == "clean")

    def values(self, label: str, metric: str) -> NDArray[np.float64]:
        """Return a metric of every row."""
        return np.asarray(self.rows[label][metric], np.float64)

    def beyond_everything(self, label: str, metric: str) -> NDArray[np.float64]:
        """Return by how much every row is above marking everything."""
        return self.values(label, metric) - np.asarray(self.everything[label][metric], np.float64)

    def wide(self, yardsticks: Iterable[Yardstick]) -> pd.DataFrame:
        """Return one table: `frame`, and the metrics of each yardstick under their full names."""
        tables = [self.rows[yardstick.label].rename(columns=yardstick.column) for yardstick in yardsticks]
        return pd.concat([self.frame, *tables], axis=1)


def score_cases(
    cases: Iterable[Case],
    store: MapStore,
    root: Path,
    yardsticks: list[Yardstick],
    image_threshold: float,
    *,
    max_pixels: int,
    done: Callable[[], None] | None = None,
) -> Scored:
    """Score every case; the cases of one image follow each other, the clean one first.

    Parameters
    ----------
    cases : iterable of Case
        Whose maps are in the store.
    store : MapStore
        Where the maps are.
    root : Path
        Folder of images and masks.
    yardsticks : list of Yardstick
        By which each map is scored.
    image_threshold : float
        Image score from which on the own protocol flags an image.
    max_pixels : int
        Larger masks are refused.
    done : callable, optional
        Called after each case.

    Raises
    ------
    CacheError
        If a map is missing or damaged.
    """
    scorer = _Scorer(store, root, yardsticks, image_threshold, max_pixels)
    base: list[dict[str, Any]] = []
    rows = {yardstick.label: _Columns() for yardstick in yardsticks}
    everything = {yardstick.label: _Columns() for yardstick in yardsticks}
    for case in cases:
        if (found := scorer.score(case)) is not None:
            base.append(found.base)
            for columns, one in ((rows, found.rows), (everything, found.everything)):
                for label, row in one.items():
                    columns[label].append(row)
        if done:
            done()
    tables = [{label: columns.frame() for label, columns in one.items()} for one in (rows, everything)]
    return Scored(pd.DataFrame(base, columns=list(BASE_COLUMNS)), *tables)


def regions_of(row: Mapping[str, Any], root: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Return the region map of a manifest's row; raise `DataError` if its mask cannot be used."""
    size = int(row["height"]), int(row["width"])
    return region_map(row["variant"], size, mask_of(row, root, size, max_pixels=max_pixels))


class _Columns:
    """Rows of numbers under the same names, eight bytes a number."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._numbers = array("d")

    def append(self, row: Row) -> None:
        self._names = self._names or tuple(row)
        self._numbers.extend(row[name] for name in self._names)

    def frame(self) -> pd.DataFrame:
        values = np.array(self._numbers).reshape(-1, max(1, len(self._names)))
        return pd.DataFrame(values[:, : len(self._names)], columns=list(self._names))


class _Found(NamedTuple):
    base: dict[str, Any]
    rows: dict[str, Row]
    everything: dict[str, Row]


class _Scorer:
    """Scores cases; what depends on the truth alone is computed once for all conditions that leave it in place."""

    def __init__(
        self, store: MapStore, root: Path, yardsticks: list[Yardstick], image_threshold: float, max_pixels: int
    ) -> None:
        self._store, self._root, self._yardsticks = store, root, yardsticks
        self._image_threshold, self._max_pixels = image_threshold, max_pixels
        self._path, self._regions = "", np.zeros((0, 0), np.uint8)
        self._everything: dict[str, Row] = {}
        self._window_px = store.window_px

    def score(self, case: Case) -> _Found | None:
        """Return the rows of a case; None for a fake whose inpainted pixels are gone under its condition."""
        if case.row["path"] != self._path:
            self._path, self._everything = case.row["path"], {}
            self._regions = regions_of(case.row, self._root, self._max_pixels)
        regions = moved_regions(self._regions, case.condition, self._store.seed, case.image_sha256)
        truth = regions == Provenance.INPAINTED
        if (self._regions == Provenance.INPAINTED).any() and not truth.any():
            return None
        found = self._store.read(case.map_path)
        still = regions is self._regions
        marked = self._everything_rows(regions) if not (still and self._everything) else self._everything
        if still:
            self._everything = marked
        rows = {yardstick.label: self._row(yardstick, found, regions) for yardstick in self._yardsticks}
        return _Found(self._base(case, found, regions), rows, marked)

    def _row(self, yardstick: Yardstick, found: StoredMap, regions: NDArray[np.uint8]) -> Row:
        scores: NDArray[np.generic] = found.original
        if yardstick.protocol.grid == "input_px":
            scores, regions = found.working, enlarge_regions(regions, self._window_px)
        if yardstick.protocol.name in _EIGHT_BIT:
            scores = np.floor(255 * np.asarray(scores, np.float32)).astype(np.uint8)
        row = _evaluated(yardstick, scores, regions)
        if yardstick.protocol.name == OWN_PROTOCOL:
            cut = self._image_threshold if yardstick.label == OWN_PROTOCOL else yardstick.threshold
            row |= {"image_score": found.image_score, "image_flagged": float(found.image_score >= cut)}
        return row

    def _everything_rows(self, regions: NDArray[np.uint8]) -> dict[str, Row]:
        rows = {}
        for yardstick in self._yardsticks:
            grid = enlarge_regions(regions, self._window_px) if yardstick.protocol.grid == "input_px" else regions
            rows[yardstick.label] = _evaluated(yardstick, np.ones(grid.shape, np.float32), grid)
        return rows

    def _base(self, case: Case, found: StoredMap, regions: NDArray[np.uint8]) -> dict[str, Any]:
        kept = regions != Provenance.VOID
        truth = regions[kept] == Provenance.INPAINTED
        marked = found.original[kept] >= self._yardsticks[0].threshold
        outside = marked[~truth]
        share = float(truth.mean())
        return {
            **{name: case.row[name] for name in BASE_COLUMNS[:7]},
            "height": regions.shape[0],
            "width": regions.shape[1],
            "mask_size": size_bin(share) if share else "",
            "mask_share": share,
            "degradation": case.condition.name,
            "strength": case.condition.strength,
            "chain": case.condition.chain,
            "image_score": found.image_score,
            "background_marked": float(outside.mean()) if outside.size else float("nan"),
            "image_sha256": case.image_sha256,
            "map": case.map_path.relative_to(self._store.folder).as_posix(),
            MASK_READING: case.row.get(MASK_READING) or "",
        }


def _evaluated(yardstick: Yardstick, scores: NDArray[np.generic], regions: NDArray[np.uint8]) -> Row:
    ignore = regions == Provenance.VOID
    truth = regions == Provenance.INPAINTED
    return evaluate_map(
        scores, truth, yardstick.protocol.name, yardstick.threshold, ignore=ignore if ignore.any() else None
    )
