"""Extraction: photographs in, a cache of patch embeddings out."""

from dlprobe.extraction.estimating import estimate
from dlprobe.extraction.planning import Plan, plan
from dlprobe.extraction.repairing import RepairReport, backbone_of, recheck, repair
from dlprobe.extraction.runners import LocalRunner, RayRunner
from dlprobe.extraction.running import ExtractionReport, extract

__all__ = [
    "ExtractionReport",
    "LocalRunner",
    "Plan",
    "RayRunner",
    "RepairReport",
    "backbone_of",
    "estimate",
    "extract",
    "plan",
    "recheck",
    "repair",
]
