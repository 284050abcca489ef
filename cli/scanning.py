"""The command that reads a data set: counts on stdout, what is wrong with it on stderr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import JsonOpt, MaxPixelsOpt, pixel_limit
from .output import Row, emit
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.data.layouts import Finding, Reject
    from dlprobe.data.scan import ScanResult

#: Rejects of one fault that are shown; --json gives all.
SHOWN_REJECTS = 10
_COLOURS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW, "info": None}


def scan(
    root: Annotated[Path, typer.Argument(help="Folder of the data set, or a table for the layouts that read one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write: .parquet, or .csv inside ROOT.")],
    layout: Annotated[str, typer.Option("--layout", help="How the data set lies on disk.")] = "csv",
    variant: Annotated[str, typer.Option("--variant", help="Variant of the fakes, where the layout asks.")] = "",
    dataset: Annotated[str, typer.Option("--dataset", help="Name of the data set where it has none.")] = "",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Option of the layout, as NAME=VALUE; may be repeated.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", help="Images whose pixels are checked: a number (300), 'all', or 0.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses that sample.")] = 0,
    max_pixels: MaxPixelsOpt = None,
    mask_inverted: Annotated[bool, typer.Option("--mask-inverted", help="Black is generated, in every mask.")] = False,
    mask_resize: Annotated[
        bool, typer.Option("--mask-resize", help="Bring masks of another size to their image's, by nearest neighbour.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML file with the findings and pictures of their images.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a finding is an error or a warning.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Read a data set's layout, look for faults, and write the manifest."""
    from dlprobe.data import scan as run
    from dlprobe.data.manifest import require_target, table_root

    settings: dict[str, object] = {"seed": seed, **pixel_limit(max_pixels)}
    settings |= {"mask_inverted": mask_inverted, "mask_resize": mask_resize}
    if sample is not None:
        settings["sample"] = _sample(sample)
    shorthands = {"variant": variant, "dataset": dataset}
    options = _layout_options(option or (), shorthands, reserved=tuple(signature(run).parameters))
    if root.exists():  # said before the work, not after it
        require_target(out, table_root(root))
    expect_damage()
    with progress_bar("scan", "images") as progress:
        result = run(root, layout, progress=progress, **settings, **options)
    result.manifest.write(out)
    if report is not None:
        from dlprobe.reports import write_scan_report

        talk(f"report: {write_scan_report(result, report, **pixel_limit(max_pixels))}")
    if as_json:
        emit(_lines(result), as_json=True)
    else:
        emit(result.counts.to_dict("records"), as_json=False)
        _tell(result)
    n = len(result.errors)
    errors = f", {n} of them {'an error' if n == 1 else 'errors'}" if n else ""
    counts = f"{len(result.rejects)} rejected, {len(result.findings)} findings{errors}"
    talk(f"{len(result.manifest)} images in {out}, {counts}")
    if result.rejects or (strict and result.faults):
        raise typer.Exit(EXIT_REJECTS)


def _lines(result: ScanResult) -> Iterator[Row]:
    yield from ({"kind": "count", **row} for row in result.counts.to_dict("records"))
    for finding in result.findings:
        yield {"kind": "finding", **asdict(finding), "examples": list(finding.examples)}
    yield from ({"kind": "reject", **reject._asdict()} for reject in result.rejects)
    yield {"kind": "accounting", **result.accounting, "ignored_reasons": result.ignored_reasons}


def _tell(result: ScanResult) -> None:
    for finding in result.findings:
        talk(_described(finding), colour=_COLOURS[finding.severity])
    for line in _reject_lines(result.rejects):
        talk(line)
    talk(_accounts(result))


def _described(finding: Finding) -> str:
    line = f"{finding.severity}: {finding.name} ({finding.count}): {finding.detail}"
    return f"{line}; such as {', '.join(finding.examples)}" if finding.examples else line


def _reject_lines(rejects: Sequence[Reject]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for reject in rejects:
        seen[reject.fault] += 1
        if seen[reject.fault] <= SHOWN_REJECTS:
            yield f"rejected: {reject.fault}: {reject.path}: {reject.reason}"
    for fault, count in seen.items():
        if count > SHOWN_REJECTS:
            yield f"rejected: {fault}: and {count - SHOWN_REJECTS} more; --json lists all"


def _accounts(result: ScanResult) -> str:
    """Return the sum that shows that nothing was dropped."""
    of = result.accounting
    given = f"{of['files']} files in" + (f" + {of['listed']} listed, not below the root" if of["listed"] else "")
    reasons = ", ".join(f"{reason} {count}" for reason, count in result.ignored_reasons.items())
    ignored = f"{of['ignored']} ignored" + (f" ({reasons})" if reasons else "")
    return f"{given} = {of['records']} records + {of['rejects']} rejects + {ignored}"


def _sample(text: str) -> int | None:
    from dlprobe.errors import DataError

    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        msg = f"--sample {text!r} is no number of images; write such as 300, 'all', or 0 for none"
        raise DataError(msg)
    return int(text)


def _layout_options(given: Sequence[str], shorthands: dict[str, str], reserved: Sequence[str]) -> dict[str, str]:
    """Return a layout's options from NAME=VALUE, and from the flags that some of them have."""
    from dlprobe.errors import DataError

    options = {name: value for name, value in shorthands.items() if value}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            msg = f"--option {text!r} is no NAME=VALUE; write such as --option masks=plain"
            raise DataError(msg)
        if name in reserved:
            msg = f"--option {name} is no option of a layout; use what `dlprobe scan --help` calls it"
            raise DataError(msg)
        if name in options:
            msg = f"the layout's option {name} is given twice; give it once"
            raise DataError(msg)
        options[name] = value
    return options
