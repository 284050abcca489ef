"""Studies: a small TOML file asks, cells keyed by what determines them are computed once, and a page answers."""

from dlprobe.studies.designs import kinds
from dlprobe.studies.designs.base import STUDIES, Findings, StudyKind
from dlprobe.studies.designs.definition import BackboneSource, DataSource, Extraction, Question, Study, read_study
from dlprobe.studies.designs.running import StudyResult, read_study_result, ready_studies, run_study

__all__ = [
    "STUDIES",
    "BackboneSource",
    "DataSource",
    "Extraction",
    "Findings",
    "Question",
    "Study",
    "StudyKind",
    "StudyResult",
    "kinds",
    "read_study",
    "read_study_result",
    "ready_studies",
    "run_study",
]
