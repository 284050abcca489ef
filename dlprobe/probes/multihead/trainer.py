"""Fit many heads in one stream over batches of windows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dlprobe.errors import OutputError, ProbeError
from dlprobe.probes.losses import SMOOTH, target_basis
from dlprobe.probes.multihead.batches import (
    Centring,
    HeadBatch,
    Job,
    ResidentWindows,
    WindowCounter,
    WindowWeights,
    check_batch,
    read_ahead,
)
from dlprobe.probes.multihead.columns import Columns
from dlprobe.probes.multihead.ledger import FittedHead, Ledger, identity_of_fit, read_checkpoint, write_checkpoint
from dlprobe.probes.multihead.objectives import Labels
from dlprobe.probes.multihead.panels import PanelEngine, column_order
from dlprobe.probes.multihead.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.moments import GroupMoments

    Watch = Callable[[int, Sequence[FittedHead]], Sequence[float]]

Precision = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fit_heads(
    batches: Callable[[int], Iterable[HeadBatch]],
    heads: Sequence[HeadSpec],
    moments: GroupMoments,
    *,
    epochs: int,
    steps_per_epoch: int,
    smooth: float = SMOOTH,
    precision: Precision = "float32",
    device: str = "cpu",
    window_weights: WindowWeights = "poisson",
    layers: Mapping[int, slice] | None = None,
    watch: Watch | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    resident_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[FittedHead]:
    """Fit all heads at once: each batch is read once, and multiplied once forward and once backward.

    Masters, momentum and sums are float32; `precision` is that of the two matrix products and of what lies between.
    A head fitted among others has the same weights as fitted alone, to rounding.

    Parameters
    ----------
    batches : callable
        Called with the number of the epoch, returns its batches; one batch is one step of every head. An epoch must
        give the same batches each time it is asked for, so that a resumed fit is the same fit.
    heads : sequence of HeadSpec
        No two alike.
    moments : GroupMoments
        Of the embeddings of each group; a head is standardised by those of its own training groups.
    epochs : int
    steps_per_epoch : int
        Batches in an epoch; the learning rate's schedule is laid out over all of them.
    smooth : float
        Smoothing of Dice and Tversky.
    precision : {'float32', 'bfloat16'}
    device : str
        ``cpu`` or a CUDA device.
    window_weights : {'poisson', 'ones'}
        Whether the seed of a head resamples the windows (see `poisson_weights`), or each counts once.
    layers : mapping of int to slice, optional
        Which features each layer number of a head stands for; -1 is all of them.
    watch : callable, optional
        Called after each epoch with its number and the running heads as they are then, returns a score for each,
        higher being better. Every head then ends with the weights of its best epoch, not of its last.
    patience : int, optional
        A head whose score has not grown for so many epochs is stopped and costs nothing from then on.
    checkpoint : str or Path, optional
        Written after each epoch; if it exists, the fit goes on from it.
    resident_bytes : int, optional
        Memory in which windows stay on the device from one epoch to the next, with their targets, so that they are
        copied there once; of batches with callables only the other windows are read. By default 70 % of what a CUDA
        device has free, and none on a CPU.
    progress : callable, optional
        Called after every step with the steps taken and the steps planned.

    Returns
    -------
    list of FittedHead
        In the order of `heads`.

    Raises
    ------
    ProbeError
        If heads are double or none, a training group has no moments, a batch does not fit, an epoch has another number
        of batches than `steps_per_epoch`, the device is absent, or the checkpoint belongs to another fit.
    OutputError
        If the folder of the checkpoint does not exist.
    """
    settings = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "smooth": smooth,
        "precision": precision,
        "window_weights": window_weights,
        "layers": {str(layer): [part.start, part.stop, part.step] for layer, part in (layers or {}).items()},
        "patience": patience,
        "watched": watch is not None,
    }
    _check(heads, settings)
    store = _Store(checkpoint, identity_of_fit(heads, moments, settings)) if checkpoint is not None else None
    with Workers(_device(device)) as workers:
        fit = _Fit(heads, moments, settings, workers, layers or {})
        fit.resident = ResidentWindows(fit.device, resident_bytes)
        for epoch in range(store.restore(fit) if store else 0, epochs):
            if not fit.index:
                break
            fit.epoch(epoch, batches(epoch), progress)
            fit.close_epoch(epoch, watch, patience)
            if store:
                store.write(fit, epoch + 1)
    return [fit.ledger.fitted(i) for i in range(len(heads))]


class _Fit:
    """The state of a running fit: the running heads, in the order of columns, and the ledger of all."""

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        moments: GroupMoments,
        settings: Mapping[str, Any],
        workers: Workers,
        layers: Mapping[int, slice],
    ) -> None:
        self.settings = settings
        self.workers = workers
        self.device = device = workers.device
        self.dtype = _DTYPES[settings["precision"]]
        self.width = moments.sum.shape[1]
        self.steps_per_epoch: int = settings["steps_per_epoch"]
        self.ledger = Ledger(heads, settings["epochs"], self.steps_per_epoch, self.width)
        self.index = column_order(heads)
        pooled = moments.standardisation(sorted({group for head in heads for group in head.train_groups}))
        centre = pooled.mean.astype(np.float32)
        self.columns = Columns(
            self.heads,
            moments,
            centre=centre,
            layers={-1: slice(0, self.width), **layers},
            steps=settings["epochs"] * self.steps_per_epoch,
            device=device,
        )
        self.resident = ResidentWindows(device, 0)
        self.centring = Centring(centre, self.dtype, self.workers, device)
        self._arrange()

    @property
    def heads(self) -> list[HeadSpec]:
        """The running heads, in the order of columns."""
        return [self.ledger.heads[i] for i in self.index]

    def _arrange(self) -> None:
        """Lay out the columns of the running heads."""
        heads = self.heads
        self.classes = {head.scheme: head.n_logits for head in heads}
        self.schemes = sorted(self.classes)
        self.counter = WindowCounter(heads, self.settings["window_weights"])
        self.engine = PanelEngine(
            heads,
            width=self.width,
            smooth=self.settings["smooth"],
            dtype=self.dtype,
            workers=self.workers,
            device=self.device,
        )
        self.at = self.ledger.columns_of(self.index)
        self.kind = [(head.scheme, each) for head in heads for each in range(head.n_logits)]
        self.starts = np.cumsum([0, *(head.n_logits for head in heads)])[:-1]
        self.totals = torch.zeros((3, len(self.at)), device=self.device)

    def epoch(self, epoch: int, batches: Iterable[HeadBatch], progress: Callable[[int, int], None] | None) -> None:
        """Take the steps of one epoch."""
        taken = 0
        planned = self.settings["epochs"] * self.steps_per_epoch
        self.totals.zero_()
        jobs = read_ahead(
            batches, self.counter, self.resident, lambda batch: check_batch(batch, self.schemes, self.width)
        )
        with closing(jobs):
            for job in jobs:
                if taken < self.steps_per_epoch:
                    self.step(job, epoch * self.steps_per_epoch + taken, first=epoch == 0)
                taken += 1
                if taken > self.steps_per_epoch:
                    break
                if progress is not None:
                    progress(epoch * self.steps_per_epoch + taken, planned)
        if taken != self.steps_per_epoch:
            found = "more than" if taken > self.steps_per_epoch else f"{taken} batches,"
            msg = f"epoch {epoch} has {found} {self.steps_per_epoch} planned; correct steps_per_epoch"
            raise ProbeError(msg)

    def step(self, job: Job, number: int, *, first: bool) -> None:
        """Take one step of all running heads."""
        loaded = self.resident.load(job.batch, job.missing, job.read(), self.schemes)
        with self.workers.alone():
            labels = {scheme: self._labels(loaded.targets[scheme], self.classes[scheme]) for scheme in self.schemes}
            if first:
                self._note_targets(labels, job.counts)
            times = torch.from_numpy(job.counts).to(self.device)
            found = self.engine(self.centring(loaded.embeddings), self.columns.folded(), labels, times)
            self.columns.update(found.weights, found.bias, number)
            self.totals += torch.stack([found.loss, found.lone, found.all])

    def _labels(self, targets: torch.Tensor, classes: int) -> Labels:
        basis = target_basis(targets.to(self.device), torch.float32, classes)
        return Labels(basis, basis.sum(dim=1))

    def _note_targets(self, labels: Mapping[str, Labels], counts: NDArray[np.float32]) -> None:
        """Add up how many positive and negative patches each column has been shown."""
        sums = {scheme: each.sums.cpu().numpy() for scheme, each in labels.items()}
        positive = np.stack([sums[scheme][:, each] for scheme, each in self.kind], axis=1)
        known = np.stack([sums[scheme][:, -1] for scheme, _ in self.kind], axis=1)
        self.ledger.shown[0, self.at] += np.einsum("nc,nc->c", counts, positive)
        self.ledger.shown[1, self.at] += np.einsum("nc,nc->c", counts, known - positive)

    def close_epoch(self, epoch: int, watch: Watch | None, patience: int | None) -> None:
        """Note losses and weights; with `watch`, keep the best weights of each head and stop those that rest."""
        ledger = self.ledger
        totals = self.totals.cpu().numpy()
        ledger.loss[epoch, self.index] = totals[0, self.starts] / self.steps_per_epoch
        ledger.gradient[:, self.at] += totals[1:]
        ledger.trained[self.index] = epoch + 1
        weights, bias = self.columns.raw()
        now = dict(
            zip(
                self.index,
                zip(np.split(weights, self.starts[1:]), np.split(bias, self.starts[1:]), strict=True),
                strict=True,
            )
        )
        if watch is not None:
            scores = watch(epoch, [ledger.describe(i, epoch, *each) for i, each in now.items()])
            if len(scores) != len(now):
                msg = f"watch returned {len(scores)} scores for {len(now)} heads; return one for each, in their order"
                raise ProbeError(msg)
            now = {i: each for (i, each), score in zip(now.items(), scores, strict=True) if self._note(i, score)}
        for i, each in now.items():
            ledger.keep(i, epoch, *each)
        if watch is not None and patience is not None:
            self._stop([i for i in self.index if epoch - ledger.epoch[i] >= patience])

    def _note(self, index: int, score: float) -> bool:
        better = self.ledger.improves(index, score)
        if better:
            self.ledger.score[index] = score
        return better

    def _stop(self, resting: Sequence[int]) -> None:
        """Go on without some of the running heads."""
        if not resting:
            return
        self.ledger.running[list(resting)] = 0
        sizes = [head.n_logits for head in self.heads]
        going = np.isin(self.index, resting, invert=True)
        self.index = [i for i in self.index if self.ledger.running[i]]
        if self.index:
            self.columns.keep(np.flatnonzero(np.repeat(going, sizes)))
            self._arrange()


class _Store:
    """The checkpoint of a fit."""

    def __init__(self, path: str | Path, identity: str) -> None:
        self.path = Path(path)
        self.identity = identity
        if not self.path.parent.is_dir():
            msg = f"cannot write a checkpoint to {path}: its folder does not exist"
            raise OutputError(msg)

    def write(self, fit: _Fit, epochs_done: int) -> None:
        state = {f"column.{name}": each.cpu().numpy() for name, each in fit.columns.state().items()}
        ledger = {f"ledger.{name}": each for name, each in fit.ledger.arrays().items()}
        write_checkpoint(self.path, {**state, **ledger}, self.identity, epochs_done)

    def restore(self, fit: _Fit) -> int:
        """Bring a fit to where the checkpoint left it; return how many epochs are done, 0 without a checkpoint."""
        if not self.path.exists():
            return 0
        arrays, epochs_done = read_checkpoint(self.path, self.identity)
        for name, each in fit.ledger.arrays().items():
            if name != "running":
                each[...] = arrays[f"ledger.{name}"]
        fit._stop(np.flatnonzero(arrays["ledger.running"] == 0).tolist())
        if fit.index:
            for name, tensor in fit.columns.state().items():
                tensor.copy_(torch.from_numpy(arrays[f"column.{name}"]))
        return epochs_done


def _check(heads: Sequence[HeadSpec], settings: Mapping[str, Any]) -> None:
    steps = settings["epochs"] * settings["steps_per_epoch"]
    if not heads:
        msg = "there are no heads to fit; give at least one HeadSpec"
        raise ProbeError(msg)
    if len(set(heads)) != len(heads):
        double = next(head for i, head in enumerate(heads) if head in heads[:i])
        msg = f"two heads are alike: {double}; give each its own settings"
        raise ProbeError(msg)
    if steps < 1:
        msg = f"a fit of {steps} steps was asked for; epochs and steps_per_epoch must be 1 or more"
        raise ProbeError(msg)
    if settings["precision"] not in _DTYPES:
        msg = f"no precision {settings['precision']!r}; write one of {', '.join(_DTYPES)}"
        raise ProbeError(msg)
    if settings["patience"] is not None and not settings["watched"]:
        msg = "patience needs watch, which says how good a head is; give both or neither"
        raise ProbeError(msg)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        msg = f"heads are not fitted on device {name!r}; write cpu, cuda or cuda:N (--device)"
        raise ProbeError(msg)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"has {torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "shows no CUDA device"
        msg = f"device {name!r} was asked for, but this machine {found}; use --device cpu"
        raise ProbeError(msg)
    return device
