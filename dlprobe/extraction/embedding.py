"""From the decoded images of a block to the arrays that are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.cache.records import Reject
from dlprobe.cache.stores.codecs import dequantise, quantise, to_float
from dlprobe.data.labels import FULL, patch_coverage
from dlprobe.data.provenance import COVERAGE_CLASSES, Provenance
from dlprobe.errors import BackboneError
from dlprobe.extraction.decoding import Unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache.layout import Layout
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.decoding import Decoded
    from dlprobe.spec import ModelSpec

_VOID_CLASS = COVERAGE_CLASSES.index(Provenance.VOID)


@dataclass(frozen=True, slots=True, eq=False)
class BlockContent:
    """What is stored of a block: chunks by array, hashes of image files by path, and void windows."""

    arrays: dict[str, NDArray[Any]]
    images: dict[str, str]
    rejects: tuple[Reject, ...]


def compute_block(backbone: Backbone, manifest: Manifest, layout: Layout, block: int, decoded: Decoded) -> BlockContent:
    """Embed the windows of a block.

    Batches never reach across blocks, so that a block's bytes do not depend on what was computed before it.

    Parameters
    ----------
    backbone : Backbone
        Embeds; ``pins.batch_size`` windows at a time.
    manifest : Manifest
        Names the images.
    layout : Layout
        Of the cache.
    block : int
        Number of the block.
    decoded : list
        Its images, as `dlprobe.extraction.decoding.decoded_ahead` gives them.

    Raises
    ------
    CacheError
        If a value is too large for the storage type.
    BackboneError
        If the backbone returns another shape than its identity says.
    """
    start, stop = layout.block_range(block)
    arrays = {name: np.zeros(layout.arrays()[name].chunk, layout.arrays()[name].dtype) for name in layout.block_arrays}
    arrays["regions"][: stop - start] = Provenance.VOID
    paths = manifest.frame["path"]
    pixels: dict[int, NDArray[np.uint8]] = {}
    images: dict[str, str] = {}
    rejects: list[Reject] = []
    for part, found in decoded:
        path = str(paths.iloc[part.image])
        if isinstance(found, Unreadable):
            rejects.append(Reject(path, found.reason, tuple((start + part.positions).tolist())))
            continue
        images[path] = found.sha256
        arrays["regions"][part.positions] = found.regions
        pixels.update(zip(part.positions.tolist(), found.pixels, strict=True))
    names = {position: str(paths.iloc[part.image]) for part, _ in decoded for position in part.positions.tolist()}
    for position in _embed(backbone, pixels, names, arrays):
        arrays["regions"][position] = Provenance.VOID
        reason = f"{backbone.spec.backbone} gives values that are not finite for this window"
        rejects.append(Reject(names[position], reason, (start + position,)))
    void = [window - start for reject in rejects for window in reject.windows]
    arrays["coverage"][: stop - start] = patch_coverage(arrays["regions"][: stop - start], layout.spec.model.patch_px)
    arrays["moments"][:] = moments(arrays["embeddings"], arrays.get("scale"))
    arrays["coverage"][void] = 0
    arrays["coverage"][void, ..., _VOID_CLASS] = FULL
    return BlockContent(arrays, images, tuple(rejects))


def reference_embedding(backbone: Backbone) -> NDArray[np.float32]:
    """Return the embedding of one fixed random window, shape (rows, cols, width), to notice drift between machines.

    The window's bytes are SHAKE-256 of a constant: the same for every release of every library.
    """
    import hashlib

    side = backbone.spec.window_px
    noise = bytearray(hashlib.shake_256(b"dlprobe reference window").digest(side * side * 3))  # torch wants it writable
    embedded: NDArray[np.float32] = run_backbone(backbone, np.frombuffer(noise, np.uint8).reshape(1, side, side, 3))[0]
    return embedded


def run_backbone(backbone: Backbone, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embed a batch; raise `BackboneError` if the result has another shape than the backbone's identity says."""
    tokens: NDArray[np.float32] = backbone(windows).detach().to("cpu").float().numpy()
    expected = (len(windows), *_grid(backbone.spec))
    if tokens.shape != expected:
        msg = (
            f"{backbone.spec.backbone} returns shape {tokens.shape}, its identity says {expected}; correct one of them"
        )
        raise BackboneError(msg)
    return tokens


def moments(embeddings: NDArray[Any], scale: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return sums and sums of squares over each window's patches, accumulated in float64.

    Parameters
    ----------
    embeddings : ndarray, shape (n, rows, cols, width)
        As stored.
    scale : ndarray of float32, shape (n, width), optional
        Of embeddings stored in int8.

    Returns
    -------
    ndarray of float32, shape (n, 2, width)
    """
    out = np.empty((len(embeddings), 2, embeddings.shape[-1]), np.float32)
    for window, tokens in enumerate(embeddings):
        floats = tokens if scale is None else dequantise(tokens[None], scale[window : window + 1])[0]
        values = floats.reshape(-1, tokens.shape[-1]).astype(np.float64)
        out[window] = values.sum(axis=0), np.einsum("pf,pf->f", values, values)
    return out


def _embed(
    backbone: Backbone, pixels: dict[int, NDArray[np.uint8]], names: dict[int, str], arrays: dict[str, NDArray[Any]]
) -> list[int]:
    """Fill the embeddings and return the positions of windows with values that are not finite, left zero."""
    positions = sorted(pixels)
    refused: list[int] = []
    size, out = backbone.pins.batch_size, arrays["embeddings"]
    for batch in (positions[i : i + size] for i in range(0, len(positions), size)):
        tokens = run_backbone(backbone, np.stack([pixels[position] for position in batch]))
        for position, values in zip(batch, tokens, strict=True):
            if not np.isfinite(values).all():
                refused.append(position)
            elif "scale" in arrays:
                out[position], arrays["scale"][position] = quantise(values)
            else:
                out[position] = to_float(values, out.dtype, names[position])
    return refused


def _grid(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.grid, spec.grid, spec.width
