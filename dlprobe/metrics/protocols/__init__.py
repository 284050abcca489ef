"""Named ways to score a map, side by side: each is a record of its conventions and two functions."""

from dlprobe.metrics.protocols import default, published, ring
from dlprobe.metrics.protocols.base import PROTOCOLS, Protocol, register
from dlprobe.metrics.protocols.evaluation import aggregate, aggregate_intervals, evaluate_map

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "aggregate",
    "aggregate_intervals",
    "default",
    "evaluate_map",
    "published",
    "register",
    "ring",
]
