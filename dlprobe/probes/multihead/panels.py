"""One batch through all heads: forward, loss, gradient, in panels of columns and tiles of windows that fit a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from dlprobe.probes.multihead.objectives import Importance, Objective, objective

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.multihead.columns import Folded
    from dlprobe.probes.multihead.objectives import Labels
    from dlprobe.probes.multihead.workers import Workers

#: Columns of one matrix product. It bounds memory: a panel holds one number for each of its columns and patches.
PANEL_COLUMNS = 512


class Run(NamedTuple):
    """Neighbouring columns that share objective and scheme; `columns` counts from the start of the panel."""

    columns: slice
    objective: str
    scheme: str


class Panel(NamedTuple):
    """Columns that go through one matrix product; `columns` counts from the first of all."""

    columns: slice
    runs: tuple[Run, ...]


class Gradients(NamedTuple):
    """Loss and gradients of all columns for one batch.

    Parameters
    ----------
    loss : Tensor, shape (columns,)
        The columns of a head with several classes all have the head's loss.
    weights : Tensor, shape (columns, width)
    bias : Tensor, shape (columns,)
    lone, all : Tensor, shape (columns,)
        Sum of absolute gradients by logit, over windows without positives and over all; only for ``dice-window``.
    """

    loss: Tensor
    weights: Tensor
    bias: Tensor
    lone: Tensor
    all: Tensor


def column_order(heads: Sequence[HeadSpec]) -> list[int]:
    """Return the order of heads in which those of one objective and scheme are neighbours."""
    return sorted(range(len(heads)), key=lambda i: (heads[i].objective, heads[i].scheme))


def cut_panels(heads: Sequence[HeadSpec]) -> list[Panel]:
    """Cut ordered heads into panels of at most `PANEL_COLUMNS` columns, and these into runs."""
    panels: list[Panel] = []
    start, runs, end = 0, list[Run](), 0
    for head in heads:
        if end - start + head.n_logits > PANEL_COLUMNS and runs:
            panels.append(Panel(slice(start, end), tuple(runs)))
            start, runs = end, []
        inside = slice(end - start, end - start + head.n_logits)
        if runs and (runs[-1].objective, runs[-1].scheme) == (head.objective, head.scheme):
            runs[-1] = runs[-1]._replace(columns=slice(runs[-1].columns.start, inside.stop))
        else:
            runs.append(Run(inside, head.objective, head.scheme))
        end += head.n_logits
    return [*panels, Panel(slice(start, end), tuple(runs))]


class PanelEngine:
    """Computes loss and gradients of all heads for one batch, reusing its buffers from step to step.

    Parameters
    ----------
    heads : sequence of HeadSpec
        Ordered by `column_order`.
    width : int
        Numbers per patch.
    smooth : float
        Smoothing of region losses.
    dtype : torch.dtype
        Of the operands of the matrix products.
    workers : Workers
    device : torch.device
    """

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        *,
        width: int,
        smooth: float,
        dtype: torch.dtype,
        workers: Workers,
        device: torch.device,
    ) -> None:
        self._workers = workers
        self._panels = cut_panels(heads)
        self._objectives: dict[tuple[str, str], Objective] = {
            (head.objective, head.scheme): objective(head.objective, head.n_logits, smooth) for head in heads
        }
        self._dtype = dtype
        positive = [head.positive_weight for head in heads for _ in range(head.n_logits)]
        self._positive_weight = torch.tensor(positive, dtype=torch.float32, device=device)
        self._logits = torch.empty(0, dtype=dtype, device=device)
        columns = len(positive)
        self._gradients = Gradients(*(torch.zeros(shape, device=device) for shape in _shapes(columns, width)))

    def __call__(self, rows: Tensor, folded: Folded, labels: Mapping[str, Labels], counts: Tensor) -> Gradients:
        """Return loss and gradients, valid until the next call.

        Parameters
        ----------
        rows : Tensor, shape (windows * patches, width)
            Centred embeddings.
        folded : Folded
            Weights and bias of the columns on `rows`.
        labels : mapping of str to Labels
            Targets of the patches under each scheme.
        counts : Tensor, shape (windows, columns)
            How many times each window counts for each column.

        Returns
        -------
        Gradients
            With respect to the folded weights and bias.
        """
        if not len(rows):
            for each in self._gradients:
                each.zero_()
            return self._gradients
        weights = folded.weights.to(self._dtype)
        for panel in self._panels:
            logits = self._buffer(len(counts), rows, panel)
            flat = logits.view(len(rows), -1)
            self._forward(rows, weights[panel.columns], flat)
            for run in panel.runs:
                columns = slice(panel.columns.start + run.columns.start, panel.columns.start + run.columns.stop)
                bias = folded.bias[columns]
                self._differentiate(
                    logits[..., run.columns], bias, run, columns, labels=labels[run.scheme], counts=counts
                )
            self._backward(rows, flat, panel)
        return self._gradients

    def _forward(self, rows: Tensor, weights: Tensor, logits: Tensor) -> None:
        self._workers.map(lambda part: torch.mm(rows[part], weights.T, out=logits[part]), len(rows))

    def _backward(self, rows: Tensor, gradients: Tensor, panel: Panel) -> None:
        parts = self._workers.map(lambda part: (gradients[part].T @ rows[part]).float(), len(rows))
        torch.sum(torch.stack(parts), dim=0, out=self._gradients.weights[panel.columns])

    def _buffer(self, n_windows: int, rows: Tensor, panel: Panel) -> Tensor:
        n_columns = panel.columns.stop - panel.columns.start
        needed = len(rows) * n_columns
        if len(self._logits) < needed:
            self._logits = torch.empty(needed, dtype=self._dtype, device=rows.device)
        return self._logits[:needed].view(n_windows, len(rows) // n_windows, n_columns)

    def _differentiate(
        self, logits: Tensor, bias: Tensor, run: Run, columns: slice, *, labels: Labels, counts: Tensor
    ) -> None:
        """Turn the logits of a run into gradients by logit, in place, and note its losses and gradients by bias."""
        importance = Importance(counts[:, columns], self._positive_weight[columns])
        minimised = self._objectives[run.objective, run.scheme]
        found = minimised.differentiate(logits, bias, labels, importance, self._workers)
        self._gradients.loss[columns], self._gradients.bias[columns] = found.loss, found.bias
        if run.objective == "dice-window":
            sizes = logits.abs().sum(dim=1, dtype=torch.float32)
            lone = (labels.sums[:, -2] == 0).float()
            self._gradients.lone[columns] = lone @ sizes
            self._gradients.all[columns] = sizes.sum(dim=0)


def _shapes(columns: int, width: int) -> list[tuple[int, ...]]:
    """Return the shapes of the fields of `Gradients`."""
    return [(columns,), (columns, width), (columns,), (columns,), (columns,)]
