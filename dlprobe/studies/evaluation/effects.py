"""What changes a score: degradations, post-processing, and what is no effect of the manipulation at all.

The last are guards: what the map shows where nothing has been done yet, and outside of what was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.data.images import read_image
from dlprobe.data.provenance import Provenance
from dlprobe.localization import masks_by_step
from dlprobe.localization.outputs import SATURATED_AREA
from dlprobe.metrics import count, iou
from dlprobe.studies.evaluation.scoring import regions_of
from dlprobe.studies.evaluation.settings import OWN_PROTOCOL
from dlprobe.studies.evaluation.tables import AUTHENTIC, difference, kinds, mean_by_source
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.metrics import Interval
    from dlprobe.studies.evaluation.maps import MapStore
    from dlprobe.studies.evaluation.scoring import Scored
    from dlprobe.studies.evaluation.settings import Condition, EvaluateSettings, Yardstick

#: A map that does this well where nothing was done, over how well it does on the fake, is said to show the prior.
PRIOR_SHARE = 0.5
_OWN_METRICS = ("iou", "f1", "ap")
_BACKGROUND = "background_marked"


def curves_table(
    scored: Scored, conditions: list[Condition], yardsticks: list[Yardstick], settings: EvaluateSettings
) -> pd.DataFrame:
    """Return each metric under each condition, by variant, and its difference from the clean images.

    Parameters
    ----------
    scored : Scored
        Rows of all conditions.
    conditions : list of Condition
        The clean one first.
    yardsticks : list of Yardstick
        By which they were scored.
    settings : EvaluateSettings
        Level, resamples and seed.

    Returns
    -------
    DataFrame
        One row a preset, degradation, strength, variant and metric: ``value``, ``low``, ``high``; ``difference``,
        ``difference_low``, ``difference_high`` from the clean value, paired by source; ``n_sources``, ``n_images``.
        The clean images stand in every preset.
    """
    records = []
    for variant, yardstick, metric in _lines(scored, yardsticks):
        values = scored.values(yardstick.label, metric)
        frame = scored.frame.assign(value=values)[scored.frame["variant"] == variant]
        clean = frame[frame["chain"] == "clean"].set_index("path")["value"]
        for condition in conditions:
            rows = frame[(frame["chain"] == condition.chain) & (frame["degradation"] == condition.name)]
            if rows.empty:
                continue
            numbers, sources = rows["value"].to_numpy(), rows["source_id"]
            found = mean_by_source(numbers, sources, settings)
            change = difference(numbers - clean.loc[rows["path"]].to_numpy(), sources, settings)
            records += [
                {
                    "preset": preset,
                    "degradation": condition.name,
                    "strength": condition.strength,
                    "chain": condition.chain,
                    "variant": variant,
                    "metric": yardstick.column(metric),
                    "value": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "difference": change.estimate,
                    "difference_low": change.low,
                    "difference_high": change.high,
                    "n_sources": found.n,
                    "n_images": int(np.isfinite(numbers).sum()),
                }
                for preset in condition.presets
            ]
    return pd.DataFrame.from_records(records)


def steps_by_image(
    scored: Scored, store: MapStore, root: Path, own: Yardstick, *, settings: EvaluateSettings, max_pixels: int
) -> pd.DataFrame:
    """Return what each step of post-processing does to the mask of each image, one after the other.

    Parameters
    ----------
    scored : Scored
        Clean images.
    store : MapStore
        Where their maps are.
    root : Path
        Folder of images and masks.
    own : Yardstick
        Whose threshold marks pixels, at or above it.
    settings : EvaluateSettings
        The steps.
    max_pixels : int
        Larger images are refused.

    Returns
    -------
    DataFrame
        One row an image, in the order and with the index of `scored`, one column a step: on fakes the IoU, on others
        the false area after this step. The first step is the threshold alone.
    """
    rows = []
    for case in scored.frame.to_dict("records"):
        regions = regions_of(case, root, max_pixels)
        truth, kept = regions == Provenance.INPAINTED, regions != Provenance.VOID
        pixels = read_image(root / case["path"], max_pixels=max_pixels)
        scores = store.read(store.folder / case["map"]).original
        masks = masks_by_step(scores, pixels, own.threshold, settings.post)
        rows.append(
            {
                step: iou(count(mask, truth, ~kept)) if truth.any() else float(mask[kept].mean())
                for step, mask in masks.items()
            }
        )
    return pd.DataFrame(rows, index=scored.frame.index)


def steps_table(scored: Scored, by_image: pd.DataFrame, settings: EvaluateSettings) -> pd.DataFrame:
    """Return the means of `steps_by_image` over sources.

    Parameters
    ----------
    scored : Scored
        Clean images.
    by_image : DataFrame
        Of `steps_by_image`.
    settings : EvaluateSettings
        Level, resamples and seed.

    Returns
    -------
    DataFrame
        One row a step and variant: on fakes the ``iou``, on others the ``false_area`` after this step (``value``), and
        its ``change`` against the step before, paired by source; ``low`` and ``high`` of both.
    """
    records = []
    changes = by_image.diff(axis="columns")
    for step in by_image.columns:
        for variant, part in scored.frame.groupby("variant", sort=False):
            value = mean_by_source(by_image.loc[part.index, step].to_numpy(), part["source_id"], settings)
            change = difference(changes.loc[part.index, step].to_numpy(), part["source_id"], settings)
            metric = "iou" if variant in FAKE_VARIANTS else "false_area"
            counts = {"n_sources": value.n, "n_images": len(part)}
            named = {**_named("value", value), **_named("change", change)}
            records.append({"step": step, "variant": variant, "metric": metric, **named, **counts})
    return pd.DataFrame.from_records(records)


def prior_table(
    scored: Scored, store: MapStore, root: Path, own: Yardstick, *, settings: EvaluateSettings, max_pixels: int
) -> pd.DataFrame:
    """Return what the map of the authentic photograph shows where the fake made of it will be inpainted.

    Parameters
    ----------
    scored : Scored
        Clean images.
    store : MapStore
        Where their maps are.
    root : Path
        Folder of the masks.
    own : Yardstick
        Whose threshold and comparison mark pixels.
    settings : EvaluateSettings
        Level, resamples and seed.
    max_pixels : int
        Larger masks are refused.

    Returns
    -------
    DataFrame
        One row a kind of fake, over fakes whose photograph was scored too, at the same size: mean score of the
        photograph ``inside`` and ``outside`` the mask to be and their ``difference``; the IoU of its map with that
        mask (``partner_iou``) beside the fake's own (``fake_iou``) and the ``gain`` of the fake. Each has ``_low`` and
        ``_high``. ``explains`` says whether the photograph alone gets more than half of the fake's IoU.
    """
    pairs = pd.DataFrame(_pairs(scored, store, root, own, max_pixels))
    if pairs.empty:
        return pairs
    records = []
    for kind, chosen in kinds(pairs):
        part = pairs[chosen]
        if kind == "all":
            continue
        row: dict[str, Any] = {"kind": kind, "n_sources": part["source_id"].nunique(), "n_images": len(part)}
        for name in ("inside", "outside", "partner_iou", "fake_iou"):
            row |= _named(name, mean_by_source(part[name].to_numpy(), part["source_id"], settings))
        for name, left, right in (("difference", "outside", "inside"), ("gain", "partner_iou", "fake_iou")):
            row |= _named(name, difference((part[right] - part[left]).to_numpy(), part["source_id"], settings))
        row["explains"] = bool(row["partner_iou"] > PRIOR_SHARE * row["fake_iou"])
        records.append(row)
    return pd.DataFrame.from_records(records)


def prior_notes(prior: pd.DataFrame) -> list[str]:
    """Return lines on variants whose score the photograph alone explains, or whose mask it already shows."""
    notes = []
    for row in prior[prior["kind"].isin(FAKE_VARIANTS)].itertuples() if len(prior) else ():
        seen = with_interval(row.difference, row.difference_low, row.difference_high, signed=True)
        if row.explains:
            notes.append(
                f"object prior: {row.kind}: the authentic photograph's map alone gets IoU {row.partner_iou:.3f} with "
                f"the mask to be, the fake's own {row.fake_iou:.3f} (gain "
                f"{with_interval(row.gain, row.gain_low, row.gain_high, signed=True)}): much of the score is where "
                "masks lie, not what was done"
            )
        elif row.difference_low > 0:
            notes.append(
                f"object prior: {row.kind}: the authentic photograph scores {seen} higher inside the mask to be than "
                f"outside; its map gets IoU {row.partner_iou:.3f} with it, the fake's own {row.fake_iou:.3f}"
            )
    return notes


def background_table(scored: Scored, own: Yardstick, settings: EvaluateSettings) -> pd.DataFrame:
    """Return how much is marked where nothing was generated, by variant: in ``fr`` that background was auto-encoded.

    Parameters
    ----------
    scored : Scored
        Clean images.
    own : Yardstick
        Whose threshold marks pixels.
    settings : EvaluateSettings
        Level, resamples and seed.

    Returns
    -------
    DataFrame
        One row a variant: the falsely marked share of the ``background`` with its interval, and ``whole``, the share of
        images of which so much is marked that a map says "the whole image", not "a region".
    """
    records = []
    frame = scored.frame.assign(whole=scored.values(own.label, "marked_share") >= SATURATED_AREA)
    for variant, part in frame.groupby("variant", sort=False):
        found = mean_by_source(part[_BACKGROUND].to_numpy(dtype=float), part["source_id"], settings)
        whole = mean_by_source(part["whole"].to_numpy(dtype=float), part["source_id"], settings)
        counts = {"n_sources": part["source_id"].nunique(), "n_images": len(part)}
        records.append({"variant": variant, **_named("background", found), **_named("whole", whole), **counts})
    return pd.DataFrame.from_records(records)


def background_notes(scored: Scored, settings: EvaluateSettings) -> list[str]:
    """Return a line if the background of ``fr`` is surely marked more than that of ``sp``, source by source."""
    rows = scored.frame[scored.frame["variant"].isin(FAKE_VARIANTS)]
    means = rows.pivot_table(index="source_id", columns="variant", values=_BACKGROUND)
    if set(means.columns) != set(FAKE_VARIANTS):
        return []
    found = difference((means["fr"] - means["sp"]).to_numpy(), pd.Series(means.index), settings)
    if not found.low > 0:
        return []
    more = with_interval(found.estimate, found.low, found.high, signed=True)
    what = f"fr: of the auto-encoded background {more} more is marked than of the pristine one in sp"
    return [f"{what}: the probe marks what went through an auto-encoder, not only what was generated"]


def _lines(scored: Scored, yardsticks: list[Yardstick]) -> Iterator[tuple[str, Yardstick, str]]:
    variants = list(dict.fromkeys(scored.frame["variant"]))
    for yardstick in yardsticks:
        own = yardstick.protocol.name == OWN_PROTOCOL
        for variant in variants:
            if variant in FAKE_VARIANTS:
                yield from ((variant, yardstick, metric) for metric in (_OWN_METRICS if own else (yardstick.headline,)))
            elif own:
                yield from ((variant, yardstick, metric) for metric in ("marked_share", "image_flagged"))


def _pairs(scored: Scored, store: MapStore, root: Path, own: Yardstick, max_pixels: int) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each fake whose photograph was scored too, at the same size."""
    photographs: dict[str, list[Any]] = {}
    for row in scored.frame[scored.frame["variant"] == AUTHENTIC].to_dict("records"):
        photographs.setdefault(row["source_id"], []).append(row)
    for fake in scored.frame[scored.frame["variant"].isin(FAKE_VARIANTS)].to_dict("records"):
        shape = fake["height"], fake["width"]
        same = (row for row in photographs.get(fake["source_id"], []) if (row["height"], row["width"]) == shape)
        if (photograph := next(same, None)) is not None:
            mask = regions_of(fake, root, max_pixels) == Provenance.INPAINTED
            before, after = (store.read(store.folder / row["map"]).original for row in (photograph, fake))
            yield {
                **{
                    name: fake[name] for name in ("path", "source_id", "variant", "generator", "mask_kind", "mask_size")
                },
                "inside": float(before[mask].mean()),
                "outside": float(before[~mask].mean()) if not mask.all() else float("nan"),
                "partner_iou": _iou(before, mask, own),
                "fake_iou": _iou(after, mask, own),
            }


def _iou(scores: NDArray[np.float32], mask: NDArray[np.bool_], own: Yardstick) -> float:
    marked = scores >= own.threshold if own.protocol.comparison == ">=" else scores > own.threshold
    return iou(count(marked, mask))


def _named(name: str, found: Interval | Any) -> dict[str, float]:
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
