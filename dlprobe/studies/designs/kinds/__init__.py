"""The kinds of study that come with dlprobe; importing this package registers them."""

from dlprobe.studies.designs.kinds import adaptation, comparing, localization, robustness, scale, transfer

__all__ = ["adaptation", "comparing", "localization", "robustness", "scale", "transfer"]
