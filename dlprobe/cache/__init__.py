"""The cache: patch embeddings of every window of a manifest, computed once and kept with their coverage."""

from dlprobe.cache.care.comparing import Difference, Parity, diff, parity
from dlprobe.cache.care.converting import convert
from dlprobe.cache.care.describe import describe
from dlprobe.cache.care.exporting import export
from dlprobe.cache.care.merging import merge
from dlprobe.cache.care.verify import Damage, verify
from dlprobe.cache.locks import Shard, unlock
from dlprobe.cache.reader import Block, FeatureCache, open_cache
from dlprobe.cache.records import Reject
from dlprobe.cache.writer import CachePlan, CacheWriter, open_writer

__all__ = [
    "Block",
    "CachePlan",
    "CacheWriter",
    "Damage",
    "Difference",
    "FeatureCache",
    "Parity",
    "Reject",
    "Shard",
    "convert",
    "describe",
    "diff",
    "export",
    "merge",
    "open_cache",
    "open_writer",
    "parity",
    "unlock",
    "verify",
]
