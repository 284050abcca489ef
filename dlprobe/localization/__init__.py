"""From an image and a probe to a mask."""

from dlprobe.localization.outputs import Localization, load_probe, localize, localize_files, overlay
from dlprobe.localization.planes import Scratch
from dlprobe.localization.postprocess import PostProcessing, masks_by_step
from dlprobe.localization.settings import Adaptive, SlidingSettings
from dlprobe.localization.sliding import ScoreMap, require_workable, score_map, score_maps

__all__ = [
    "Adaptive",
    "Localization",
    "PostProcessing",
    "ScoreMap",
    "Scratch",
    "SlidingSettings",
    "load_probe",
    "localize",
    "localize_files",
    "masks_by_step",
    "overlay",
    "require_workable",
    "score_map",
    "score_maps",
]
