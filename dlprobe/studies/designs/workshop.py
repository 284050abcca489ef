"""What studies work with: images, caches and fits, each made once under a key of everything that determined it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import Manifest, scan
from dlprobe.data.synthesis import SynthesisSettings, build_demo, synthesize
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph
from dlprobe.errors import DataError
from dlprobe.extraction import extract
from dlprobe.localization import PostProcessing, load_probe
from dlprobe.spec import fingerprint, sha256_of_file
from dlprobe.studies.adaptation.finetuning import finetune
from dlprobe.studies.evaluating import RECORD_NAME, evaluate
from dlprobe.studies.evaluation.settings import OWN_PROTOCOL, EvaluateSettings
from dlprobe.studies.fit import fit_caches
from dlprobe.studies.fitting.splits import assign
from dlprobe.studies.runs import RUN_NAME, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pandas as pd

    from dlprobe.backbones.base import Backbone
    from dlprobe.finetune import FinetuneSettings
    from dlprobe.localization import SlidingSettings
    from dlprobe.studies.designs.definition import BackboneSource, DataSource, Study
    from dlprobe.studies.fitting.settings import FitSettings
    from dlprobe.studies.runs import Run

#: Part of every cell's key; raised when the same settings would give other numbers.
CELL_VERSION = 3
_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Workshop:
    """A study's folder, and what is made in it.

    Parameters
    ----------
    study : Study
        What is asked.
    base : Path
        Folder that the study's relative paths start from.
    folder : Path
        Where data, caches and cells are kept.
    say : callable
        Told in a line what is being done.
    bar : callable
        ``(label, unit)`` to a context manager that yields what is told the steps done and in all, or None.
    """

    study: Study
    base: Path
    folder: Path
    say: Callable[[str], None]
    bar: Callable[[str, str], AbstractContextManager[Callable[[int, int], None] | None]]

    def manifest(self, source: DataSource | None = None) -> Manifest:
        """Return the images of the study, or of another source; data of the demo are built on the first call."""
        source = source or self.study.data
        if source.demo:
            return self._demo(source)
        if source.manifest:
            return Manifest.read(self.base / source.manifest)
        options = {name: value for name in ("variant", "dataset") if (value := getattr(source, name))}
        return scan(self.base / str(source.root), layout=source.layout, sample=0, **options).manifest

    def caches(self) -> list[Path]:
        """Return one complete cache for each backbone of the study, extracting what is missing."""
        manifest = self.manifest() if any(not entry.cache for entry in self.study.backbones) else None
        return [self._cache(entry, entry.cache, manifest) for entry in self.study.backbones]

    def test_caches(self) -> list[Path]:
        """Return the caches of the data set that is tested only; none where the study has no [test]."""
        entries = self.study.backbones
        if not self.study.test:
            return []
        manifest = self.manifest(self.study.test) if any(not entry.cache for entry in entries) else None
        return [self._cache(entry, entry.test_cache, manifest) for entry in entries]

    def frames(self) -> list[pd.DataFrame]:
        """Return the manifests of all caches of the first backbone: of the study's data, and of those tested only."""
        return [open_cache(path).manifest.frame for path in (*self.caches()[:1], *self.test_caches()[:1])]

    def weights(self) -> list[tuple[str, str]]:
        """Return name and weights of every backbone."""
        found = []
        for entry in self.study.backbones:
            if entry.cache:
                cache = open_cache(self.base / entry.cache)
                found.append((cache.model_spec.backbone, cache.origin["weights"]))
            else:
                found.append((entry.name, entry.weights))
        return found

    def fit(self, caches: Sequence[Path], settings: FitSettings, test: Sequence[Path] = ()) -> Run:
        """Return the fit of some caches under some settings, fitting only where no cell has its key."""
        key = cell_key(
            "fit",
            caches=[open_cache(path).cache_spec.fingerprint for path in caches],
            test=[open_cache(path).cache_spec.fingerprint for path in test],
            settings=asdict(settings),
        )
        cell = self.folder / "cells" / key
        if not (cell / RUN_NAME).is_file():
            self.say(f"fitting cell {key}")
            with self.bar("fit", "steps") as progress:
                fit_caches(caches, cell, test=test, settings=settings, progress=progress)
        return read_run(cell)

    def evaluation(
        self,
        probe: Path,
        sources: set[str],
        sliding: SlidingSettings,
        *,
        degrade: tuple[str, ...] = (),
        generators: tuple[str, ...] = (),
        post: PostProcessing | None = None,
    ) -> Path:
        """Return the evaluation of a probe on the images of some photographs, clean and degraded.

        Parameters
        ----------
        probe : Path
            File of the probe.
        sources : set of str
            The photographs.
        sliding : SlidingSettings
            Of the sliding window.
        degrade, generators : tuple of str
            What images are degraded by, and whose are looked at; all where none are named.
        post : PostProcessing, optional
            Steps that are followed one by one; none otherwise, because they take as long as windows do.
        """
        options = self.study.extract
        manifest = self.manifest(self.study.test)
        wanted = manifest.frame["source_id"].isin(sources)
        if generators:
            wanted &= manifest.frame["generator"].isin(["", *generators])
        chosen = manifest.select(wanted)
        steps = post or PostProcessing()
        settings = EvaluateSettings(protocols=(OWN_PROTOCOL,), degrade=degrade, split="all", post=steps)
        key = cell_key(
            "evaluation",
            probe=sha256_of_file(probe),
            manifest=chosen.sha256,
            settings=asdict(settings),
            sliding=asdict(sliding),
        )
        cell = self.folder / "cells" / key
        if not (cell / RECORD_NAME).is_file():
            self.say(f"evaluating cell {key}")
            # the weights that the card names: a cache that was there already has no others
            head, backbone = load_probe(probe, device=options.device, engine=options.engine)
            with self.bar("evaluate", "steps") as progress:
                evaluate(chosen, backbone, head, cell, settings=settings, sliding=sliding, progress=progress)
        return cell

    def adaptations(self, settings: FinetuneSettings) -> list[Run]:
        """Return the backbone's adaptation in every mode that the study asks for: one run a fold."""
        asked, [entry] = self.study.options, self.study.backbones
        if entry.cache:
            msg = "a study of adaptation trains on images, which a cache has no more; give [[backbones]] a name"
            raise DataError(msg)
        backbone = self._backbone(entry)
        return [
            self._adaptation(part, backbone, settings) for part in _folds(self.manifest(), asked.folds, settings.seed)
        ]

    def _adaptation(self, manifest: Manifest, backbone: Backbone, settings: FinetuneSettings) -> Run:
        modes = self.study.options.modes
        key = cell_key(
            "adaptation",
            model=backbone.spec.fingerprint,
            manifest=manifest.sha256,
            modes=modes,
            settings=asdict(settings),
        )
        cell = self.folder / "cells" / key
        if not (cell / RUN_NAME).is_file():
            self.say(f"adapting {backbone.spec.backbone} in cell {key}: {', '.join(modes)}")
            with self.bar("finetune", "steps") as progress:
                finetune(manifest, backbone, cell, modes=modes, settings=settings, progress=progress)
        return read_run(cell)

    def _backbone(self, entry: BackboneSource) -> Backbone:
        options = self.study.extract
        return load_backbone(
            entry.name,
            weights=entry.weights,
            layers=entry.layers,
            norm=entry.norm,
            window_px=entry.window_px,
            device=options.device,
            engine=options.engine,
        )

    def _cache(self, entry: BackboneSource, there: str | None, manifest: Manifest | None) -> Path:
        if there or manifest is None:
            path = self.base / str(there)
            open_cache(path).require_complete()
            return path
        options, backbone = self.study.extract, self._backbone(entry)
        settings = {name: getattr(options, name) for name in ("stride_px", "views", "degrade", "dtype")}
        key = cell_key("cache", model=backbone.spec.fingerprint, manifest=manifest.sha256, settings=settings)
        path = self.folder / "caches" / f"{_slug(entry.name)}-{key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.exists() and open_cache(path).complete):
            self.say(f"extracting {entry.name} into {path.name}")
            with self.bar("extract", "windows") as progress:
                extract(manifest, backbone, path, progress=progress, **settings)
        return path

    def _demo(self, source: DataSource) -> Manifest:
        window_px = next((entry.window_px for entry in self.study.backbones if entry.window_px), None) or 504
        key = cell_key("demo", source=asdict(source), window_px=window_px)
        root = self.folder / "data" / key
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            self.say("building a data set from photographs that ship with scikit-image and scikit-learn")
            build = _build_ladder if source.ladder else _build_demo
            build(root, source, window_px)
        return scan(root, sample=0).manifest


def cell_key(work: str, **determines: Any) -> str:
    """Return the key of a piece of work: a hash of its name and of everything that determines it."""
    return fingerprint({"work": work, "version": CELL_VERSION, **determines})[:_KEY_DIGITS]


def known_generators(asked: Sequence[str], frames: Sequence[pd.DataFrame]) -> tuple[tuple[str, ...], list[str]]:
    """Return those of some generators that an image is by, and a note on the others.

    A study is carried from one data set to another by changing paths alone, where generators have other names.
    """
    there = {str(name) for frame in frames for name in frame["generator"].unique()} - {""}
    known = tuple(name for name in asked if name in there)
    missing = sorted(set(asked) - set(known))
    if not missing:
        return known, []
    return known, [
        (
            f"Not looked for, because no image is by them: {', '.join(missing)}. The data have "
            f"{', '.join(sorted(there)) or 'no generators'}; name some of these in the study's file."
        )
    ]


def _folds(manifest: Manifest, count: int, seed: int) -> list[Manifest]:
    """Return the manifest once for each nested fold, its split the fold's; as it is for 0 folds."""
    if not count:
        return [manifest]
    dealt = assign(manifest.frame, n_folds=count, seed=seed)
    parts = []
    for fold in dealt.folds:
        of = {group: name for name in ("train", "val", "test") for group in getattr(fold, name)}
        split = [of.get(int(group), "") for group in dealt.groups]
        parts.append(Manifest(manifest.frame.assign(split=split), manifest.root))
    return parts


def _build_demo(root: Path, source: DataSource, window_px: int) -> None:
    build_demo(root, photographs=source.photographs, side_px=source.side_px, window_px=window_px)


def _build_ladder(root: Path, source: DataSource, window_px: int) -> None:
    """Write the photographs as files, and let `synthesize` put the rungs on them as it does for a user's own."""
    folder = root.with_name(f"{root.name}-photographs")
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for pair in PAIRS for name in pair][: source.photographs]:
        photograph = load_photograph(name, source.side_px)
        Image.fromarray(photograph.pixels).save(folder / f"{photograph.name}.png")
    settings = SynthesisSettings(window_px=window_px, side_px=source.side_px, ladder=True)
    synthesize([folder], root, settings=settings)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")
