"""From the decoded images of a block to the arrays that are stored."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.backbones.base import GivesClassTokens, Startable, no_class_token
from dlprobe.cache.records import Reject
from dlprobe.cache.stores.codecs import STEPS, dequantise
from dlprobe.data.labels import FULL
from dlprobe.data.provenance import COVERAGE_CLASSES, Provenance
from dlprobe.errors import BackboneError, CacheError
from dlprobe.extraction.decoding import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache.buffers import Buffers
    from dlprobe.cache.layout import Layout
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.decoding import Crops, Decoded
    from dlprobe.spec import ModelSpec

#: Batches at work beside the one that is taken next.
AHEAD = 1
#: Windows whose moments a device sums at a time: in float64 they take four times their room.
_SUMMED = 8
#: Largest relative difference of embeddings that another machine, or another batch, may explain, by precision. A ViT in
#: bfloat16 is 0.5 % (S) to 0.8 % (L) away from float32, and 0.5 % from itself at another batch size; two machines that
#: round independently are 1.4 times as far from each other as each is from float32. float16 has three bits more.
DRIFT_LIMITS = {"float32": 1e-3, "float16": 2.5e-3, "bfloat16": 2e-2}
_VOID_CLASS = COVERAGE_CLASSES.index(Provenance.VOID)


@dataclass(frozen=True, slots=True, eq=False)
class BlockContent:
    """What is stored of a block: chunks by array, hashes of image files by path, and void windows.

    ``summed`` says whether the device has filled the moments in.
    """

    arrays: dict[str, NDArray[Any]]
    images: dict[str, str]
    rejects: tuple[Reject, ...]
    summed: bool


class BlockWork:
    """A block on its way: its arrays, filled as results come in, and the windows that have yet to be embedded.

    Batches never reach across blocks, so that a block's bytes do not depend on what was computed before it.

    Parameters
    ----------
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
    """

    def __init__(self, manifest: Manifest, layout: Layout, block: int, decoded: Decoded, memory: Buffers) -> None:
        start, stop = layout.block_range(block)
        layouts = layout.arrays()
        self.block, self._start, self.windows = block, start, stop - start
        self.arrays = {name: memory.take(layouts[name].chunk, layouts[name].dtype) for name in layout.block_arrays}
        for array in self.arrays.values():
            array.fill(0)
        _make_void(self.arrays, slice(stop - start))
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._images: dict[str, str] = {}
        self._names: dict[int, str] = {}
        self._rejects: list[Reject] = []
        self._summed = False
        for part, found in decoded:
            self._add(str(manifest.frame["path"].iloc[part.image]), part.positions, found)

    def batches(self, size: int) -> list[list[int]]:
        """Return the positions to be embedded, `size` at a time; one empty batch if there are none."""
        positions = sorted(self._pixels)
        return [positions[i : i + size] for i in range(0, len(positions), size)] or [[]]

    def pixels(self, batch: list[int]) -> NDArray[np.uint8]:
        """Return the windows of a batch, side by side; this block gives them away."""
        return np.stack([self._pixels.pop(position) for position in batch])

    def take(self, batch: list[int], encoded: Encoded, model: str) -> None:
        """Store the embeddings of a batch; windows with values that are not finite become void."""
        dtype = self.arrays["embeddings"].dtype
        sound = np.isfinite(encoded.peak).all(axis=1)
        kept = np.array(batch)[sound]
        _require_fits(encoded.peak[sound], dtype, [self._names[position] for position in kept])
        self._summed = "moments" in encoded.arrays
        for name, values in encoded.arrays.items():
            self.arrays[name][kept] = values if sound.all() else values[sound]
        for position in np.array(batch)[~sound].tolist():
            _make_void(self.arrays, position)
            reason = f"{model} gives values that are not finite for this window"
            self._rejects.append(Reject(self._names[position], reason, (self._start + position,)))

    def content(self) -> BlockContent:
        """Return what is to be stored; moments that no device has summed `with_moments` adds, in another thread."""
        return BlockContent(self.arrays, self._images, tuple(self._rejects), self._summed)

    def _add(self, path: str, positions: NDArray[np.int64], found: Crops | Unreadable) -> None:
        if isinstance(found, Unreadable):
            self._rejects.append(Reject(path, found.reason, tuple((self._start + positions).tolist())))
            return
        self._images[path] = found.sha256
        self.arrays["regions"][positions], self.arrays["coverage"][positions] = found.regions, found.coverage
        self._pixels.update(zip(positions.tolist(), found.pixels, strict=True))
        self._names.update(dict.fromkeys(positions.tolist(), path))


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What is stored of a batch, by array, and the largest magnitudes in it, float32 (n, width)."""

    arrays: dict[str, NDArray[Any]]
    peak: NDArray[np.float32]


def embed_blocks(backbone: Backbone, blocks: Iterable[BlockWork]) -> Iterator[BlockWork]:
    """Embed blocks and give each when it is whole; the next batches are at work before the last has come back.

    Raises
    ------
    CacheError
        If a value is too large for the storage type.
    BackboneError
        If the backbone returns another shape than its identity says.
    """
    at_work: deque[tuple[BlockWork, list[int], Callable[[], Encoded], bool]] = deque()
    for block in blocks:
        batches = block.batches(backbone.pins.batch_size)
        for number, batch in enumerate(batches, 1):
            at_work.append((block, batch, _start(backbone, block, batch), number == len(batches)))
            if len(at_work) > AHEAD:
                yield from _taken(backbone, *at_work.popleft())
    while at_work:
        yield from _taken(backbone, *at_work.popleft())


def _taken(
    backbone: Backbone, block: BlockWork, batch: list[int], finish: Callable[[], Encoded], last: bool
) -> Iterator[BlockWork]:
    if batch:
        block.take(batch, finish(), backbone.spec.backbone)
    if last:
        yield block


def _start(backbone: Backbone, block: BlockWork, batch: list[int]) -> Callable[[], Encoded]:
    if not batch:
        return lambda: Encoded({}, np.empty((0, 0), np.float32))
    return start_batch(backbone, block.pixels(batch), block.arrays["embeddings"].dtype.name, cls="cls" in block.arrays)


def start_batch(backbone: Backbone, windows: NDArray[np.uint8], dtype: str, *, cls: bool) -> Callable[[], Encoded]:
    """Begin with a batch; on CUDA with encoding, summing and copying back too, elsewhere they follow when asked for.

    Parameters
    ----------
    backbone : Backbone
        What embeds.
    windows : ndarray of uint8, shape (n, window_px, window_px, 3)
        The batch.
    dtype : {"float32", "float16", "int8"}
        Storage type.
    cls : bool
        Ask for CLS tokens, too.

    Returns
    -------
    callable
        Waits for the batch and returns what is stored of it.
    """
    tokens = _begin(backbone, windows, cls=cls)
    if backbone.pins.device == "cuda":
        return _encoded(tokens, dtype, summed=True)

    def later() -> Encoded:
        return _encoded(tokens, dtype, summed=False)()

    return later


def _begin(
    backbone: Backbone, windows: NDArray[np.uint8], *, cls: bool
) -> Callable[[], tuple[torch.Tensor, torch.Tensor | None]]:
    """Begin with a batch if the backbone can, else embed it; return what gives embeddings, and CLS tokens if wanted."""
    import torch

    if not isinstance(backbone, Startable):
        found = _tokens(backbone, windows, cls=cls)
        return lambda: found
    finish = backbone.start(torch.from_numpy(windows))

    def wait() -> tuple[torch.Tensor, torch.Tensor | None]:
        summary, patches = finish()
        if cls and summary is None:
            raise no_class_token(backbone.spec.backbone)
        tokens = patches.float().reshape(len(windows), *_grid(backbone.spec))
        return tokens, summary.float() if cls and summary is not None else None

    return wait


def _encoded(
    begun: Callable[[], tuple[torch.Tensor, torch.Tensor | None]], dtype: str, *, summed: bool
) -> Callable[[], Encoded]:
    from dlprobe.backbones.engines.copying import to_host

    tokens, cls = begun()
    stored, scale, peak = encode(tokens, dtype)
    sums = device_moments(stored, scale) if summed else None
    wait = to_host([peak if cls is None else peak.maximum(cls.abs()), stored, scale, cls, sums])

    def finish() -> Encoded:
        peaks, *values = (None if tensor is None else tensor.numpy() for tensor in wait())
        named = zip(("embeddings", "scale", "cls", "moments"), values, strict=True)
        return Encoded({name: array for name, array in named if array is not None}, np.asarray(peaks))

    return finish


def with_moments(content: BlockContent) -> BlockContent:
    """Return the content of a block, its moments filled in."""
    arrays = content.arrays
    if not content.summed:
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


def device_moments(stored: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Return what `moments` does of a batch, on the device where it is.

    Both add in float64 what is stored, and differ by the order: by one unit in the last place, once in many millions.

    Parameters
    ----------
    stored : tensor, shape (n, rows, cols, width)
        As `encode` returns it.
    scale : tensor of float32, shape (n, width), or None
        Of int8.

    Returns
    -------
    tensor of float32, shape (n, 2, width)
    """
    import torch

    out = torch.empty((len(stored), 2, stored.shape[-1]), dtype=torch.float32, device=stored.device)
    for start in range(0, len(stored), _SUMMED):
        part = slice(start, start + _SUMMED)
        floats = stored[part].float()
        values = (floats if scale is None else floats * scale[part, None, None, :]).double()
        out[part, 0] = values.sum(dim=(1, 2))
        out[part, 1] = values.square_().sum(dim=(1, 2))
    return out


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
