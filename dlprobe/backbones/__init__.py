"""Backbones: from windows of RGB bytes to patch embeddings, with an identity and a card."""

from dlprobe.backbones.base import Backbone, BackboneCard, require_divides
from dlprobe.backbones.catalogue import BackboneListing, list_backbones
from dlprobe.backbones.loading import SOURCES, load_backbone, read_dinolizer_head

__all__ = [
    "SOURCES",
    "Backbone",
    "BackboneCard",
    "BackboneListing",
    "list_backbones",
    "load_backbone",
    "read_dinolizer_head",
    "require_divides",
]
