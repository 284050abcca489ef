"""Families of real, auto-encoded, spliced and regenerated images of the user's own photographs."""

from dlprobe.data.synthesis.generator.backends import BACKENDS, Made, Synthesizer, open_backend
from dlprobe.data.synthesis.generator.settings import LADDER, MASK_KINDS, SynthesisSettings
from dlprobe.data.synthesis.generator.writing import SynthesisReport, synthesize

__all__ = [
    "BACKENDS",
    "LADDER",
    "MASK_KINDS",
    "Made",
    "SynthesisReport",
    "SynthesisSettings",
    "Synthesizer",
    "open_backend",
    "synthesize",
]
