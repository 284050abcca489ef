"""Passes over caches: what is summed, sampled and tested, block by block."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dlprobe.data.labels import CLASSES, FULL
from dlprobe.data.manifest import source_groups
from dlprobe.errors import MetricError
from dlprobe.separability.kernels import KernelState, on_common_grid
from dlprobe.separability.states import MomentsState, SampleState, patch_classes
from dlprobe.separability.statistics.gaussians import Discriminant, discriminant, pair_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dlprobe.cache import Block, FeatureCache
    from dlprobe.separability.states import Gaussian

    Tick = Callable[[int], None]

#: Every two classes, by index.
PAIRS = tuple(combinations(range(len(CLASSES)), 2))
#: What makes two windows of different caches the same piece of the same image.
WINDOW_KEY = ["dataset", "path", "view", "y", "x", "h", "w"]
#: How weights that were not trained are asked for.
RANDOM = "random:"
#: Kernels that are gathered in one pass; more of them cost another pass instead of more memory.
MOST_KERNEL_BYTES = 2 << 30
#: Windows whose stored sums give the point that is subtracted first.
_ORIGIN_WINDOWS = 256
#: Windows that are converted to float64 at a time.
_TILE_WINDOWS = 8


class Features(NamedTuple):
    """One representation: the embeddings of one layer in one cache."""

    name: str
    columns: slice


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A cache with the part of every window's source.

    Attributes
    ----------
    name : str
        Unique among the caches.
    cache : FeatureCache
    features : tuple of Features
        One a layer.
    selected : ndarray of int64
        Clean windows that were not rejected.
    groups, photographs : ndarray of int64, shape (window,)
        Of each window: the group of sources that is left out together, and the number of its source_id.
    source_ids : list of str
        Name of each photograph.
    places : ndarray of int64, shape (window,)
        Number that windows at one place of one photograph share, whatever the variant.
    joined : ndarray of int64, shape (photograph,)
        Number that a photograph shares with those that it is joined to by donors.
    """

    name: str
    cache: FeatureCache
    features: tuple[Features, ...]
    selected: NDArray[np.int64]
    groups: NDArray[np.int64]
    photographs: NDArray[np.int64]
    source_ids: list[str]
    places: NDArray[np.int64]
    joined: NDArray[np.int64]


def entries_of(caches: Sequence[FeatureCache], most_groups: int, seed: int) -> tuple[list[Entry], int]:
    """Deal the sources of all caches into groups; return the caches with their groups, and how many there are.

    Sources joined by a donor stay together. They are dealt in turn, in an order drawn from the seed.
    """
    for cache in caches:
        cache.require_complete()
    tables = [cache.windows for cache in caches]
    pairs = pd.concat([table[["source_id", "donor_id"]] for table in tables]).drop_duplicates(ignore_index=True)
    joined = dict(zip(pairs["source_id"], source_groups(pairs), strict=True))
    order = sorted(set(joined.values()), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    number = {name: at for at, name in enumerate(order)}
    source_ids = sorted(joined)
    together = np.array([number[joined[name]] for name in source_ids])
    groups = min(most_groups, len(order))
    entries = []
    for cache, name, table in zip(caches, _names(caches), tables, strict=True):
        selected = cache.select(windows=(table["view"] == 0).to_numpy())
        photographs = np.searchsorted(source_ids, table["source_id"].to_numpy(str)).astype(np.int64)
        places = table.groupby(["source_id", "y", "x", "h", "w"]).ngroup().to_numpy(np.int64)
        groups_of = together[photographs] % groups
        layers = _layers(cache, name)
        entries.append(Entry(name, cache, layers, selected, groups_of, photographs, source_ids, places, together))
    return entries, groups


def _names(caches: Sequence[FeatureCache]) -> list[str]:
    names = [_shown(cache) for cache in caches]
    return [
        name if names.count(name) == 1 else f"{name} ({cache.path})" for name, cache in zip(names, caches, strict=True)
    ]


def _shown(cache: FeatureCache) -> str:
    """Return the name of a cache's backbone; whoever reads it must see where weights were drawn and not trained."""
    name, weights = cache.model_spec.backbone, cache.origin["weights"]
    return f"{name} ({weights})" if weights.startswith(RANDOM) and f"({weights})" not in name else name


def _layers(cache: FeatureCache, name: str) -> tuple[Features, ...]:
    layers, width = cache.model_spec.layers, cache.model_spec.width
    if len(layers) < 2:
        return (Features(name, slice(0, width)),)
    each = width // len(layers)
    return tuple(Features(f"{name} layer {layer}", slice(i * each, (i + 1) * each)) for i, layer in enumerate(layers))


@dataclass(slots=True, eq=False)
class Gathered:
    """What the passes over one cache keep.

    Attributes
    ----------
    moments : list of MomentsState
        One a layer.
    sample : SampleState
        Of whole embeddings, all layers.
    patches : ndarray of int64, shape (photographs, 3)
        Of each class.
    hits : ndarray of float64, shape (layers, groups, groups, pairs, 2)
        Held-out patches of each side of each pair of classes that were told right: those of the first group, by a fit
        on neither it nor the second.
    tested : ndarray of float64, shape (groups, pairs, 2)
        Held-out patches in all.
    unfitted : ndarray of bool, shape (layers, groups, groups, pairs)
        Where a class is missing without the two groups.
    """

    moments: list[MomentsState]
    sample: SampleState
    patches: NDArray[np.int64]
    hits: NDArray[np.float64]
    tested: NDArray[np.float64]
    unfitted: NDArray[np.bool_]


def gather(entry: Entry, groups: int, *, min_share: float, per_class: int, seed: int, tick: Tick) -> Gathered:
    """Read a cache once: moments of each class and group, and a sample."""
    origin = _origin(entry)
    layers, pairs = len(entry.features), len(PAIRS)
    found = Gathered(
        [MomentsState(origin[features.columns], groups) for features in entry.features],
        SampleState(per_class, seed),
        np.zeros((len(entry.source_ids), len(CLASSES)), np.int64),
        np.zeros((layers, groups, groups, pairs, 2)),
        np.zeros((groups, pairs, 2)),
        np.zeros((layers, groups, groups, pairs), bool),
    )
    for block in entry.cache.blocks(windows=entry.selected):
        rows, classes, group = _flat(entry, block, min_share)
        each = block.coverage.shape[1] * block.coverage.shape[2]
        for state, features in zip(found.moments, entry.features, strict=True):
            state.update(rows[:, features.columns], classes, group)
        numbers, places = (
            (first[:, None] * each + np.arange(each)).reshape(-1)
            for first in (block.windows, entry.places[block.windows])
        )
        sources = np.repeat(entry.photographs[block.windows], each)
        found.sample.update(rows, classes, group, sources, places=places, numbers=numbers)
        np.add.at(found.patches, (sources[classes >= 0], classes[classes >= 0]), 1)
        tick(len(block))
    return found


def _flat(
    entry: Entry, block: Block, min_share: float
) -> tuple[NDArray[np.floating], NDArray[np.int64], NDArray[np.int64]]:
    """Return the patches of a block as rows, with their class and group."""
    rows = block.embeddings.reshape(-1, block.embeddings.shape[-1])
    classes = patch_classes(block.coverage, min_share).reshape(-1)
    return rows, classes, np.repeat(entry.groups[block.windows], len(classes) // len(block))


def _origin(entry: Entry) -> NDArray[np.float64]:
    """Return the mean embedding of some windows, so that sums about it do not cancel."""
    some = entry.selected[:: max(1, len(entry.selected) // _ORIGIN_WINDOWS)]
    patches = entry.cache.shape[1] * entry.cache.shape[2]
    return np.asarray(entry.cache.moments(some)[:, 0].sum(axis=0, dtype=np.float64) / (len(some) * patches))


def hold_out(entry: Entry, found: Gathered, groups: int, *, min_share: float, shrinkage: float, tick: Tick) -> None:
    """Read a cache again: tell every two classes apart in each group of sources, by planes fitted on the others.

    Every fit is repeated without each further group, so that an interval knows what other photographs to fit on change.
    """
    planes = [_planes(state, groups, shrinkage, found.unfitted[layer]) for layer, state in enumerate(found.moments)]
    for block in entry.cache.blocks(windows=entry.selected):
        for tile in _tiles(block):
            rows, classes, group = _flat(entry, tile, min_share)
            for out in np.unique(group).tolist():
                here = np.flatnonzero((group == out) & (classes >= 0))
                _count(classes[here], found.tested[out])
                for layer, features in enumerate(entry.features):
                    weights, bias = planes[layer]
                    values = rows[here, features.columns].astype(np.float64)
                    second = np.tensordot(values, weights[out], axes=(1, 1)) + bias[out] > 0
                    _count_hits(second, classes[here], found.hits[layer, out])
        tick(len(block))


def _count(classes: NDArray[np.int64], tested: NDArray[np.float64]) -> None:
    """Add up the patches of each side of each pair."""
    for pair, sides in enumerate(PAIRS):
        tested[pair] += [np.count_nonzero(classes == kind) for kind in sides]


def _count_hits(second: NDArray[np.bool_], classes: NDArray[np.int64], hits: NDArray[np.float64]) -> None:
    """Add up which patches were told right, for each fit, pair and side; `second` has shape (n, groups, pairs)."""
    for pair, sides in enumerate(PAIRS):
        for side, kind in enumerate(sides):
            hits[:, pair, side] += np.count_nonzero(second[classes == kind, :, pair] == bool(side), axis=0)


def _tiles(block: Block) -> Iterator[Block]:
    """Yield a block in pieces that may be converted to float64."""
    for start in range(0, len(block), _TILE_WINDOWS):
        part = slice(start, start + _TILE_WINDOWS)
        yield replace(
            block, embeddings=block.embeddings[part], coverage=block.coverage[part], windows=block.windows[part]
        )


def _planes(
    state: MomentsState, groups: int, shrinkage: float, unfitted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (groups, groups, width, pairs) and biases without every two groups; note what cannot be."""
    weights = np.zeros((groups, groups, len(state.origin), len(PAIRS)))
    bias = np.zeros((groups, groups, len(PAIRS)))
    for one, two in combinations_with_replacement(range(groups), 2):
        others = [group for group in range(groups) if group not in {one, two}]
        kinds = [state.gaussian(kind, others) for kind in range(len(CLASSES))]
        for number, (a, b) in enumerate(PAIRS):
            plane = _plane(kinds[a], kinds[b], shrinkage)
            for at in {(one, two), (two, one)}:
                unfitted[(*at, number)] = plane is None
                if plane is not None:
                    weights[(*at, slice(None), number)], bias[(*at, number)] = plane
    return weights, bias


def _plane(first: Gaussian | None, second: Gaussian | None, shrinkage: float) -> Discriminant | None:
    """Return the plane between two classes; None where one is missing or nothing varies."""
    if first is None or second is None:
        return None
    try:
        return discriminant(pair_of(first, second), shrinkage)
    except MetricError:
        return None


class Job(NamedTuple):
    """Two layers, by their number in two entries, that are compared on the same patches."""

    left: tuple[int, int]
    right: tuple[int, int]


class Compared(NamedTuple):
    """The kernel of two representations, and the grid and sources that it rests on."""

    kernel: KernelState
    cells: int
    sources: int


def common_windows(left: Entry, right: Entry) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which windows of two caches are the same piece of the same image, in the order of the left one."""
    keys = [entry.cache.windows.loc[entry.selected, WINDOW_KEY].assign(at=entry.selected) for entry in (left, right)]
    both = keys[0].merge(keys[1], on=WINDOW_KEY).sort_values("at_x")
    return both["at_x"].to_numpy(np.int64), both["at_y"].to_numpy(np.int64)


def kernel_passes(entries: Sequence[Entry], left: int, right: int, groups: int) -> list[list[Job]]:
    """Return the layers of two entries (or of one, twice) to compare, pass by pass, in bounded memory."""
    jobs = [
        Job((left, i), (right, j))
        for i in range(len(entries[left].features))
        for j in range(len(entries[right].features))
        if left != right or i < j
    ]
    widths = [sum(_width(entries[at].features[layer]) for at, layer in job) for job in jobs]
    passes: list[list[Job]] = []
    held = MOST_KERNEL_BYTES + 1
    for job, width in zip(jobs, widths, strict=True):
        size = groups * width**2 * 8
        if held + size > MOST_KERNEL_BYTES:
            passes.append([])
            held = 0
        passes[-1].append(job)
        held += size
    return passes


def _width(features: Features) -> int:
    return int(features.columns.stop - features.columns.start)


def compare(
    entries: Sequence[Entry], jobs: Sequence[Job], found: Sequence[Gathered], groups: int, tick: Tick
) -> dict[Job, Compared]:
    """Read the common windows of two caches together: the kernel of each job, over all patches that are not VOID."""
    left, right = entries[jobs[0].left[0]], entries[jobs[0].right[0]]
    ours, theirs = (left.selected, left.selected) if left is right else common_windows(left, right)
    partner = dict(zip(ours.tolist(), theirs.tolist(), strict=True))
    cells = min(left.cache.shape[1], right.cache.shape[1])
    kernels = {
        job: KernelState((_state(found, job.left).origin, _state(found, job.right).origin), groups) for job in jobs
    }
    for block in left.cache.blocks(windows=ours):
        for tile in _tiles(block):
            other = tile if left is right else right.cache.read([partner[window] for window in tile.windows.tolist()])
            known = (2 * on_common_grid(tile.coverage, cells)[..., -1] <= FULL).reshape(-1)
            group = np.repeat(left.groups[tile.windows], cells * cells)[known]
            views = [on_common_grid(part.embeddings, cells).reshape(len(known), -1)[known] for part in (tile, other)]
            for job, kernel in kernels.items():
                one = views[0][:, left.features[job.left[1]].columns]
                kernel.update(one, views[1][:, right.features[job.right[1]].columns], group)
        tick(len(block))
    sources = len(np.unique(left.photographs[ours]))
    return {job: Compared(kernel, cells, sources) for job, kernel in kernels.items()}


def _state(found: Sequence[Gathered], place: tuple[int, int]) -> MomentsState:
    return found[place[0]].moments[place[1]]
