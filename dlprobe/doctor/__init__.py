"""What this machine has, what it can do, and what to do about what is wrong."""

from dlprobe.doctor.examining import examine
from dlprobe.doctor.findings import Finding

__all__ = ["Finding", "examine"]
