"""Which report belongs to which folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.errors import OutputError
from dlprobe.reports.case import RESULT_NAME, write_case_report
from dlprobe.reports.evaluation import write_evaluation_report
from dlprobe.reports.fits import write_report
from dlprobe.reports.study import write_study_report
from dlprobe.studies.designs.running import FINDINGS_FOLDER, STUDY_NAME
from dlprobe.studies.evaluating import RECORD_NAME
from dlprobe.studies.runs import RUN_NAME

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


class _Kind(NamedTuple):
    """A file that tells what a folder is, that in words, who writes its report, and the options that it takes."""

    file: str
    words: str
    write: Callable[..., Path]
    options: tuple[str, ...] = ()


_KINDS = (
    _Kind(RESULT_NAME, "a localized image", write_case_report, ("probe",)),
    _Kind(RECORD_NAME, "an evaluation", write_evaluation_report),
    _Kind(f"{FINDINGS_FOLDER}/{STUDY_NAME}", "a study", write_study_report),
    _Kind(RUN_NAME, "a fit", write_report, ("separability", "images")),
)


def report_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    probe: str | os.PathLike[str] | None = None,
    separability: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of a fit, of an evaluation, of a study, or of an image that was localized.

    Parameters
    ----------
    folder : path
        What `dlprobe fit`, `dlprobe evaluate`, `dlprobe study run` or `dlprobe localize` (the folder of one image)
        wrote.
    out : path, optional
        File to write; ``report.html`` in the folder by default.
    probe : path, optional
        Of a localized image, for its card.
    separability, images : path, optional
        Of a fit; see `dlprobe.reports.write_report`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If the folder is none of these, or an option is given that does not belong to it.
    """
    place = Path(folder)
    kind = next((kind for kind in _KINDS if (place / kind.file).is_file()), None)
    if kind is None:
        msg = (
            f"{place} holds nothing to report on; give a folder that `dlprobe fit`, `evaluate`, `study run` or "
            "`localize` (the folder of one image) wrote"
        )
        raise OutputError(msg)
    asked = {"probe": probe, "separability": separability, "images": images}
    options = {name: value for name, value in asked.items() if value is not None}
    if strange := [f"--{name}" for name in options if name not in kind.options]:
        msg = f"{place} holds {kind.words}; leave out {' and '.join(strange)}"
        raise OutputError(msg)
    return kind.write(place, out, **options)
