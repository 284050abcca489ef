"""The cache: patch embeddings of every window of a manifest, computed once and kept with their coverage."""

from dlprobe.cache.care.describe import describe
from dlprobe.cache.care.verify import Damage, verify
from dlprobe.cache.locks import Shard
from dlprobe.cache.reader import Block, FeatureCache, open_cache
from dlprobe.cache.records import Reject
from dlprobe.cache.writer import CachePlan, CacheWriter, open_writer

__all__ = [
    "Block",
    "CachePlan",
    "CacheWriter",
    "Damage",
    "FeatureCache",
    "Reject",
    "Shard",
    "describe",
    "open_cache",
    "open_writer",
    "verify",
]
