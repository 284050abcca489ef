"""Photographs where they must not be: in several splits, in several data sets, in what a backbone was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe.data.layouts.base import Finding
from dlprobe.data.manifest import crossing_sources

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import pandas as pd

#: What is published of training sets, by the beginning of a source_id; other data sets' val photographs are not in it.
TRAINED_ON = {"bfree": ("coco:", "COCO train2017")}
_VALIDATION_ONLY = frozenset({"cocoglide"})


def source_findings(frame: pd.DataFrame, seen: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    """Yield what is wrong with the photographs of a manifest.

    Parameters
    ----------
    frame : DataFrame
        Of a manifest.
    seen : mapping of str to collection of str
        source_ids that another manifest, or a backbone's training, has seen, by its name.

    Yields
    ------
    Finding
        ``source-crosses-splits``, ``source-in-two-datasets``, ``source-seen`` and ``backbone-may-have-seen``.
    """
    if crossing := crossing_sources(frame):
        detail = f"{', '.join(crossing[:5])} and its donors stand in several splits"
        yield Finding("source-crosses-splits", detail, len(crossing), "error", tuple(crossing[:5]))
    yield from _shared(frame)
    sources = set(frame["source_id"])
    for name, known in seen.items():
        if both := sorted(sources.intersection(known)):
            detail = f"photographs that {name} holds too"
            yield Finding("source-seen", detail, len(both), "warning", tuple(both[:5]))
    for backbone, (prefix, what) in TRAINED_ON.items():
        ours = frame[~frame["dataset"].isin(_VALIDATION_ONLY) & frame["source_id"].str.startswith(prefix)]
        if len(ours):
            found = sorted(ours["source_id"].unique())
            detail = (
                f"photographs of COCO: a backbone with weights of {backbone} ({what}) may have been trained on them"
            )
            yield Finding("backbone-may-have-seen", detail, len(found), "info", tuple(found[:5]))


def _shared(frame: pd.DataFrame) -> Iterator[Finding]:
    """Tell of photographs in two data sets: no fault by itself, but held-out sets must know of it."""
    named = frame[frame["dataset"] != ""]
    counts = named.groupby("source_id")["dataset"].nunique()
    shared = sorted(counts[counts > 1].index)
    if shared:
        names = ", ".join(sorted(named[named["source_id"].isin(shared)]["dataset"].unique()))
        detail = f"photographs that several of the data sets {names} hold; do not train on one and test on another"
        yield Finding("source-in-two-datasets", detail, len(shared), "warning", tuple(shared[:5]))
