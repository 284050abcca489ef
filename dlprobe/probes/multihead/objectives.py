"""Objectives: each turns the logits of its columns into gradients by logit, in place, and returns their losses.

All see a batch in two sweeps of tiles: the first makes sums over patches, the second gradients from these sums. What
lies between the matrix products is float32 in both, whatever the logits are: a sigmoid in bfloat16 is 1 from a logit of
6 on, and a patch that is wrong there would have no gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn.functional import softplus

from dlprobe.probes.losses import Reduction, RegionTerms, dice_terms, tversky_terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dlprobe.probes.multihead.workers import Workers

#: Numbers of a tile between the matrix products; two of them, 1 MB in float32, stay in the cache of a processor.
TILE_NUMBERS = 1 << 17
#: Windows and patches.
Tile = tuple[slice, slice]
FOCAL_POWER = 2  # Lin et al. 2017, section 4.1


class Labels(NamedTuple):
    """Targets of a batch under one scheme.

    Parameters
    ----------
    basis : Tensor of float32, shape (windows, patches, classes + 1)
        Target or class indicators, and membership, of every patch; zeros where it is ignored.
    sums : Tensor of float32, shape (windows, classes + 1)
        Of `basis` over patches.
    """

    basis: Tensor
    sums: Tensor


class Importance(NamedTuple):
    """How much windows and positive patches count.

    Parameters
    ----------
    counts : Tensor of float32, shape (windows, columns)
        How many times a window counts for a column.
    positive : Tensor of float32, shape (columns,)
        How many times a positive patch counts.
    """

    counts: Tensor
    positive: Tensor


class Slopes(NamedTuple):
    """What an objective finds beside the gradients by logit.

    Parameters
    ----------
    loss : Tensor of float32, shape (columns,)
    bias : Tensor of float32, shape (columns,)
        Sum of the gradients over all patches.
    """

    loss: Tensor
    bias: Tensor


class Objective(Protocol):
    """What is minimised, for columns that share it and a scheme."""

    def differentiate(
        self, logits: Tensor, bias: Tensor, labels: Labels, importance: Importance, workers: Workers
    ) -> Slopes:
        """Turn logits into gradients by logit, in place.

        Parameters
        ----------
        logits : Tensor, shape (windows, patches, columns)
            Without their bias.
        bias : Tensor of float32, shape (columns,)
        labels : Labels
        importance : Importance
        workers : Workers

        Returns
        -------
        Slopes
        """
        ...


class Tiled(ABC):
    """An objective that needs no more of a batch than sums over patches."""

    def differentiate(
        self, logits: Tensor, bias: Tensor, labels: Labels, importance: Importance, workers: Workers
    ) -> Slopes:
        """Turn logits into gradients by logit, in place, and return losses and gradients by bias."""

        def gather(part: slice) -> list[Tensor]:
            scratch = _Scratch(logits, bias)
            return [
                torch.stack([self._gather(scratch.load(tile), labels.basis[tile]) for tile in tiles]).sum(dim=0)
                for tiles in cut_tiles(logits, part)
            ]

        sums = torch.cat([each for part in workers.map(gather, len(logits), logits.numel()) for each in part])
        loss, coefficients = self._settle(sums, labels, importance)

        def slope(part: slice) -> Tensor:
            scratch = _Scratch(logits, bias)
            total = torch.zeros_like(bias)
            for tile in chain.from_iterable(cut_tiles(logits, part)):
                values = scratch.load(tile)
                self._slope(values, labels.basis[tile], coefficients[tile[0]], scratch)
                logits[tile].copy_(values)
                total += values.sum(dim=(0, 1))
            return total

        return Slopes(loss, torch.stack(workers.map(slope, len(logits), logits.numel())).sum(dim=0))

    @abstractmethod
    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        """Return sums over the patches of each window, (windows, k, columns); may overwrite `logits`."""

    @abstractmethod
    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        """Return losses (columns,), and coefficients (windows, k, columns) for `_slope`."""

    @abstractmethod
    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        """Overwrite logits with gradients by logit."""


class Region(Tiled):
    """Dice or Tversky, over the batch or for each window.

    Parameters
    ----------
    terms : callable
        `dice_terms` or `tversky_terms`.
    reduction : {'batch', 'window'}
    smooth : float
    """

    def __init__(self, terms: Callable[..., RegionTerms], reduction: Reduction, smooth: float) -> None:
        self._terms = partial(terms, smooth=smooth)
        self._reduction = reduction

    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        return _sums(logits.sigmoid_(), basis)

    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        return self._reduce(sums[:, 0], sums[:, 1], labels.sums[:, :1], importance)

    def _reduce(
        self, overlap: Tensor, predicted: Tensor, positives: Tensor, importance: Importance
    ) -> tuple[Tensor, Tensor]:
        """Return losses and coefficients from the sums of each window and column."""
        counts = importance.counts
        if self._reduction == "window":
            share = counts / counts.sum(dim=0).clamp_min(1)
            each = self._terms(overlap, predicted, positives, positive_weight=importance.positive)
            return (share * each.loss).sum(dim=0), torch.stack([share * each.slope, share * each.level], dim=1)
        overlap, predicted, positives = ((counts * each).sum(dim=0) for each in (overlap, predicted, positives))
        terms = self._terms(overlap, predicted, positives, positive_weight=importance.positive)
        return terms.loss, torch.stack([counts * terms.slope, counts * terms.level], dim=1)

    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        logits.sigmoid_()
        logits.addcmul_(logits, logits, value=-1).mul_(scratch.product(basis, coefficients))


class SoftmaxDice(Region):
    """Dice of each class of a softmax, averaged over the classes; neighbouring columns are the classes of a head.

    Parameters
    ----------
    classes : int
    reduction : {'batch', 'window'}
    smooth : float
    """

    def __init__(self, classes: int, reduction: Reduction, smooth: float) -> None:
        super().__init__(dice_terms, reduction, smooth)
        self._classes = classes

    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        self._by_head(logits).copy_(self._by_head(logits).softmax(dim=-1))
        return _sums(logits, basis)

    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        columns = torch.arange(sums.shape[2], device=sums.device)
        own = columns % self._classes
        losses, terms = self._reduce(sums[:, own, columns], sums[:, -1], labels.sums[:, own], importance)
        coefficients = torch.zeros_like(sums)
        coefficients[:, own, columns] = terms[:, 0]
        coefficients[:, -1] = terms[:, 1]
        mean = self._by_head(losses).mean(dim=1).repeat_interleave(self._classes)
        return mean, coefficients / self._classes

    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        probabilities = self._by_head(logits)
        probabilities.copy_(probabilities.softmax(dim=-1))
        slopes = self._by_head(scratch.product(basis, coefficients))
        mean = (probabilities * slopes).sum(dim=-1, keepdim=True)
        probabilities.mul_(slopes.sub_(mean))

    def _by_head(self, columns: Tensor) -> Tensor:
        return columns.view(*columns.shape[:-1], -1, self._classes)


class CrossEntropy(Tiled):
    """Binary cross-entropy, averaged over the patches that count (torch's, with ``pos_weight``)."""

    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        return _cross_entropy_sums(logits, basis)

    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        share = _share_of_patches(labels, importance)
        return _cross_entropy(sums, share, importance), self._coefficients(share, importance)

    def _coefficients(self, share: Tensor, importance: Importance) -> Tensor:
        """Return factors of the probability (for target and membership) and of the target alone."""
        heavier = importance.positive * share
        return torch.stack([heavier - share, share, -heavier], dim=1)

    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        logits.sigmoid_().mul_(scratch.product(basis, coefficients[:, :2]))
        logits.add_(scratch.product(basis[..., :1], coefficients[:, 2:]))


class RegionAndCrossEntropy(Tiled):
    """Sum of Dice over the batch and binary cross-entropy (MONAI's ``DiceCELoss`` with both lambdas 1).

    Parameters
    ----------
    smooth : float
    """

    def __init__(self, smooth: float) -> None:
        self._region = Region(dice_terms, "batch", smooth)
        self._entropy = CrossEntropy()

    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        entropy = self._entropy._gather(logits, basis)
        return torch.cat([self._region._gather(logits, basis), entropy], dim=1)

    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        region, region_terms = self._region._settle(sums[:, :2], labels, importance)
        entropy, entropy_terms = self._entropy._settle(sums[:, 2:], labels, importance)
        return region + entropy, torch.cat([region_terms, entropy_terms], dim=1)

    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        by_region = logits.clone()
        self._region._slope(by_region, basis, coefficients[:, :2], scratch)
        self._entropy._slope(logits, basis, coefficients[:, 2:], scratch)
        logits.add_(by_region)


class Focal(Tiled):
    """Focal loss with power 2 and no class weight but `positive_weight`, averaged over the patches that count."""

    def _gather(self, logits: Tensor, basis: Tensor) -> Tensor:
        miss, false_alarm = (_focal(sign * logits)[0] for sign in (1, -1))
        known = basis[..., 1:] - basis[..., :1]
        return torch.cat([_sums(miss, basis[..., :1]), _sums(false_alarm, known)], dim=1)

    def _settle(self, sums: Tensor, labels: Labels, importance: Importance) -> tuple[Tensor, Tensor]:
        share = _share_of_patches(labels, importance)
        heavier = importance.positive * share
        return (heavier * sums[:, 0] + share * sums[:, 1]).sum(dim=0), torch.stack([heavier, share], dim=1)

    def _slope(self, logits: Tensor, basis: Tensor, coefficients: Tensor, scratch: _Scratch) -> None:
        miss, false_alarm = _focal(logits)[1], _focal(-logits)[1]
        known = basis[..., 1:] - basis[..., :1]
        miss.mul_(scratch.product(basis[..., :1], coefficients[:, :1]))
        logits.copy_(miss.addcmul_(false_alarm, scratch.product(known, coefficients[:, 1:]), value=-1))


class Lovasz:
    """Lovasz hinge over the batch (Berman et al. 2018, eq. 8 and algorithm 1): a convex bound of one minus IoU.

    Errors are sorted for each column, in float32; targets are decided at one half.
    """

    def differentiate(
        self, logits: Tensor, bias: Tensor, labels: Labels, importance: Importance, workers: Workers
    ) -> Slopes:
        """Turn logits into gradients by logit, in place, and return the rest; threads share out the columns."""

        def columns(part: slice) -> Slopes:
            mine = Importance(importance.counts[:, part], importance.positive[part])
            return self._columns(logits[..., part], bias[part], labels, mine)

        loss, total = zip(*workers.map(columns, logits.shape[-1]), strict=True)
        return Slopes(torch.cat(loss), torch.cat(total))

    def _columns(self, logits: Tensor, bias: Tensor, labels: Labels, importance: Importance) -> Slopes:
        target = _exact(labels.basis[..., :1] >= 0.5)
        weight = _exact(labels.basis[..., 1:]) * importance.counts[:, None, :]
        weight = weight * torch.where(target > 0, importance.positive, 1.0)
        signs = (2 * target - 1).expand_as(weight).flatten(0, 1)
        errors, order = (1 - (_exact(logits) + bias).flatten(0, 1) * signs).sort(dim=0, descending=True)
        weight = weight.flatten(0, 1).gather(0, order)
        found = weight * (signs.gather(0, order) > 0)
        steps = _jaccard_steps(found, weight)
        gradient = torch.where(errors > 0, -steps, 0) * signs.gather(0, order)
        logits.copy_(torch.empty_like(gradient).scatter_(0, order, gradient).view_as(logits))
        return Slopes((errors.clamp_min(0) * steps).sum(dim=0), gradient.sum(dim=0))


def objective(name: str, classes: int, smooth: float) -> Objective:
    """Return an objective.

    Parameters
    ----------
    name : str
        One of `dlprobe.probes.heads.OBJECTIVES`.
    classes : int
        1 for one logit, else the classes of a softmax.
    smooth : float
        Smoothing of region losses.

    Returns
    -------
    Objective
    """
    if classes > 1:
        return SoftmaxDice(classes, "window" if name == "dice-window" else "batch", smooth)
    made: dict[str, Callable[[], Objective]] = {
        "dice-batch": lambda: Region(dice_terms, "batch", smooth),
        "dice-window": lambda: Region(dice_terms, "window", smooth),
        "tversky": lambda: Region(tversky_terms, "batch", smooth),
        "bce": CrossEntropy,
        "dice+bce": lambda: RegionAndCrossEntropy(smooth),
        "focal": Focal,
        "lovasz": Lovasz,
    }
    return made[name]()


def cut_tiles(logits: Tensor, part: slice) -> list[list[Tile]]:
    """Cut a part of the windows into lists of tiles that share their windows; all of them are one tile on a device."""
    _, patches, columns = logits.shape
    if logits.is_cuda:
        return [[(part, slice(0, patches))]]
    windows = max(1, TILE_NUMBERS // (patches * columns))
    rows = max(1, TILE_NUMBERS // columns)
    within = [slice(start, min(start + rows, patches)) for start in range(0, patches, rows)]
    outer = [slice(start, min(start + windows, part.stop)) for start in range(part.start, part.stop, windows)]
    return [[(each, inner) for inner in within] for each in outer]


class _Scratch:
    """Two tiles of one thread, float32 or float64 if the logits are, which it uses again and again."""

    def __init__(self, logits: Tensor, bias: Tensor) -> None:
        self._logits = logits
        self._bias = bias
        self._kind = torch.promote_types(logits.dtype, torch.float32)
        self._values = torch.empty(0, dtype=self._kind, device=logits.device)
        self._product = torch.empty_like(self._values)

    def load(self, tile: Tile) -> Tensor:
        """Return a copy of a tile of the logits with their bias, valid until the next."""
        logits = self._logits[tile]
        if len(self._values) < logits.numel():
            self._values = torch.empty(logits.numel(), dtype=self._kind, device=logits.device)
        return self._values[: logits.numel()].view(logits.shape).copy_(logits).add_(self._bias)

    def product(self, basis: Tensor, coefficients: Tensor) -> Tensor:
        """Return coefficients spread over the patches of a tile, valid until the next."""
        shape = (*basis.shape[:2], coefficients.shape[2])
        needed = shape[0] * shape[1] * shape[2]
        if len(self._product) < needed:
            self._product = torch.empty(needed, dtype=self._kind, device=basis.device)
        return torch.bmm(basis, coefficients, out=self._product[:needed].view(shape))


def _sums(values: Tensor, basis: Tensor) -> Tensor:
    """Return sums over patches of values times each column of the basis, (windows, k, columns)."""
    return basis.transpose(1, 2) @ values


def _exact(values: Tensor) -> Tensor:
    """Return values as float32, or float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _cross_entropy_sums(logits: Tensor, basis: Tensor) -> Tensor:
    """Return sums of target times softplus, of softplus, and of target times logit."""
    return torch.cat([_sums(softplus(logits), basis), _sums(logits, basis[..., :1])], dim=1)


def _cross_entropy(sums: Tensor, share: Tensor, importance: Importance) -> Tensor:
    positive, all_patches, logits = sums.unbind(dim=1)
    return (share * (all_patches + (importance.positive - 1) * positive - importance.positive * logits)).sum(dim=0)


def _share_of_patches(labels: Labels, importance: Importance) -> Tensor:
    """Return how much a patch of each window counts in the mean over patches, (windows, columns)."""
    patches = (importance.counts * labels.sums[:, -1:]).sum(dim=0)
    return importance.counts / patches.clamp_min(1)


def _focal(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return focal loss of a positive patch, and its derivative by the logit."""
    missing, entropy = torch.sigmoid(-logits), softplus(-logits)
    scale = missing**FOCAL_POWER
    return scale * entropy, -scale * (FOCAL_POWER * (1 - missing) * entropy + missing)


def _jaccard_steps(found: Tensor, weight: Tensor) -> Tensor:
    """Return by how much one minus IoU grows with each further error, along the first axis."""
    positives = found.sum(dim=0)
    missed = found.cumsum(dim=0)
    union = positives + (weight - found).cumsum(dim=0)
    jaccard = torch.where(union > 0, 1 - (positives - missed) / union, 0)
    return torch.cat([jaccard[:1], jaccard.diff(dim=0)])
