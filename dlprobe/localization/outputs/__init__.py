"""What is written for an image, and for many: files, a record and a table."""

from dlprobe.localization.outputs.inputs import RESULT_NAME
from dlprobe.localization.outputs.loading import load_probe
from dlprobe.localization.outputs.pictures import overlay
from dlprobe.localization.outputs.running import Localization, localize, localize_files
from dlprobe.localization.outputs.summary import SATURATED_AREA

__all__ = ["RESULT_NAME", "SATURATED_AREA", "Localization", "load_probe", "localize", "localize_files", "overlay"]
