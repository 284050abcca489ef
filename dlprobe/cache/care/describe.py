"""What a cache holds, in a flat record for people and programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import LOCKS
from dlprobe.cache.reader import FeatureCache

if TYPE_CHECKING:
    import os


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return identity, geometry, completeness, size and rejects of a cache, without reading embeddings.

    Parameters
    ----------
    path : path
        Folder of the cache.

    Returns
    -------
    dict
        JSON values, flat; ``files_per_gb`` counts 1e9 bytes.

    Raises
    ------
    CacheError
        If there is no cache, or its metadata are damaged.
    """
    cache = FeatureCache(path)
    spec, model = cache.cache_spec, cache.model_spec
    sizes = [size for name, size in cache.place.sizes().items() if not name.startswith(f"{LOCKS}/")]
    missing, rejects = cache.missing_blocks, cache.rejects
    _, rows, cols, width = cache.shape
    return {
        "path": str(cache.path),
        "backbone": model.backbone,
        "model_fingerprint": model.fingerprint,
        "cache_fingerprint": spec.fingerprint,
        "images": len(cache.manifest),
        "windows": len(cache),
        "window_px": model.window_px,
        "grid": f"{rows}x{cols}",
        "width": width,
        "dtype": spec.dtype,
        "cls": spec.cls,
        "tiling": f"{spec.tiling}, stride {spec.stride_px} px",
        "views": spec.views,
        "blocks": cache.n_blocks,
        "block_windows": spec.block_windows,
        "missing_blocks": len(missing),
        "complete": not missing,
        "rejected_windows": len({window for reject in rejects for window in reject.windows}),
        "rejected_images": len({reject.path for reject in rejects}),
        "bytes": sum(sizes),
        "files": len(sizes),
        "files_per_gb": round(len(sizes) / (sum(sizes) / 1e9), 1),
        "pins": ", ".join(f"{name} {value}" for name, value in sorted(asdict(cache.pins).items())),
        "software": ", ".join(f"{name} {value}" for name, value in sorted(cache.software.items())),
    }
