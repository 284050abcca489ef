"""What one step reads: windows, how often each counts for each head, and their embeddings, centred."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.multihead.workers import Workers

    Embeddings = NDArray[np.float16] | NDArray[np.float32]
    Targets = Mapping[str, NDArray[np.int8] | NDArray[np.float32]]

WindowWeights = Literal["poisson", "ones"]
#: Rows that a thread converts at a time: a float32 tile of 768 features then takes 0.4 MB.
TILE_ROWS = 128
_POISSON_MAX = 20
#: Share of a device's free memory that embeddings may take by default.
DEVICE_SHARE = 0.7


class HeadBatch(NamedTuple):
    """Windows of one step, at hand or to be read.

    Parameters
    ----------
    embeddings : ndarray of float16 or float32, shape (n, patches, width), or callable
        A callable takes places in the batch, an ndarray of int64, and returns the embeddings of the windows there. It
        is called in a thread of its own, one batch ahead, and only for windows that are not on the device already.
    targets : mapping of str to ndarray of int8 or float32, shape (n, patches), or callable
        For each labelling scheme; ignored where negative or NaN. A callable takes places, as that of the embeddings.
    groups : ndarray of int64, shape (n,)
        Group of each window. A window trains only the heads whose `train_groups` name its group; -1 trains none.
    windows : ndarray of int64, shape (n,)
        Global numbers of the windows, from which their Poisson weights are drawn and by which they are known again.
    """

    embeddings: Embeddings | Callable[[NDArray[np.int64]], Embeddings]
    targets: Targets | Callable[[NDArray[np.int64]], Targets]
    groups: NDArray[np.int64]
    windows: NDArray[np.int64]

    def take(self, places: NDArray[np.int64]) -> HeadBatch:
        """Return the windows at some places in ascending order; nothing is read."""
        if len(places) == len(self.windows):
            return self
        embeddings, targets = self.embeddings, self.targets
        return HeadBatch(
            (lambda some: embeddings(places[some])) if callable(embeddings) else embeddings[places],
            (lambda some: targets(places[some]))
            if callable(targets)
            else {scheme: each[places] for scheme, each in targets.items()},
            self.groups[places],
            self.windows[places],
        )

    def read(self) -> HeadBatch:
        """Return the same windows with embeddings and targets at hand."""
        everything = np.arange(len(self.windows))
        return self._replace(
            embeddings=self.embeddings(everything) if callable(self.embeddings) else self.embeddings,
            targets=self.targets(everything) if callable(self.targets) else self.targets,
        )


def check_numbers(batch: HeadBatch) -> None:
    """Raise `ProbeError` unless a batch has one group for each window."""
    if batch.windows.ndim != 1 or batch.groups.shape != batch.windows.shape:
        shapes = f"windows of shape {batch.windows.shape} and groups of shape {batch.groups.shape}"
        msg = f"a batch has {shapes}; give one number of each for each window"
        raise ProbeError(msg)


def check_batch(batch: HeadBatch, schemes: Sequence[str], width: int) -> None:
    """Raise `ProbeError` if the arrays of a batch that is at hand do not fit together."""
    shape = cast("Embeddings", batch.embeddings).shape
    if len(shape) != 3 or shape[0] != len(batch.windows):
        msg = f"a batch of {len(batch.windows)} windows has embeddings of shape {shape}; give one for each"
        raise ProbeError(msg)
    if shape[2] != width:
        what = f"a batch has embeddings of shape {shape}, of width {shape[2]}"
        msg = f"{what}, its moments have width {width}; give (windows, patches, {width})"
        raise ProbeError(msg)
    targets = cast("Targets", batch.targets)
    for scheme in schemes:
        if scheme not in targets:
            msg = f"a batch has no targets for scheme {scheme!r}; it has {', '.join(targets) or 'none'}"
            raise ProbeError(msg)
        if targets[scheme].shape != shape[:2]:
            msg = f"targets of scheme {scheme!r} have shape {targets[scheme].shape}, the patches {shape[:2]}"
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


class Loaded(NamedTuple):
    """Embeddings (windows, patches, width) and targets (windows, patches) of each scheme, as tensors."""

    embeddings: torch.Tensor
    targets: dict[str, torch.Tensor]

    @property
    def window_bytes(self) -> int:
        """Memory of one window."""
        tensors = [self.embeddings, *self.targets.values()]
        return sum(each[:1].numel() * each.element_size() for each in tensors)

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Loaded:
        """Return what a function makes of each tensor."""
        return Loaded(function(self.embeddings), {name: function(each) for name, each in self.targets.items()})


class ResidentWindows:
    """Windows and their targets by their global numbers, in the dtype they came in, up to a number of bytes.

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
        self._chunks: list[Loaded] = []
        self._used_bytes = 0

    def missing(self, batch: HeadBatch) -> NDArray[np.int64]:
        """Return the places in a batch of the windows that are not here."""
        return np.flatnonzero([number not in self._slots for number in batch.windows.tolist()])

    def load(
        self, batch: HeadBatch, missing: NDArray[np.int64], read: HeadBatch | None, schemes: Sequence[str]
    ) -> Loaded:
        """Return a batch whose missing windows have been read; keep those, as long as there is room.

        Parameters
        ----------
        batch : HeadBatch
        missing : ndarray of int64
            Places in the batch, as `missing` returned them.
        read : HeadBatch or None
            The windows there, at hand; None if there are none.
        schemes : sequence of str
            Whose targets are wanted.

        Returns
        -------
        Loaded
        """
        parts = list(self._resident(batch, missing))
        if read is not None:
            fresh = self._fetch(read, schemes)
            if len(missing) == len(batch.windows):
                return fresh
            parts.append((missing, fresh, np.arange(len(missing))))
        if not parts:
            return Loaded(torch.empty((0, 1, 1)), {scheme: torch.empty((0, 1)) for scheme in schemes})
        result = parts[0][1].apply(lambda each: each.new_empty((len(batch.windows), *each.shape[1:])))
        for places, source, rows in parts:
            to, of = (torch.from_numpy(each).to(self._device) for each in (places, rows))
            result.embeddings[to] = source.embeddings[of]
            for scheme in schemes:
                result.targets[scheme][to] = source.targets[scheme][of]
        return result

    def _fetch(self, read: HeadBatch, schemes: Sequence[str]) -> Loaded:
        targets = cast("Targets", read.targets)
        fresh = Loaded(as_tensor(read.embeddings), {scheme: as_tensor(targets[scheme]) for scheme in schemes})
        if not self._capacity_bytes:
            return fresh
        moved = fresh.apply(lambda each: each.to(self._device))
        self._keep(read.windows, moved)
        return moved

    def _resident(
        self, batch: HeadBatch, missing: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Loaded, NDArray[np.int64]]]:
        """Yield places in a batch of windows that lie in one chunk, the chunk, and their rows in it."""
        there = np.setdiff1d(np.arange(len(batch.windows)), missing)
        slots = np.array([self._slots[number] for number in batch.windows[there].tolist()]).reshape(-1, 2)
        for chunk in np.unique(slots[:, 0]):
            here = slots[:, 0] == chunk
            yield there[here], self._chunks[chunk], slots[here, 1]

    def _keep(self, windows: NDArray[np.int64], moved: Loaded) -> None:
        """Keep those windows that are new, as long as there is room."""
        new = [i for i, number in enumerate(windows.tolist()) if number not in self._slots]
        size = moved.window_bytes
        new = new[: max(0, (self._capacity_bytes - self._used_bytes) // max(size, 1))]
        if not new:
            return
        self._used_bytes += len(new) * size
        self._slots.update({int(windows[i]): (len(self._chunks), row) for row, i in enumerate(new)})
        self._chunks.append(moved.apply(lambda each: each[torch.tensor(new, device=self._device)]))


class Job(NamedTuple):
    """A batch without windows that count for no head, how often the others do, and what has to be read of it."""

    batch: HeadBatch
    counts: NDArray[np.float32]
    missing: NDArray[np.int64]
    read: Callable[[], HeadBatch | None]


def read_ahead(
    batches: Iterable[HeadBatch],
    counter: WindowCounter,
    resident: ResidentWindows,
    check: Callable[[HeadBatch], None],
) -> Generator[Job]:
    """Yield a job for each batch; a thread reads the next batch that is not at hand meanwhile.

    Parameters
    ----------
    batches : iterable of HeadBatch
    counter : WindowCounter
    resident : ResidentWindows
    check : callable
        Raises if the arrays of a batch that is at hand do not fit together.

    Yields
    ------
    Job
    """
    with ThreadPoolExecutor(1, "dlprobe-fit-read") as pool:
        waiting: Job | None = None
        for batch in batches:
            check_numbers(batch)
            lazy = callable(batch.embeddings) or callable(batch.targets)
            if not lazy:
                check(batch)
            counts = counter(batch)
            used = np.flatnonzero(counts.max(axis=1) > 0)
            wanted = batch.take(used)
            missing = resident.missing(wanted)
            read: Callable[[], HeadBatch | None] = partial(_read, wanted, missing, check)
            read = pool.submit(read).result if lazy else read
            if waiting is not None:
                yield waiting
            waiting = Job(wanted, counts[used], missing, read)
            if not lazy:
                yield waiting
                waiting = None
        if waiting is not None:
            yield waiting


def _read(batch: HeadBatch, missing: NDArray[np.int64], check: Callable[[HeadBatch], None]) -> HeadBatch | None:
    if not len(missing):
        return None
    found = batch.take(missing).read()
    check(found)
    return found


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


def as_tensor(array: Any) -> torch.Tensor:
    """Return a tensor on the memory of a contiguous array, which may be read-only: nothing here writes to it."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.flags.writeable:
        return torch.from_numpy(contiguous)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(contiguous)
