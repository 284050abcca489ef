"""Offline data: families of real, auto-encoded, spliced and regenerated images."""

from dlprobe.data.synthesis.demo import build_demo
from dlprobe.data.synthesis.families import HELD_OUT_GENERATORS

__all__ = ["HELD_OUT_GENERATORS", "build_demo"]
