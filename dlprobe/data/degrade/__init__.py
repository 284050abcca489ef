"""Degradations: what happens to an image between its making and its examination, named, seeded and composable.

One implementation serves training views (`view_sample`) and the evaluation of robustness (`Preset.levels`, `degrade`).
Other packages announce degradations and presets under the entry-point groups ``dlprobe.degradations`` and
``dlprobe.degrade_presets``.
"""

from dlprobe.data.degrade import mixes as _mixes  # registers the presets
from dlprobe.data.degrade.base import DEGRADATIONS, Degradation
from dlprobe.data.degrade.chain import Chain, degrade, derive_seed
from dlprobe.data.degrade.compression import DoubleJpeg, Jpeg, Webp
from dlprobe.data.degrade.geometry import Crop, CutOut, Limit, Resize
from dlprobe.data.degrade.photometric import Blur, ColourJitter, Gamma, Noise
from dlprobe.data.degrade.presets import PRESETS, Level, Preset, Stage, find_preset, view_sample

del _mixes

__all__ = [
    "DEGRADATIONS",
    "PRESETS",
    "Blur",
    "Chain",
    "ColourJitter",
    "Crop",
    "CutOut",
    "Degradation",
    "DoubleJpeg",
    "Gamma",
    "Jpeg",
    "Level",
    "Limit",
    "Noise",
    "Preset",
    "Resize",
    "Stage",
    "Webp",
    "degrade",
    "derive_seed",
    "find_preset",
    "view_sample",
]
