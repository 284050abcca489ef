"""From an image and a probe to a mask."""

from dlprobe.localization.outputs import Localization, localize, localize_files, overlay
from dlprobe.localization.planes import Scratch
from dlprobe.localization.settings import Adaptive, SlidingSettings
from dlprobe.localization.sliding import ScoreMap, score_map, score_maps

__all__ = [
    "Adaptive",
    "Localization",
    "ScoreMap",
    "Scratch",
    "SlidingSettings",
    "localize",
    "localize_files",
    "overlay",
    "score_map",
    "score_maps",
]
