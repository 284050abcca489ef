"""An evaluation from a manifest, a backbone and a probe to a folder of tables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dlprobe import plotting
from dlprobe.data.images import MAX_PIXELS
from dlprobe.data.manifest import Manifest
from dlprobe.errors import MetricError, OutputError
from dlprobe.localization import SlidingSettings, load_probe
from dlprobe.publish import publish
from dlprobe.studies.evaluation.computing import Reject, Work
from dlprobe.studies.evaluation.effects import (
    background_notes,
    background_table,
    curves_table,
    prior_notes,
    prior_table,
    steps_by_image,
    steps_table,
)
from dlprobe.studies.evaluation.maps import MapStore, map_identity
from dlprobe.studies.evaluation.scoring import score_cases
from dlprobe.studies.evaluation.settings import EvaluateSettings, conditions, yardsticks
from dlprobe.studies.evaluation.subjects import choose_subjects
from dlprobe.studies.evaluation.tables import comparisons_table, lost_kinds, overview, results_table
from dlprobe.studies.runs import Run, markdown, settings_record, software

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    from dlprobe.backbones import Backbone
    from dlprobe.probes import Probe
    from dlprobe.studies.evaluation.settings import Yardstick

RECORD_NAME = "evaluation.json"
MAPS_FOLDER = "maps"
SCHEMA = {"kind": "dlprobe-evaluation", "version": 1}
TABLES = ("overview", "results", "comparisons", "images", "curves", "steps", "prior", "background", "rejects")
#: Of the columns of ``images`` with the IoU, or the false area, after each step of post-processing; clean rows only.
STEP_PREFIX = "post."
#: What a record says of each protocol.
_CONVENTIONS = ("grid", "comparison", "images", "average", "permutation", "border", "all_pristine", "source")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    out : Path
        Its folder.
    tables : dict of str to DataFrame
        ``overview`` (what people read first), ``results``, ``comparisons``, ``images``, ``curves``, ``steps``,
        ``prior``, ``background`` and ``rejects``.
    notes : list of str
        What a reader must know: who is left out, kinds lost to marking everything, what the guards found.
    accounting : dict of str to int
        ``images`` = ``scored`` + ``rejected`` + ``ignored``; and ``maps_computed``, ``maps_kept``.
    ignored : dict of str to int
        Why images were ignored.
    """

    out: Path
    tables: dict[str, pd.DataFrame]
    notes: list[str]
    accounting: dict[str, int]
    ignored: dict[str, int]

    def frame(self) -> pd.DataFrame:
        """Return the table of results."""
        return self.tables["results"]

    def plot(self, ax: Axes | None = None, metric: str | None = None) -> Axes:
        """Draw one metric of every kind with its intervals beside marking everything; by default the first protocol's.

        Raises
        ------
        MetricError
            If no row has that metric.
        """
        chosen = metric or self.tables["overview"]["metric"].iloc[0].removesuffix(" (oracle)")
        rows = self.frame()[self.frame()["metric"] == chosen]
        if rows.empty:
            msg = f"no {chosen!r} was measured; there are: {', '.join(dict.fromkeys(self.frame()['metric']))}"
            raise MetricError(msg)
        words = "marking everything"
        ax = plotting.dots(rows, rows="kind", series="metric", ax=ax, reference="everything", reference_label=words)
        ax.set_xlabel(chosen)
        return ax


def evaluate(
    manifest: Manifest,
    backbone: Backbone,
    probe: Probe,
    out: str | os.PathLike[str],
    *,
    settings: EvaluateSettings | None = None,
    sliding: SlidingSettings | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a probe on whole images under named protocols and degradations.

    Score maps are computed once and kept in ``maps`` below `out`: another protocol, threshold or split computes none
    that is there, and a run that was killed goes on where it stopped.

    Parameters
    ----------
    manifest : Manifest
        Images with their masks.
    backbone, probe : Backbone, Probe
        As for `dlprobe.localization.score_map`.
    out : path
        Folder for tables and maps; an earlier evaluation there is replaced, its maps are used.
    settings : EvaluateSettings, optional
    sliding : SlidingSettings, optional
        Of the sliding window.
    max_pixels : int
        Larger images are rejects.
    progress : callable, optional
        Called with the steps done and in all: each image under each condition is looked at, then scored.

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        If no image is left to evaluate, or not one can be read.
    OutputError
        If `out` holds something else.
    IdentityError, ProbeError
        If probe and backbone do not belong together.
    """
    chosen, slide = settings or EvaluateSettings(), sliding or SlidingSettings()
    probe.require_model(backbone.spec, "probe and backbone")
    rulers = yardsticks(chosen, probe.threshold, str(probe.card["threshold_policy"]))
    ladder = conditions(chosen.degrade)
    subjects = choose_subjects(manifest, probe, chosen)
    target = _prepared(Path(out))
    store = MapStore(target / MAPS_FOLDER, map_identity(backbone, probe, slide), backbone.spec.window_px, chosen.seed)
    with store.held():
        (target / RECORD_NAME).unlink(missing_ok=True)
        work = Work(subjects, ladder, store, max_pixels, progress)
        work.compute(backbone, probe, slide)
        scored = score_cases(
            work.cases(), store, subjects.root, rulers, rulers[0].threshold, max_pixels=max_pixels, done=work.step
        )
        clean, where = scored.clean(), (store, subjects.root, rulers[0])
        results = results_table(clean, rulers, chosen)
        steps = steps_by_image(clean, *where, settings=chosen, max_pixels=max_pixels)
        tables = {
            "results": results,
            "overview": overview(results, rulers),
            "comparisons": comparisons_table(clean, rulers, chosen),
            "images": scored.wide(rulers).join(steps.set_axis(scored.clean_places()).add_prefix(STEP_PREFIX)),
            "curves": curves_table(scored, ladder, rulers, chosen) if len(ladder) > 1 else pd.DataFrame(),
            "prior": prior_table(clean, *where, settings=chosen, max_pixels=max_pixels),
            "steps": steps_table(clean, steps, chosen),
            "background": background_table(clean, rulers[0], chosen),
            "rejects": pd.DataFrame(work.rejects, columns=list(Reject._fields)),
        }
        notes = [
            *subjects.notes,
            *work.notes(),
            *lost_kinds(tables["comparisons"]),
            *prior_notes(tables["prior"]),
            *background_notes(clean, chosen),
        ]
        found = Evaluation(
            target,
            tables,
            notes,
            work.accounting(len(manifest)),
            dict(work.ignored),
        )
        record = _record(backbone, probe, chosen, slide, rulers)
        origin = {"sha256": manifest.sha256, "root": str(manifest.root.resolve())}
        more = {"manifest": origin, "notes": notes, "accounting": found.accounting, "ignored": found.ignored}
        _write(target, found, {**record, **more})
    return found


def evaluate_files(
    probe: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> Evaluation:
    """Load a manifest, a probe and the backbone that its card names, and evaluate.

    Parameters
    ----------
    probe, manifest : path
        Files of `dlprobe fit` and `dlprobe scan`.
    out : path
        As for `evaluate`.
    root : path, optional
        Folder of the images, if the manifest's own has moved.
    weights, device, precision, batch_size
        As for `dlprobe.localization.load_probe`.
    **options
        Further arguments of `evaluate`.
    """
    table = Manifest.read(manifest, root)
    head, backbone = load_probe(probe, weights=weights, device=device, precision=precision, batch_size=batch_size)
    return evaluate(table, backbone, head, out, **options)


def _prepared(target: Path) -> Path:
    """Return the folder, made; raise `OutputError` if something else is there."""
    above = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"{target} cannot be written: {above} is {'not writable' if above.is_dir() else 'no folder'}"
        raise OutputError(msg)
    ours = (target / RECORD_NAME).is_file() or (target / MAPS_FOLDER).is_dir()
    if target.exists() and not ours and any(target.iterdir()):
        msg = f"{target} exists and holds no evaluation of dlprobe; give another output folder"
        raise OutputError(msg)
    return target


def _record(
    backbone: Backbone, probe: Probe, settings: EvaluateSettings, slide: SlidingSettings, rulers: list[Yardstick]
) -> dict[str, Any]:
    return {
        "settings": settings_record(settings),
        "sliding": settings_record(slide),
        "probe": {"sha256": probe.sha256, "card": probe.card},
        "backbone": {
            **settings_record(backbone.spec),
            "model_fingerprint": backbone.spec.fingerprint,
            "weights": backbone.weights,
            **settings_record(backbone.pins),
        },
        "protocols": [
            {
                "label": ruler.label,
                "threshold": ruler.threshold,
                "threshold_policy": ruler.policy,
                "headline": ruler.column(ruler.headline),
                **{name: getattr(ruler.protocol, name) for name in _CONVENTIONS},
            }
            for ruler in rulers
        ],
    }


def _write(target: Path, found: Evaluation, record: dict[str, Any]) -> None:
    """Write tables, each whole or not at all, and the record last: a folder without it is unfinished."""
    for name, table in found.tables.items():
        with publish(target / f"{name}.parquet") as scratch:
            table.to_parquet(scratch, index=False)
        with publish(target / f"{name}.csv") as scratch:
            table.to_csv(scratch, index=False)
    with publish(target / "results.md") as scratch:
        scratch.write_text(markdown(found.tables["overview"]) + "\n", encoding="utf-8")
    whole = {"schema": SCHEMA, **record, "software": software()}
    with publish(target / RECORD_NAME) as scratch:
        scratch.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def read_evaluation(path: str | os.PathLike[str]) -> Run:
    """Read the folder of an evaluation.

    Parameters
    ----------
    path : path
        That `evaluate` wrote.

    Raises
    ------
    OutputError
        If it is none, is unfinished, or was written by another release.
    """
    folder = Path(path)
    if not (folder / RECORD_NAME).is_file():
        msg = f"{folder} holds no finished evaluation of dlprobe; make one with `dlprobe evaluate`"
        raise OutputError(msg)
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        msg = f"{folder} holds {record.get('schema')}, this release reads {SCHEMA}; evaluate again"
        raise OutputError(msg)
    return Run(folder, record, {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES})
