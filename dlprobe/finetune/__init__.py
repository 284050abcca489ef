"""Adaptation: the same windows, labels and objective as for probes, with the backbone free to move.

Training itself, `dlprobe.finetune.training.train`, loads torch.
"""

from dlprobe.finetune.settings import MODES, FinetuneSettings
from dlprobe.finetune.windows import LiveWindows

__all__ = ["MODES", "FinetuneSettings", "LiveWindows"]
