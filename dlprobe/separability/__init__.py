"""How separable pristine, auto-encoded and inpainted patches are in the embeddings of a backbone, and why."""

from dlprobe.separability.maps import PatchMap
from dlprobe.separability.results import Separability
from dlprobe.separability.running import SeparabilitySettings, separate

__all__ = ["PatchMap", "Separability", "SeparabilitySettings", "separate"]
