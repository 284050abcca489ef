"""What the examinations of a sample add up to: faults of masks, polarity, and variants that the pixels contradict.

Examples are the worst ones where there is a measure of bad.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from dlprobe.data.audit.examine import LOSSY_SUFFIXES
from dlprobe.data.images import INVERTED, MASK_THRESHOLD
from dlprobe.data.layouts.base import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dlprobe.data.audit.examine import Examination
    from dlprobe.data.layouts.base import Guess, Severity

#: A mask is inverted if black differs from the photograph this many times as much as white, in the mean.
INVERTED_RATIO = 2.0
#: Differences below this many grey levels say nothing of polarity.
LEAST_DIFFERENCE = 1.0
#: From here on a difference is one of content. Compression and an auto-encoder's round trip stay below it, so that a
#: small change in a smooth place does not make a right mask look inverted.
CONTENT_DIFFERENCE = 20.0
#: Variants whose background is the photograph's own: in a lossless file, black that changed at all is wrong.
_KEPT_BACKGROUND = frozenset({"sp", "aesp"})
#: Without a partner, masks whose white covers more than this are suspected.
SUSPECT_SHARE = 0.5
_POLARITY = "look whether white is what was generated, and scan with or without --mask-inverted"
#: White outside these shares leaves nothing to compare.
_FULL = 0.995
#: What the background of each variant has to look like.
_EXPECTED = {"sp": "sp", "aesp": "sp", "fr": "fr", "ae": "fr"}
_INVERT = "if all are so, scan with --mask-inverted; if some, write inverted into the table's column mask_reading"
_TURN_BACK = "scan without --mask-inverted, or correct the table's column mask_reading"
_FAULTS = {
    "unreadable": "images that open but do not decode to their end",
    "mask-unreadable": "masks that do not decode",
    "mask-size": "masks of another size than their image",
    "mask-transposed": "masks with the two sides of their image exchanged",
}


def mask_findings(examined: Sequence[Examination]) -> Iterator[Finding]:
    """Yield what is wrong with the sampled masks and images.

    Parameters
    ----------
    examined : sequence of Examination
        The sample.

    Yields
    ------
    Finding
        ``unreadable``, ``mask-unreadable``, ``mask-size``, ``mask-transposed``, ``mask-levels``, ``mask-dark``,
        ``mask-empty``, ``mask-full``, ``mask-inverted`` and ``mask-mostly-white``.
    """
    for fault, detail in _FAULTS.items():
        yield from _finding(fault, detail, "error", len(examined), [e for e in examined if e.fault == fault])
    masked = [e for e in examined if e.subject.mask and not e.fault]
    soft = [e for e in masked if e.levels > 2 and not e.subject.mask_kind.endswith("-soft")]
    soft.sort(key=lambda e: -e.levels)
    contrary = sorted((e for e in masked if polarity(e) < 0), key=lambda e: e.inside - e.outside)
    inverted = [e for e in contrary if INVERTED not in e.subject.mask_reading]
    upright = [e for e in contrary if INVERTED in e.subject.mask_reading]
    for name, detail, severity, wrong in (
        ("mask-levels", "masks with more than two grey levels, of which those above 127 count", "warning", soft),
        ("mask-dark", "masks not black but nowhere above 127: write 255", "error", [e for e in masked if _dark(e)]),
        ("mask-empty", "masks that mark nothing", "error", [e for e in masked if not e.white_share and not _dark(e)]),
        ("mask-full", "masks that leave no background", "warning", [e for e in masked if e.white_share > _FULL]),
        ("mask-inverted", f"masks whose black was changed and whose white was kept ({_INVERT})", "error", inverted),
        ("mask-inverted", f"masks read as inverted, whose white was changed ({_TURN_BACK})", "error", upright),
    ):
        yield from _finding(name, detail, severity, len(masked), wrong)
    yield from _mostly_white(masked)


def variant_findings(examined: Sequence[Examination]) -> Iterator[Finding]:
    """Yield ``variant-contradicted`` for each group of images whose background is not what its variant says."""
    groups: dict[tuple[str, str, str], list[Examination]] = {}
    for e in examined:
        if e.verdict and e.verdict.kind and e.subject.variant in _EXPECTED and polarity(e) >= 0:
            groups.setdefault((e.subject.dataset, e.subject.generator, e.subject.variant), []).append(e)
    for (_, generator, variant), group in sorted(groups.items()):
        wrong = [e for e in group if e.verdict and e.verdict.kind != _EXPECTED[variant]]
        if wrong:
            found = wrong[0].verdict.kind if wrong[0].verdict else ""
            said = f"the background is that of {found} in {len(wrong)} of {len(group)}"
            detail = f"declared {variant}{_by(generator)}, but {said}"
            wrong.sort(key=lambda e: -abs(e.verdict.kept - 0.5) if e.verdict else 0.0)
            paths = tuple(e.subject.path for e in wrong[:5])
            yield Finding("variant-contradicted", detail, len(wrong), "error", paths)


def settle(guess: Guess, examined: Sequence[Examination]) -> Finding:
    """Return what the sample says of something that a layout could only guess."""
    of_guess = [e for e in examined if not e.fault and guess.generator in {"", e.subject.generator} and e.partner]
    of_guess = [e for e in of_guess if e.subject.variant in _EXPECTED]
    if guess.check == "polarity":
        signs = Counter(polarity(e) for e in of_guess if e.subject.mask)
        good, bad, rest = signs[1], signs[-1], signs[0]
    else:
        kinds = [(e.verdict.kind, _EXPECTED[e.subject.variant]) for e in of_guess if e.verdict]
        good = sum(kind == expected for kind, expected in kinds)
        rest = sum(not kind for kind, _ in kinds)
        bad = len(kinds) - good - rest
    total = good + bad + rest
    if not total:
        return Finding("guess", f"{guess.fact}; no sampled image has a partner to check it on", 0, "info")
    detail = f"{guess.fact}; the pixels agree in {good}, disagree in {bad} and say nothing in {rest} of {total}"
    return Finding("guess", detail, total, "warning" if bad > good else "info")


def polarity(e: Examination) -> int:
    """Return 1 where white is what was changed, -1 where it is what was kept, 0 where that cannot be told."""
    if not e.partner or not 0 < e.white_share < 1 or max(e.inside, e.outside) < LEAST_DIFFERENCE:
        return 0
    if e.outside > INVERTED_RATIO * e.inside:
        lossless = not e.subject.path.lower().endswith(LOSSY_SUFFIXES)
        return -int(e.outside >= CONTENT_DIFFERENCE or (lossless and e.subject.variant in _KEPT_BACKGROUND))
    return int(e.inside > INVERTED_RATIO * e.outside)


def _mostly_white(masked: Sequence[Examination]) -> Iterator[Finding]:
    """Suspect a group of masks without partners whose median white covers more than half."""
    groups: dict[tuple[str, str, str], list[Examination]] = {}
    for e in masked:
        if not e.partner and e.white_share > 0:
            groups.setdefault((e.subject.dataset, e.subject.generator, e.subject.mask_kind), []).append(e)
    for (_, generator, _), group in sorted(groups.items()):
        white = [e for e in group if e.white_share > SUSPECT_SHARE]
        if 2 * len(white) > len(group):
            detail = f"more than half is marked in {len(white)} of {len(group)} masks{_by(generator)}: {_POLARITY}"
            white.sort(key=lambda e: -e.white_share)
            yield Finding("mask-mostly-white", detail, len(white), "warning", tuple(e.subject.mask for e in white[:5]))


def _finding(name: str, detail: str, severity: str, of: int, wrong: Sequence[Examination]) -> Iterator[Finding]:
    if wrong:
        text = f"{detail}: {len(wrong)} of {of} looked at"
        paths = tuple(e.subject.path for e in wrong[:5])
        yield Finding(name, text, len(wrong), cast("Severity", severity), paths)


def _dark(e: Examination) -> bool:
    return 0 < e.brightest <= MASK_THRESHOLD


def _by(generator: str) -> str:
    return f" by {generator}" if generator else ""
