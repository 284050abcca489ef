"""Apply many heads to windows: choose them on validation sources, score the chosen ones on tested sources."""

from dlprobe.studies.fitting.scoring.columns import HALF, LOGIT_LIMIT, Column, Stack, inpainted_logit
from dlprobe.studies.fitting.scoring.images import FLAGGED_SHARE, score_images
from dlprobe.studies.fitting.scoring.tallies import EVERYTHING, Calibration, Pooled
from dlprobe.studies.fitting.scoring.validation import Verdict, temperatures, validate
from dlprobe.studies.fitting.scoring.windows import (
    WindowsOfImage,
    WindowSource,
    clean,
    images_of,
    require_numbers,
)

__all__ = [
    "EVERYTHING",
    "FLAGGED_SHARE",
    "HALF",
    "LOGIT_LIMIT",
    "Calibration",
    "Column",
    "Pooled",
    "Stack",
    "Verdict",
    "WindowSource",
    "WindowsOfImage",
    "clean",
    "images_of",
    "inpainted_logit",
    "require_numbers",
    "score_images",
    "temperatures",
    "validate",
]
