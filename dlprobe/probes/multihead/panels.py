"""One batch through all heads: forward, loss, gradient, in panels of columns and tiles of windows that fit a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from dlprobe.probes.losses import dice_terms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.multihead.columns import Folded

#: Columns of one matrix product. It bounds memory: a panel holds one number for each of its columns and patches.
PANEL_COLUMNS = 512
#: Numbers of a tile between the matrix products, so that it stays in the cache of the processor.
TILE_NUMBERS = 1 << 18


class Run(NamedTuple):
    """Neighbouring columns that share objective and scheme; `columns` counts from the start of the panel."""

    columns: slice
    objective: str
    scheme: str


class Panel(NamedTuple):
    """Columns that go through one matrix product; `columns` counts from the first head."""

    columns: slice
    runs: tuple[Run, ...]


class Gradients(NamedTuple):
    """Loss and gradients of all heads for one batch; shapes (heads,), (heads, width), (heads,)."""

    loss: Tensor
    weights: Tensor
    bias: Tensor


class Labels(NamedTuple):
    """Targets of a batch: for each scheme target and membership of every patch (n, patches, 2), and its type."""

    basis: Mapping[str, Tensor]
    positives: Mapping[str, Tensor]


def column_order(heads: Sequence[HeadSpec]) -> list[int]:
    """Return the order of heads in which those of one objective and scheme are neighbours."""
    return sorted(range(len(heads)), key=lambda i: (heads[i].objective, heads[i].scheme))


def cut_panels(heads: Sequence[HeadSpec], panel_columns: int = PANEL_COLUMNS) -> list[Panel]:
    """Cut ordered heads into panels, and these into runs."""
    panels = []
    for start in range(0, len(heads), panel_columns):
        inside = heads[start : start + panel_columns]
        kinds = [(head.objective, head.scheme) for head in inside]
        firsts = [i for i in range(len(inside)) if i == 0 or kinds[i] != kinds[i - 1]]
        lasts = [*firsts[1:], len(inside)]
        runs = tuple(Run(slice(a, b), *kinds[a]) for a, b in zip(firsts, lasts, strict=True))
        panels.append(Panel(slice(start, start + len(inside)), runs))
    return panels


class PanelEngine:
    """Computes loss and gradients of all heads for one batch, reusing its buffers from step to step.

    Parameters
    ----------
    heads : sequence of HeadSpec
        Ordered by `column_order`.
    width : int
        Numbers per patch.
    smooth : float
        Smoothing of Dice.
    dtype : torch.dtype
        Of the operands of the matrix products.
    device : torch.device
    """

    def __init__(
        self, heads: Sequence[HeadSpec], width: int, smooth: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._panels = cut_panels(heads)
        self._smooth = smooth
        self._dtype = dtype
        self._positive_weight = torch.tensor([head.positive_weight for head in heads], device=device)
        self._logits = torch.empty(0, dtype=dtype, device=device)
        self._gradients = Gradients(
            torch.empty(len(heads), device=device),
            torch.empty((len(heads), width), device=device),
            torch.empty(len(heads), device=device),
        )

    def __call__(self, rows: Tensor, folded: Folded, labels: Labels, counts: Tensor) -> Gradients:
        """Return loss and gradients, valid until the next call.

        Parameters
        ----------
        rows : Tensor, shape (windows * patches, width)
            Standardised embeddings.
        folded : Folded
            Weights and bias of the heads on `rows`.
        labels : Labels
            Targets of the patches.
        counts : Tensor, shape (windows, heads)
            How many times each window counts for each head.

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
            self._forward(rows, weights[panel.columns], folded.bias[panel.columns], logits)
            for run in panel.runs:
                self._differentiate(logits[..., run.columns], run, panel, labels, counts)
            self._backward(rows, logits, panel)
        return self._gradients

    def _buffer(self, n_windows: int, rows: Tensor, panel: Panel) -> Tensor:
        n_columns = panel.columns.stop - panel.columns.start
        needed = len(rows) * n_columns
        if len(self._logits) < needed:
            self._logits = torch.empty(needed, dtype=self._dtype, device=rows.device)
        return self._logits[:needed].view(n_windows, len(rows) // n_windows, n_columns)

    def _forward(self, rows: Tensor, weights: Tensor, bias: Tensor, logits: Tensor) -> None:
        flat = logits.view(len(rows), -1)
        torch.addmm(bias.to(self._dtype), rows, weights.T, out=flat)

    def _differentiate(self, logits: Tensor, run: Run, panel: Panel, labels: Labels, counts: Tensor) -> None:
        """Turn the logits of a run into gradients by logit, in place, and note its loss."""
        start = panel.columns.start
        heads = slice(start + run.columns.start, start + run.columns.stop)
        basis = labels.basis[run.scheme]
        tiles = _tiles(logits)
        sums = torch.cat([_sums(logits[tile].sigmoid_(), basis[tile]) for tile in tiles])
        loss, coefficients = self._dice(run, heads, sums, labels.positives[run.scheme], counts[:, heads])
        for tile in tiles:
            probabilities = logits[tile]
            slopes = basis[tile] @ coefficients[tile].to(self._dtype)
            probabilities.addcmul_(probabilities, probabilities, value=-1).mul_(slopes)
        self._gradients.loss[heads] = loss

    def _dice(self, run: Run, heads: slice, sums: Tensor, positives: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each column, and slope and level by window and column, shape (windows, 2, columns)."""
        heavier = self._positive_weight[heads]
        if run.objective == "dice-window":
            share = counts / counts.sum(dim=0).clamp_min(1)
            each = dice_terms(sums[:, 0], sums[:, 1], positives[:, None], smooth=self._smooth, positive_weight=heavier)
            return (share * each.loss).sum(dim=0), torch.stack([share * each.slope, share * each.level], dim=1)
        total = torch.einsum("nh,nkh->kh", counts, sums)
        terms = dice_terms(total[0], total[1], positives @ counts, smooth=self._smooth, positive_weight=heavier)
        return terms.loss, torch.stack([counts * terms.slope, counts * terms.level], dim=1)

    def _backward(self, rows: Tensor, gradients: Tensor, panel: Panel) -> None:
        flat = gradients.view(len(rows), -1)
        self._gradients.weights[panel.columns] = flat.T @ rows
        self._gradients.bias[panel.columns] = flat.sum(dim=0, dtype=torch.float32)


def _tiles(logits: Tensor) -> list[slice]:
    n_windows, patches, columns = logits.shape
    step = n_windows if logits.is_cuda else max(1, TILE_NUMBERS // (patches * columns))
    return [slice(start, min(start + step, n_windows)) for start in range(0, n_windows, step)]


def _sums(probabilities: Tensor, basis: Tensor) -> Tensor:
    """Return sums over patches of target times probability, and of probability; float32, (windows, 2, columns)."""
    return (basis.transpose(1, 2) @ probabilities).float()
