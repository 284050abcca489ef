"""Linear probes on cached patch embeddings, to tell whether and where an image was inpainted.

The package is a set of layers; ``docs/architecture.md`` names them. Importing it has no effects and loads no torch.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dlprobe")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
