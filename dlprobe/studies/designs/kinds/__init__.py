"""The kinds of study that come with dlprobe; importing this package registers them."""

from dlprobe.studies.designs.kinds import comparing, robustness, scale, transfer

__all__ = ["comparing", "robustness", "scale", "transfer"]
