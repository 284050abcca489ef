"""Families of real, auto-encoded, spliced and regenerated images: of the demo, and of a user's photographs."""

from dlprobe.data.synthesis.demo import build_demo
from dlprobe.data.synthesis.families import HELD_OUT_GENERATORS
from dlprobe.data.synthesis.generator import SynthesisReport, SynthesisSettings, synthesize

__all__ = ["HELD_OUT_GENERATORS", "SynthesisReport", "SynthesisSettings", "build_demo", "synthesize"]
