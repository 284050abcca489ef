"""From the decoded images of a block to the arrays that are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.backbones.base import GivesClassTokens, no_class_token
from dlprobe.cache.records import Reject
from dlprobe.cache.stores.codecs import STEPS, dequantise
from dlprobe.data.labels import FULL
from dlprobe.data.provenance import COVERAGE_CLASSES, Provenance
from dlprobe.errors import BackboneError, CacheError
from dlprobe.extraction.decoding import Unreadable

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache.buffers import Buffers
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


def compute_block(
    backbone: Backbone, manifest: Manifest, layout: Layout, block: int, decoded: Decoded, *, memory: Buffers
) -> BlockContent:
    """Embed the windows of a block; everything but the moments, which `with_moments` adds in another thread.

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
    memory : Buffers
        Where the arrays of the block are taken from.

    Raises
    ------
    CacheError
        If a value is too large for the storage type.
    BackboneError
        If the backbone returns another shape than its identity says.
    """
    start, stop = layout.block_range(block)
    layouts = layout.arrays()
    arrays = {name: memory.take(layouts[name].chunk, layouts[name].dtype) for name in layout.block_arrays}
    for array in arrays.values():
        array.fill(0)
    _make_void(arrays, slice(stop - start))
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
        arrays["regions"][part.positions], arrays["coverage"][part.positions] = found.regions, found.coverage
        pixels.update(zip(part.positions.tolist(), found.pixels, strict=True))
    names = {position: str(paths.iloc[part.image]) for part, _ in decoded for position in part.positions.tolist()}
    for position in _embed(backbone, pixels, names, arrays):
        _make_void(arrays, position)
        reason = f"{backbone.spec.backbone} gives values that are not finite for this window"
        rejects.append(Reject(names[position], reason, (start + position,)))
    return BlockContent(arrays, images, tuple(rejects))


def with_moments(content: BlockContent) -> BlockContent:
    """Return the content of a block, its moments filled in."""
    arrays = content.arrays
    arrays["moments"][:] = moments(arrays["embeddings"], arrays.get("scale"))
    return content


def _make_void(arrays: dict[str, NDArray[Any]], windows: int | slice) -> None:
    arrays["regions"][windows] = Provenance.VOID
    arrays["coverage"][windows] = 0
    arrays["coverage"][windows, ..., _VOID_CLASS] = FULL


def reference_embedding(backbone: Backbone, *, cls: bool = False) -> NDArray[np.float32]:
    """Return the embedding of one fixed random window, shape (rows, cols, width), to notice drift between machines.

    The window's bytes are SHAKE-256 of a constant: the same for every release of every library. With `cls`, raise
    `BackboneError` if the backbone gives no CLS token.
    """
    import hashlib

    side = backbone.spec.window_px
    noise = bytearray(hashlib.shake_256(b"dlprobe reference window").digest(side * side * 3))  # torch wants it writable
    embedded, _ = run_backbone(backbone, np.frombuffer(noise, np.uint8).reshape(1, side, side, 3), cls=cls)
    first: NDArray[np.float32] = embedded[0]
    return first


def run_backbone(
    backbone: Backbone, windows: NDArray[np.uint8], *, cls: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Embed a batch, and return the CLS tokens beside it if they are asked for.

    Raises
    ------
    BackboneError
        If the result has another shape than the backbone's identity says, or there are no CLS tokens.
    """
    tokens, summary = _tokens(backbone, windows, cls=cls)
    return tokens.to("cpu").numpy(), None if summary is None else summary.to("cpu").numpy()


def encode(tokens: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Turn embeddings into what is stored, on the device where they are.

    Parameters
    ----------
    tokens : tensor of float32, shape (n, rows, cols, width)
        Embeddings.
    dtype : {"float32", "float16", "int8"}
        Storage type; floats are rounded to nearest even.

    Returns
    -------
    stored : tensor, shape (n, rows, cols, width)
        int8 codes are steps of the scale, in -127..127.
    scale : tensor of float32, shape (n, width), or None
        Of int8: the largest magnitude over a window's patches in 127 steps; zero where that is zero.
    peak : tensor of float32, shape (n, width)
        Largest magnitude over a window's patches; NaN where one of them is.
    """
    peak = tokens.abs().amax(dim=(1, 2))
    if dtype == "float32":
        return tokens, None, peak
    if dtype == "float16":
        return tokens.half(), None, peak
    scale = peak / STEPS
    steps = tokens / scale.masked_fill(scale == 0, 1.0)[:, None, None, :]
    return steps.round().clamp(-STEPS, STEPS).char(), scale, peak


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
    size, dtype = backbone.pins.batch_size, arrays["embeddings"].dtype
    for batch in (positions[i : i + size] for i in range(0, len(positions), size)):
        tokens, cls = _tokens(backbone, np.stack([pixels[position] for position in batch]), cls="cls" in arrays)
        stored, scale, peak = encode(tokens, dtype.name)
        peaks = (peak if cls is None else peak.maximum(cls.abs())).to("cpu").numpy()
        sound = np.isfinite(peaks).all(axis=1)
        refused.extend(np.array(batch)[~sound].tolist())
        kept = np.array(batch)[sound]
        _require_fits(peaks[sound], dtype, [names[position] for position in kept])
        arrays["embeddings"][kept] = stored.to("cpu").numpy()[sound]
        if scale is not None:
            arrays["scale"][kept] = scale.to("cpu").numpy()[sound]
        if cls is not None:
            arrays["cls"][kept] = cls.to("cpu").numpy()[sound]
    return refused


def _require_fits(peaks: NDArray[np.float32], dtype: np.dtype[Any], names: list[str]) -> None:
    if dtype != np.float16:
        return
    with np.errstate(over="ignore"):
        too_large = np.isinf(peaks.astype(np.float16))
    for window, channel in np.argwhere(too_large).tolist()[:1]:
        msg = (
            f"channel {channel} reaches {peaks[window, channel]:.4g} in {names[window]}, too large for {dtype.name}; "
            "extract to another path with dtype float32 (--dtype float32)"
        )
        raise CacheError(msg)


def _tokens(backbone: Backbone, windows: NDArray[np.uint8], *, cls: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    expected = (len(windows), *_grid(backbone.spec))
    if not cls:
        tokens = backbone(windows)
        _require_shape(backbone, tokens, expected)
        return tokens.detach().float(), None
    if not isinstance(backbone, GivesClassTokens):
        raise no_class_token(backbone.spec.backbone)
    tokens, summary = backbone.with_class_tokens(windows)
    _require_shape(backbone, tokens, expected)
    _require_shape(backbone, summary, (len(windows), backbone.spec.width))
    return tokens.detach().float(), summary.detach().float()


def _require_shape(backbone: Backbone, tokens: torch.Tensor, expected: tuple[int, ...]) -> None:
    if (found := tuple(tokens.shape)) != expected:
        msg = f"{backbone.spec.backbone} returns shape {found}, its identity says {expected}; correct one of them"
        raise BackboneError(msg)


def _grid(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.grid, spec.grid, spec.width
