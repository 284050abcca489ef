"""From an image and a probe to a mask."""

from dlprobe.localization.outputs import Localization, localize, localize_files, overlay
from dlprobe.localization.sliding import ScoreMap, score_map

__all__ = ["Localization", "ScoreMap", "localize", "localize_files", "overlay", "score_map"]
