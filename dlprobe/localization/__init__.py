"""From an image and a probe to a mask."""

from dlprobe.localization.outputs import Localization, localize, overlay
from dlprobe.localization.sliding import ScoreMap, score_map

__all__ = ["Localization", "ScoreMap", "localize", "overlay", "score_map"]
