"""How a study is told: the line above it, sentences instead of rows, and what must be known to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe.cache import open_cache
from dlprobe.studies.results import with_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd

    from dlprobe.studies.runs import Run

#: Below this p after Holm a difference is called sure.
LEVEL = 0.05
#: Differences that get a sentence each.
_TOLD = 2
#: Weights of this kind were never trained.
_RANDOM = "random"
VARIANTS = {
    "real": "photographs as they are",
    "ae": "auto-encoded",
    "sp": "spliced: only the masked region is generated",
    "fr": "fully regenerated",
    "aesp": "auto-encoded in the masked region",
}
_METRICS = {
    "iou": "of IoU",
    "iou_val": "of IoU at the threshold of validation",
    "ap": "of average precision",
}
UNADJUSTED = (
    "Each interval is that of its row alone, unadjusted; p is adjusted by Holm over all differences that were planned, "
    "so that an interval can exclude 0 where p is not below 0.05. Sure means p below 0.05 after Holm."
)


def known_metric(metric: str) -> str:
    """Return a metric's name without the grid that it was taken on."""
    return metric.partition("@")[0]


def told_p(p: float) -> str:
    """Return a probability as papers print it: ``p .032``."""
    if p < 0.001:
        return "p < .001"
    return f"p {p:.3f}".replace("0.", ".", 1) if p < 0.1 else f"p {p:.2f}".replace("0.", ".", 1)


def how_sure(row: pd.Series) -> str:
    """Return on how many photographs a difference rests, and whether it is settled."""
    settled = "" if row["p_holm"] < LEVEL else ": not settled"
    return f"({row['n_sources']} photographs, {told_p(row['p_holm'])} after Holm{settled})"


def ahead(row: pd.Series) -> str:
    """Return a paired difference of a table as one sentence, told from the side that is above the other."""
    one, other = str(row["comparison"]).split(" - ", 1)
    ends = [float(row[name]) for name in ("difference", "low", "high")]
    if ends[0] < 0:
        one, other, ends = other, one, [-ends[0], -ends[2], -ends[1]]
    by = with_interval(*ends)
    metric = known_metric(str(row["metric"]))
    if metric in _METRICS:
        return f"On {row['kind']}, {one} is ahead of {other} by {by} {_METRICS[metric]} {how_sure(row)}."
    return f"On {row['kind']}, {one} marks {by} more of the authentic area than {other} {how_sure(row)}."


def tell(differences: pd.DataFrame, say: Callable[[pd.Series], str] = ahead) -> list[str]:
    """Return the differences of a table in a few sentences.

    Parameters
    ----------
    differences : DataFrame
        With columns ``comparison``, ``kind``, ``metric``, ``difference``, ``low``, ``high``, ``p_holm``, ``n_sources``.
    say : callable
        Returns the sentence of a row.

    Returns
    -------
    list of str
        The sure ones, the largest first; then the largest whose interval alone excludes 0; then where nothing is sure.
    """
    if differences.empty:
        return ["Nothing could be compared."]
    table = differences.loc[differences["difference"].abs().sort_values(ascending=False, kind="stable").index]
    sure = table[table["p_holm"] < LEVEL]
    open_ = table[(table["p_holm"] >= LEVEL) & ((table["low"] > 0) | (table["high"] < 0))]
    lines = [say(row) for _, row in sure.head(_TOLD).iterrows()]
    if len(sure) == _TOLD + 1:
        lines.append("One more difference is sure; the table has it.")
    elif len(sure) > _TOLD:
        lines.append(f"{len(sure) - _TOLD} more differences are sure; the table has them.")
    lines += [say(row) for _, row in open_.head(1).iterrows()]
    quiet = [kind for kind in dict.fromkeys(differences["kind"]) if kind not in set(sure["kind"])]
    quiet = [kind for kind in quiet if kind not in set(open_.head(1)["kind"])]
    if quiet:
        lines.append(f"No difference on {_listed(quiet)} is sure.")
    elif len(sure) < len(table):
        lines.append("No other difference is sure.")
    return lines


def lead(frames: Sequence[pd.DataFrame], of: str, backbones: Iterable[str], split: str) -> str:
    """Return what a study looked at in one line.

    Parameters
    ----------
    frames : sequence of DataFrame
        Of the manifest; and of that which is tested only, where there is one.
    of : str
        What kind of photographs: "demo " for those of the demo.
    backbones : iterable of str
        As they are shown.
    split : str
        Who trained, chose and was tested.
    """
    there = {str(name) for frame in frames for name in frame["variant"].unique()}
    words = [f"{name} = {VARIANTS[name]}" for name in VARIANTS if name in there]
    counts = [f"{len(frame)} images of {frame['source_id'].nunique()} {of}photographs" for frame in frames]
    images = ", tested on ".join(counts)
    return "; ".join([", ".join([images, *backbones]), *([split] if split else []), ", ".join(words)]) + "."


def banner(random: Iterable[str]) -> str:
    """Return what readers of scores of backbones with random weights must know first; nothing where there are none."""
    names = list(random)
    return f"{_listed(names, 'and')}: backbones with random weights, a floor, not a finding." if names else ""


def shown_name(name: str, weights: str) -> str:
    """Return the name of a backbone as people see it: with its weights where these were never trained."""
    return f"{name} ({weights})" if weights.startswith(_RANDOM) and weights not in name else name


def is_random(weights: str) -> bool:
    """Return whether weights were drawn and not trained."""
    return weights.startswith(_RANDOM)


def shown_models(run: Run) -> dict[str, str]:
    """Return the name of each model of a run as people see it."""
    return {
        name: shown_name(name, open_cache(model["caches"][0]["path"]).origin["weights"])
        for name, model in run.record["models"].items()
    }


def notes(run: Run, shown: Mapping[str, str] | None = None) -> list[str]:
    """Return what a run wants its readers to know, models named as they are shown; the split stands in the lead."""
    lines = [str(note) for note in run.record.get("notes", []) if ": split: " not in note]
    for name, other in (shown or {}).items():
        lines = [line.replace(f"{name}: ", f"{other}: ", 1) if line.startswith(f"{name}: ") else line for line in lines]
    return lines


def _listed(names: Iterable[str], word: str = "or") -> str:
    *first, last = names
    if any("," in name for name in (*first, last)):
        return "; ".join([*first, f"{word} {last}" if first else last])
    return f"{', '.join(first)} {word} {last}" if first else last
