"""The one-pass trainer: all heads are columns of one matrix product. Importing it loads torch."""

from dlprobe.probes.moments import GroupMoments
from dlprobe.probes.multihead.batches import HeadBatch, poisson_weights
from dlprobe.probes.multihead.ledger import FittedHead
from dlprobe.probes.multihead.trainer import fit_heads

__all__ = ["FittedHead", "GroupMoments", "HeadBatch", "fit_heads", "poisson_weights"]
