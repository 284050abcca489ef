"""Images, masks and manifests: what is looked at, and what is true of it."""

from dlprobe.data.labels import SCHEMES, LabelScheme, label_patches, patch_coverage
from dlprobe.data.manifest import Manifest
from dlprobe.data.provenance import Provenance, Variant, region_map
from dlprobe.data.scan import ScanResult, scan
from dlprobe.data.tiling import Box, tile, working_size

__all__ = [
    "SCHEMES",
    "Box",
    "LabelScheme",
    "Manifest",
    "Provenance",
    "ScanResult",
    "Variant",
    "label_patches",
    "patch_coverage",
    "region_map",
    "scan",
    "tile",
    "working_size",
]
