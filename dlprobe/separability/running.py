"""Measure how separable the classes are in one cache or several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dlprobe.cache import open_cache
from dlprobe.errors import IdentityError, MetricError
from dlprobe.extras import require
from dlprobe.probes import Probe
from dlprobe.separability.gathering import (
    RANDOM,
    common_windows,
    compare,
    entries_of,
    gather,
    hold_out,
    kernel_passes,
)
from dlprobe.separability.maps import UMAP_NEIGHBOURS, PatchMap, pca, scaled, umap
from dlprobe.separability.results import COLUMNS, Separability, Task, measure, paired_differences, prepare_folder
from dlprobe.separability.statistics.directions import Direction
from dlprobe.separability.tasks import NAMES, Subject, effects_of, tasks_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from dlprobe.cache import FeatureCache
    from dlprobe.separability.gathering import Compared, Entry, Gathered, Job
    from dlprobe.separability.results import Replicates

    Progress = Callable[[int, int], None]

#: A map needs as many patches and features that vary.
_LEAST_MAPPED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparabilitySettings:
    """How separability is measured.

    Parameters
    ----------
    min_share : float
        In [0.5, 1]: a patch belongs to the class that covers more than half of it, and at least this share.
    shrinkage : float
        In [0, 1]: share of the identity that is mixed into covariances of scaled features.
    sample_per_class : int
        Patches of each class for everything that needs distances; memory grows with its square.
    neighbours : int
        For the purity of neighbourhoods.
    groups : int
        Groups of sources that are left out in turn; fewer than 8 give no interval, memory grows with them.
    umap : bool
        Make UMAPs beside the PCA maps (needs umap-learn).
    seed : int
        Of groups, sample, halves and UMAP.

    Raises
    ------
    MetricError
        If a value lies outside its range.
    """

    min_share: float = 0.5
    shrinkage: float = 0.01
    sample_per_class: int = 1000
    neighbours: int = 10
    groups: int = 10
    umap: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "min_share": (0.5, 1),
            "shrinkage": (0, 1),
            "sample_per_class": (20, 10_000),
            "neighbours": (1, self.sample_per_class),
            "groups": (2, 100),
            "seed": (0, 2**63),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                msg = f"{name} is {getattr(self, name)}; it must lie between {low} and {high}"
                raise MetricError(msg)


def separate(
    caches: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    probes: Sequence[str | os.PathLike[str]] = (),
    settings: SeparabilitySettings | None = None,
    progress: Progress | None = None,
) -> Separability:
    """Measure how separable provenance classes are in caches, and how alike the caches' embeddings are.

    Each cache is read twice, and each pair of caches once more, block by block; memory does not depend on the number
    of windows. Clean views alone count. Every layer of a cache is measured by itself.

    Parameters
    ----------
    caches : sequence of path
        Complete caches.
    out : path, optional
        Folder for tables and pictures; see `Separability.write`.
    probes : sequence of path
        Probes whose directions are compared; each must be of the model of one of the caches.
    settings : SeparabilitySettings, optional
        Defaults otherwise.
    progress : callable, optional
        Called with the windows read and to be read.

    Returns
    -------
    Separability

    Raises
    ------
    CacheError, MetricError
        If a cache is incomplete, or its embeddings are not finite.
    IdentityError, ProbeError
        If a probe cannot be read, or is of none of the models.
    ExtraError
        If a UMAP is asked for and umap-learn is not installed.
    OutputError
        If `out` is something else, or cannot be written.
    """
    chosen = settings or SeparabilitySettings()
    if chosen.umap:
        require("umap", "a UMAP map", "umap")
    if out is not None:
        prepare_folder(out)
    opened = _opened(caches)
    given = _directions(opened, probes)
    entries, groups = entries_of(opened, chosen.groups, chosen.seed)
    found = _Reading(entries, groups, chosen, progress)
    replicates: list[Replicates] = []
    effects: list[pd.DataFrame] = []
    maps: list[PatchMap] = []
    gaussians = {}
    for number, entry in enumerate(entries):
        for layer, features in enumerate(entry.features):
            subject = Subject(entry, found.gathered[number], layer, chosen.shrinkage, chosen.neighbours)
            for task in tasks_of(subject, given[number] if len(entry.features) == 1 else ()):
                replicates += measure(task, groups, chosen.seed)
            effects += effects_of(subject, groups)
            gaussians[features.name] = {
                name: gaussian
                for kind, name in enumerate(NAMES)
                if (gaussian := subject.state.gaussian(kind, range(groups))) is not None
            }
            maps += _maps(subject, chosen)
    rows = [item.row for item in replicates]
    rows += [item.row for task in found.kernel_tasks for item in measure(task, groups, chosen.seed)]
    result = Separability(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        pd.DataFrame(paired_differences(replicates, found.same_windows, groups), columns=list(COLUMNS)),
        pd.concat(effects, ignore_index=True) if effects else _no_effects(),
        gaussians,
        maps,
        found.notes,
        _record(entries, probes, chosen, same_windows=found.all_same),
    )
    if out is not None:
        result.write(out)
    return result


def _record(
    entries: Sequence[Entry],
    probes: Sequence[str | os.PathLike[str]],
    chosen: SeparabilitySettings,
    *,
    same_windows: bool,
) -> dict[str, object]:
    """Return what the numbers were determined by, as JSON values."""
    caches = [
        {
            "name": entry.name,
            "path": str(entry.cache.path),
            "weights": entry.cache.origin["weights"],
            "model_fingerprint": entry.cache.model_spec.fingerprint,
            "cache_fingerprint": entry.cache.cache_spec.fingerprint,
            "windows": len(entry.selected),
        }
        for entry in entries
    ]
    given = [{"path": str(Path(path).resolve()), "sha256": Probe.load(Path(path)).sha256} for path in probes]
    whole = {"dlprobe": version("dlprobe"), "settings": asdict(chosen), "same_windows": same_windows}
    return {**whole, "caches": caches, "probes": given}


def _opened(caches: Sequence[str | os.PathLike[str]]) -> list[FeatureCache]:
    if not caches:
        msg = "no cache was given; fill one with `dlprobe extract`"
        raise MetricError(msg)
    paths = [Path(path).resolve() for path in caches]
    if len(set(paths)) < len(paths):
        msg = f"{next(path for path in paths if paths.count(path) > 1)} was given twice; give each cache once"
        raise MetricError(msg)
    return [open_cache(path) for path in caches]


def _directions(caches: Sequence[FeatureCache], probes: Sequence[str | os.PathLike[str]]) -> list[list[Direction]]:
    """Return for each cache the directions of the probes of its model; a probe must be of one of them."""
    given: list[list[Direction]] = [[] for _ in caches]
    for path in probes:
        probe = Probe.load(Path(path))
        spec = probe.model_spec
        homes = [
            directions
            for cache, directions in zip(caches, given, strict=True)
            if (
                probe.width == cache.model_spec.width
                if spec is None
                else spec.fingerprint == cache.model_spec.fingerprint
            )
        ]
        if not homes:
            msg = f"{path} was fitted on another model than every cache here; give a cache of its model"
            raise IdentityError(msg)
        kinds = probe.card["classes"]
        for directions in homes:
            directions += [
                Direction(
                    Path(path).stem if len(kinds) == 1 else f"{Path(path).stem} {kind}", weights.astype(np.float64)
                )
                for kind, weights in zip(kinds, probe.weights, strict=True)
            ]
    return given


class _Comparison(NamedTuple):
    """What is compared between two caches, or between the layers of one."""

    left: int
    right: int
    passes: list[list[Job]]
    windows: int


class _Reading:
    """Reads the caches: two passes over each, and one or more over what each two have in common."""

    def __init__(
        self, entries: Sequence[Entry], groups: int, chosen: SeparabilitySettings, progress: Progress | None
    ) -> None:
        self._entries, self._groups, self._progress = entries, groups, progress
        self.notes: list[str] = []
        self.same_windows: list[tuple[str, str]] = []
        self.all_same = True
        self.kernel_tasks: list[Task] = []
        self._note_random()
        plans = list(self._plans())
        self._done = 0
        self._all = 2 * sum(len(entry.selected) for entry in entries)
        self._all += sum(plan.windows * len(plan.passes) for plan in plans)
        self.gathered = [self._gather(entry, chosen) for entry in entries]
        for plan in plans:
            for jobs in plan.passes:
                self.kernel_tasks += self._compare(jobs)

    def _note_random(self) -> None:
        drawn = [entry.name for entry in self._entries if entry.cache.origin["weights"].startswith(RANDOM)]
        if drawn:
            self.notes.append(f"{' and '.join(drawn)}: backbones with random weights, a floor, not a finding")

    def _tick(self, windows: int) -> None:
        self._done += windows
        if self._progress is not None:
            self._progress(self._done, self._all)

    def _gather(self, entry: Entry, chosen: SeparabilitySettings) -> Gathered:
        share = chosen.min_share
        found = gather(
            entry, self._groups, min_share=share, per_class=chosen.sample_per_class, seed=chosen.seed, tick=self._tick
        )
        hold_out(entry, found, self._groups, min_share=share, shrinkage=chosen.shrinkage, tick=self._tick)
        return found

    def _plans(self) -> Iterator[_Comparison]:
        for left, right in combinations_with_replacement(range(len(self._entries)), 2):
            one, other = self._entries[left], self._entries[right]
            ours = one.selected if left == right else common_windows(one, other)[0]
            names = [
                self._pair(job) for jobs in kernel_passes(self._entries, left, right, self._groups) for job in jobs
            ]
            self.all_same &= len(ours) == len(one.selected) == len(other.selected)
            if not len(ours):
                why = "no window in common; extract both from one manifest with one window and stride"
                self.kernel_tasks += [_kernel_task(pair, None, why) for pair in names]
                continue
            if len(ours) == len(one.selected) == len(other.selected):
                self.same_windows += names
            else:
                sizes = f"{len(one.selected)} and {len(other.selected)} windows, {len(ours)} in common"
                self.notes.append(f"{one.name} and {other.name} hold {sizes}: rows of each are over its own windows")
            yield _Comparison(left, right, kernel_passes(self._entries, left, right, self._groups), len(ours))

    def _pair(self, job: Job) -> tuple[str, str]:
        left, right = (self._entries[entry].features[layer].name for entry, layer in job)
        return left, right

    def _compare(self, jobs: Sequence[Job]) -> Iterator[Task]:
        grids = {self._entries[at].cache.shape[1] for job in jobs for at, _ in job}
        for job, compared in compare(self._entries, jobs, self.gathered, self._groups, self._tick).items():
            cells = compared.cells
            why = f"on a common grid of {cells} x {cells} cells" if len(grids) > 1 else ""
            yield _kernel_task(self._pair(job), compared, why, range(self._groups))


def _kernel_task(pair: tuple[str, str], compared: Compared | None, reason: str, groups: Sequence[int] = ()) -> Task:
    name = " ~ ".join(pair)
    if compared is None:
        return Task(name, "all", ("linear_cka",), None, 0, 0, reason)
    kernel = compared.kernel

    def compute(chosen: Sequence[int]) -> dict[str, float]:
        return {"linear_cka": kernel.cka(chosen)}

    return Task(name, "all", ("linear_cka",), compute, compared.sources, kernel.count(groups), reason)


def _maps(subject: Subject, chosen: SeparabilitySettings) -> Iterator[PatchMap]:
    """Yield the maps of a sample; none where it has too few patches."""
    sample = subject.found.sample.sample()
    rows = scaled(sample.embeddings[:, subject.entry.features[subject.layer].columns])
    if min(rows.shape) < _LEAST_MAPPED:
        return
    classes = np.array(NAMES)[sample.classes]
    sources = np.array(subject.entry.source_ids)[sample.sources]
    points, shares = pca(rows)
    words = (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%})")
    yield PatchMap(subject.name, "pca", points, classes, sources, words)
    if chosen.umap and len(rows) > UMAP_NEIGHBOURS:
        yield PatchMap(subject.name, "umap", umap(rows, chosen.seed), classes, sources, ("UMAP 1", "UMAP 2"))


def _no_effects() -> pd.DataFrame:
    return pd.DataFrame(columns=["features", "classes", "dimension", "value", "low", "high", "reason"])
