"""What one step reads: windows, how often each counts for each head, and their embeddings, centred."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.multihead.workers import Workers

    Embeddings = NDArray[np.float16] | NDArray[np.float32]

WindowWeights = Literal["poisson", "ones"]
#: Rows that a thread converts at a time: a float32 tile of 768 features then takes 0.4 MB.
TILE_ROWS = 128
_POISSON_MAX = 20
#: Share of a device's free memory that embeddings may take by default.
DEVICE_SHARE = 0.7


class HeadBatch(NamedTuple):
    """Windows of one step.

    Parameters
    ----------
    embeddings : ndarray of float16 or float32, shape (n, patches, width), or callable
        A callable returns the array; it is called only if a window is not on the device already.
    targets : mapping of str to ndarray of int8 or float32, shape (n, patches)
        For each labelling scheme; ignored where negative or NaN.
    groups : ndarray of int64, shape (n,)
        Group of each window. A window trains only the heads whose `train_groups` name its group; -1 trains none.
    windows : ndarray of int64, shape (n,)
        Global numbers of the windows, from which their Poisson weights are drawn.
    """

    embeddings: Embeddings | Callable[[], Embeddings]
    targets: Mapping[str, NDArray[np.int8] | NDArray[np.float32]]
    groups: NDArray[np.int64]
    windows: NDArray[np.int64]

    def read(self) -> Embeddings:
        """Return the embeddings; raise `ProbeError` if there is not one row of patches for each window."""
        found = self.embeddings() if callable(self.embeddings) else self.embeddings
        if found.ndim != 3 or len(found) != len(self.windows):
            msg = f"a batch of {len(self.windows)} windows has embeddings of shape {found.shape}; give one for each"
            raise ProbeError(msg)
        return found

    def take(self, chosen: NDArray[np.bool_]) -> HeadBatch:
        """Return the windows for which `chosen` is True."""
        targets = {scheme: each[chosen] for scheme, each in self.targets.items()}
        embeddings = (lambda: self.read()[chosen]) if callable(self.embeddings) else self.embeddings[chosen]
        return HeadBatch(embeddings, targets, self.groups[chosen], self.windows[chosen])


def check_batch(batch: HeadBatch, schemes: Sequence[str], width: int) -> None:
    """Raise `ProbeError` if the arrays of a batch do not fit together."""
    if callable(batch.embeddings):
        shape = next((each.shape for each in batch.targets.values()), batch.windows.shape)
    else:
        shape = batch.embeddings.shape
    if not callable(batch.embeddings) and (len(shape) != 3 or shape[2] != width):
        msg = (
            f"a batch has embeddings of shape {shape}, its moments have width {width}; give (windows, patches, {width})"
        )
        raise ProbeError(msg)
    for name, found in (("groups", batch.groups.shape), ("windows", batch.windows.shape)):
        if found != shape[:1]:
            msg = f"a batch of {shape[0]} windows has {name} of shape {found}; give one number for each window"
            raise ProbeError(msg)
    for scheme in schemes:
        if scheme not in batch.targets:
            msg = f"a batch has no targets for scheme {scheme!r}; it has {', '.join(batch.targets) or 'none'}"
            raise ProbeError(msg)
        if batch.targets[scheme].shape != shape[:2]:
            msg = f"targets of scheme {scheme!r} have shape {batch.targets[scheme].shape}, the patches {shape[:2]}"
            raise ProbeError(msg)


def poisson_weights(seed: int, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a Poisson(1) draw for each window that depends on nothing but the seed and the window's number.

    The online bootstrap of Oza and Russell (2001): the draws of two seeds make two resampled data sets of one stream.

    Parameters
    ----------
    seed : int
    windows : ndarray of int64
        Global numbers of windows.

    Returns
    -------
    ndarray of float32, same shape
    """
    bits = _mix(_mix(np.uint64(seed) + windows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(seed))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    probabilities = np.exp(-1.0) / np.cumprod(np.maximum(np.arange(_POISSON_MAX), 1.0))
    return np.searchsorted(np.cumsum(probabilities), uniform, side="right").astype(np.float32)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output function of splitmix64 (Steele, Lea and Flood 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class WindowCounter:
    """How many times each window of a batch counts for each head.

    Parameters
    ----------
    heads : sequence of HeadSpec
        In the order of the columns, of which each has one for each of its logits.
    window_weights : {'poisson', 'ones'}
        Whether a head's seed resamples the windows, or each counts once.
    """

    def __init__(self, heads: Sequence[HeadSpec], window_weights: WindowWeights) -> None:
        heads = [head for head in heads for _ in range(head.n_logits)]
        self._folds = sorted({head.train_groups for head in heads})
        self._seeds = sorted({head.seed for head in heads}) if window_weights == "poisson" else []
        self._fold_of = np.array([self._folds.index(head.train_groups) for head in heads])
        self._seed_of = np.array([self._seeds.index(head.seed) for head in heads]) if self._seeds else None

    def __call__(self, batch: HeadBatch) -> NDArray[np.float32]:
        """Return counts of shape (windows, columns)."""
        member = np.stack([np.isin(batch.groups, fold) for fold in self._folds], axis=1).astype(np.float32)
        counts: NDArray[np.float32] = member[:, self._fold_of]
        if self._seed_of is not None:
            drawn = np.stack([poisson_weights(seed, batch.windows) for seed in self._seeds], axis=1)
            counts = counts * drawn[:, self._seed_of]
        return counts


class ResidentWindows:
    """Windows by their global numbers, in the dtype they came in, up to a number of bytes.

    Parameters
    ----------
    device : torch.device
    capacity_bytes : int or None
        What the windows may take; None means a share of a CUDA device's free memory, and nothing on a CPU, where the
        caller's own cache does as well.
    """

    def __init__(self, device: torch.device, capacity_bytes: int | None) -> None:
        self._device = device
        if capacity_bytes is None:
            capacity_bytes = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
        self._capacity_bytes = capacity_bytes
        self._slots: dict[int, tuple[int, int]] = {}
        self._chunks: list[torch.Tensor] = []
        self._used_bytes = 0

    def embeddings(self, batch: HeadBatch) -> torch.Tensor:
        """Return the embeddings of a batch, (n, patches, width), reading them unless all are here."""
        numbers = batch.windows.tolist()
        if numbers and all(number in self._slots for number in numbers):
            return self._gather(numbers)
        read = as_tensor(batch.read())
        if not self._capacity_bytes:
            return read
        moved = read.to(self._device)
        self._keep(batch.windows, moved)
        return moved

    def _gather(self, numbers: list[int]) -> torch.Tensor:
        places = np.array([self._slots[number] for number in numbers])
        first = self._chunks[places[0, 0]]
        result = torch.empty((len(numbers), *first.shape[1:]), dtype=first.dtype, device=self._device)
        for chunk in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == chunk)
            rows = torch.from_numpy(places[here, 1]).to(self._device)
            result[torch.from_numpy(here).to(self._device)] = self._chunks[chunk][rows]
        return result

    def _keep(self, windows: NDArray[np.int64], moved: torch.Tensor) -> None:
        """Keep those windows of a batch that are new, as long as there is room."""
        new = [i for i, number in enumerate(windows.tolist()) if number not in self._slots]
        size = moved[:1].numel() * moved.element_size()
        new = new[: max(0, (self._capacity_bytes - self._used_bytes) // max(size, 1))]
        if not new:
            return
        self._used_bytes += len(new) * size
        self._slots.update({int(windows[i]): (len(self._chunks), row) for row, i in enumerate(new)})
        self._chunks.append(moved[torch.tensor(new, device=self._device)])


class Centring:
    """Subtracts one mean from embeddings in float32, tile by tile, into one buffer that every step reuses.

    What the cast to bfloat16 must not see is an offset; scales do not touch the precision of floating point, and are
    left to the columns.

    Parameters
    ----------
    centre : ndarray of float32, shape (width,)
    dtype : torch.dtype
        Of the result.
    workers : Workers
    device : torch.device
    """

    def __init__(self, centre: NDArray[np.float32], dtype: torch.dtype, workers: Workers, device: torch.device) -> None:
        self._workers = workers
        self._centre = torch.as_tensor(centre, device=device)
        self._dtype = dtype
        self._device = device
        self._buffer = torch.empty((0, len(centre)), dtype=dtype, device=device)

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return centred rows, shape (windows * patches, width), valid until the next call."""
        rows = embeddings.reshape(-1, embeddings.shape[-1]).to(self._device)
        if len(self._buffer) < len(rows):
            self._buffer = torch.empty((len(rows), rows.shape[1]), dtype=self._dtype, device=self._device)
        result = self._buffer[: len(rows)]
        self._workers.map(lambda part: self._centre_into(rows[part], result[part]), len(rows))
        return result

    def _centre_into(self, rows: torch.Tensor, result: torch.Tensor) -> None:
        n, width = rows.shape
        step = TILE_ROWS if self._device.type == "cpu" else n
        buffer = torch.empty((min(step, n), width), device=self._device)
        for start in range(0, n, step):
            stop = min(start + step, n)
            tile = buffer[: stop - start]
            tile.copy_(rows[start:stop])
            tile.sub_(self._centre)
            result[start:stop].copy_(tile)


def as_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """Return a tensor on the memory of a contiguous array, which may be read-only: nothing here writes to it."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.flags.writeable:
        return torch.from_numpy(contiguous)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(contiguous)
