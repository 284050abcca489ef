"""Fit many heads in one stream over batches of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from dlprobe.errors import ProbeError
from dlprobe.probes.losses import SMOOTH, target_basis
from dlprobe.probes.multihead.batches import (
    HeadBatch,
    Standardiser,
    WindowCounter,
    WindowWeights,
    as_tensor,
    check_batch,
)
from dlprobe.probes.multihead.columns import Columns
from dlprobe.probes.multihead.panels import Gradients, Labels, PanelEngine, column_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.moments import GroupMoments

Precision = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedHead:
    """A head after training.

    Parameters
    ----------
    spec : HeadSpec
        Its key.
    weights : ndarray of float64, shape (width,)
        On raw embeddings.
    bias : float
        On raw embeddings.
    loss_by_epoch : tuple of float
        Mean over the steps of each epoch.
    steps : int
        Steps taken.
    flag : str or None
        Why the head is not to be trusted; None if nothing is wrong with it.
    """

    spec: HeadSpec
    weights: NDArray[np.float64]
    bias: float
    loss_by_epoch: tuple[float, ...]
    steps: int
    flag: str | None = None


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
    progress: Callable[[int, int], None] | None = None,
) -> list[FittedHead]:
    """Fit all heads at once: each batch is read once, and multiplied once forward and once backward.

    Masters, momentum and sums are float32; `precision` is that of the two matrix products and of what lies between.
    A head fitted among others has the same weights as fitted alone, to rounding.

    Parameters
    ----------
    batches : callable
        Called with the number of the epoch, returns its batches; one batch is one step of every head.
    heads : sequence of HeadSpec
        No two alike.
    moments : GroupMoments
        Of the embeddings of each group; a head is standardised by those of its own training groups.
    epochs : int
    steps_per_epoch : int
        Batches in an epoch; the learning rate's schedule is laid out over all of them.
    smooth : float
        Smoothing of Dice.
    precision : {'float32', 'bfloat16'}
    device : str
        ``cpu`` or a CUDA device.
    window_weights : {'poisson', 'ones'}
        Whether the seed of a head resamples the windows (see `poisson_weights`), or each counts once.
    layers : mapping of int to slice, optional
        Which features each layer number of a head stands for; -1 is all of them.
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
        of batches than `steps_per_epoch`, or the device is absent.
    """
    fit = _Fit(
        heads,
        moments,
        steps=epochs * steps_per_epoch,
        smooth=smooth,
        precision=precision,
        device_name=device,
        window_weights=window_weights,
        layers=layers or {},
    )
    for epoch in range(epochs):
        taken = 0
        for batch in batches(epoch):
            if taken == steps_per_epoch:
                break
            fit.step(batch)
            taken += 1
            if progress is not None:
                progress(fit.steps, epochs * steps_per_epoch)
        if taken != steps_per_epoch:
            msg = f"epoch {epoch} has {taken} batches, {steps_per_epoch} were planned; correct steps_per_epoch"
            raise ProbeError(msg)
        fit.close_epoch(steps_per_epoch)
    return fit.results()


class _Fit:
    """The state of a running fit; its arrays are in the order of columns, not of the caller's heads."""

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        moments: GroupMoments,
        *,
        steps: int,
        smooth: float,
        precision: Precision,
        device_name: str,
        window_weights: WindowWeights,
        layers: Mapping[int, slice],
    ) -> None:
        _check(heads, steps, precision)
        self.device = _device(device_name)
        self.order = column_order(heads)
        self.heads = [heads[i] for i in self.order]
        self.schemes = sorted({head.scheme for head in heads})
        self.dtype = _DTYPES[precision]
        self.width = moments.sum.shape[1]
        common = moments.standardisation(sorted({group for head in heads for group in head.train_groups}))
        features = {-1: slice(0, self.width), **layers}
        self.columns = Columns(self.heads, moments, common=common, layers=features, steps=steps, device=self.device)
        self.standardise = Standardiser(common, self.dtype, self.device)
        self.count = WindowCounter(self.heads, window_weights)
        self.engine = PanelEngine(self.heads, self.width, smooth, self.dtype, self.device)
        self.steps = 0
        self.loss = torch.zeros(len(heads), device=self.device)
        self.losses: list[NDArray[np.float32]] = []
        self.seen = np.zeros((2, len(heads)))

    def step(self, batch: HeadBatch) -> None:
        check_batch(batch, self.schemes, self.width)
        counts = self.count(batch)
        used = counts.max(axis=1) > 0
        if not used.all():
            batch, counts = batch.take(used), counts[used]
        labels = self._labels(batch)
        self._note_targets(labels, counts)
        found: Gradients = self.engine(
            self.standardise(batch.embeddings),
            self.columns.folded(),
            labels,
            torch.from_numpy(counts).to(self.device),
        )
        self.loss += found.loss
        self.columns.update(found.weights, found.bias, self.steps)
        self.steps += 1

    def _labels(self, batch: HeadBatch) -> Labels:
        targets = {scheme: as_tensor(batch.targets[scheme]).to(self.device) for scheme in self.schemes}
        whole = {scheme: target_basis(each, torch.float32) for scheme, each in targets.items()}
        return Labels(
            {scheme: basis.to(self.dtype) for scheme, basis in whole.items()},
            {scheme: basis[..., 0].sum(dim=1) for scheme, basis in whole.items()},
        )

    def _note_targets(self, labels: Labels, counts: NDArray[np.float32]) -> None:
        """Add up how many positive and negative patches each head has been shown."""
        if self.losses:  # the first epoch has shown them all
            return
        positive = {scheme: sums.cpu().numpy() for scheme, sums in labels.positives.items()}
        known = {
            scheme: basis[..., 1].sum(dim=1, dtype=torch.float32).cpu().numpy()
            for scheme, basis in labels.basis.items()
        }
        column = [self.schemes.index(head.scheme) for head in self.heads]
        positives = np.stack([positive[scheme] for scheme in self.schemes], axis=1)
        knowns = np.stack([known[scheme] for scheme in self.schemes], axis=1)
        self.seen[0] += np.einsum("nh,nh->h", counts, positives[:, column])
        self.seen[1] += np.einsum("nh,nh->h", counts, (knowns - positives)[:, column])

    def close_epoch(self, steps: int) -> None:
        self.losses.append((self.loss / steps).cpu().numpy())
        self.loss.zero_()

    def results(self) -> list[FittedHead]:
        weights, bias = self.columns.raw()
        by_epoch = np.stack(self.losses)
        fitted = {
            column: FittedHead(
                spec=head,
                weights=weights[column],
                bias=float(bias[column]),
                loss_by_epoch=tuple(by_epoch[:, column].tolist()),
                steps=self.steps,
                flag=_flag(by_epoch[:, column], weights[column], bias[column], self.seen[:, column]),
            )
            for column, head in enumerate(self.heads)
        }
        return [fitted[column] for column in np.argsort(self.order)]


def _flag(
    losses: NDArray[np.float32], weights: NDArray[np.float64], bias: float, seen: NDArray[np.float64]
) -> str | None:
    positives, negatives = seen
    if not positives and not negatives:
        return "all patches of its training windows are ignored"
    if not positives or not negatives:
        return f"its training windows hold no {'negative' if positives else 'positive'} patch"
    if not np.isfinite(losses).all():
        return f"its loss is not finite from epoch {int(np.argmin(np.isfinite(losses)))} on"
    if not (np.isfinite(weights).all() and np.isfinite(bias)):
        return "its weights are not finite"
    return None


def _check(heads: Sequence[HeadSpec], steps: int, precision: str) -> None:
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
    if precision not in _DTYPES:
        msg = f"no precision {precision!r}; write one of {', '.join(_DTYPES)}"
        raise ProbeError(msg)


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = f"device {name!r} was asked for, but this machine shows no CUDA device; use --device cpu"
        raise ProbeError(msg)
    return device
