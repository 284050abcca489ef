"""The Dice loss and its gradient, written as sums so that many heads and many tiles share one pass.

A column is the logit of one head. With probabilities p, targets t, patch weights m and smoothing s, the loss of a
column is ``1 - (2 I + s) / (P + T + s)``, where ``I = sum m t p``, ``P = sum m p`` and ``T = sum m t`` run over the
patches of a batch or of one window (Milletari et al. 2016, eq. 2 without squares; MONAI's ``DiceLoss`` with
``smooth_nr = smooth_dr = s``). Its gradient with respect to the probability of a patch is linear in the target,
``m (slope t + level)``: two numbers for each column say it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["batch", "window"]
SMOOTH = 1e-5


class DiceTerms(NamedTuple):
    """Loss of each column, and its derivative by a probability: patch weight times (slope times target plus level)."""

    loss: Tensor
    slope: Tensor
    level: Tensor


def dice_terms(
    overlap: Tensor,
    predicted: Tensor,
    positives: Tensor,
    *,
    smooth: float = SMOOTH,
    positive_weight: Tensor | float = 1.0,
) -> DiceTerms:
    """Return the Dice loss and its derivative from three sums.

    Parameters
    ----------
    overlap, predicted, positives : Tensor
        Sums of target times probability, of probability and of target over the patches that count; broadcastable.
    smooth : float
        Added to numerator and denominator.
    positive_weight : Tensor or float
        A positive patch counts this many times; broadcastable.

    Returns
    -------
    DiceTerms
        Each of the broadcast shape.
    """
    extra = positive_weight - 1
    numerator = 2 * positive_weight * overlap + smooth
    denominator = predicted + extra * overlap + positive_weight * positives + smooth
    level = numerator / denominator.square()
    slope = extra * level - 2 * positive_weight / denominator
    return DiceTerms(1 - numerator / denominator, slope, level)


def dice_loss(
    probabilities: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    smooth: float = SMOOTH,
    reduction: Reduction = "batch",
) -> Tensor:
    """Return the Dice loss of each column.

    Parameters
    ----------
    probabilities : Tensor, shape (windows, patches, columns)
    targets : Tensor, shape (windows, patches)
        In [0, 1]; negative or NaN where ignored.
    weights : Tensor, shape (windows,), optional
        How many times each window counts; once by default.
    smooth : float
        Added to numerator and denominator.
    reduction : {'batch', 'window'}
        One Dice over all windows (MONAI's ``batch=True``), or the weighted mean of one Dice per window.

    Returns
    -------
    Tensor, shape (columns,)
    """
    return _dice(probabilities, targets, weights, smooth, reduction)[0].loss


def dice_gradient(
    probabilities: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    smooth: float = SMOOTH,
    reduction: Reduction = "batch",
) -> Tensor:
    """Return the gradient of `dice_loss` with respect to the logits, exactly zero where the target is ignored.

    Parameters
    ----------
    probabilities, targets, weights, smooth, reduction
        As for `dice_loss`; the probabilities are sigmoids of the logits.

    Returns
    -------
    Tensor, shape (windows, patches, columns)
    """
    terms, patch_basis, window_weights = _dice(probabilities, targets, weights, smooth, reduction)
    coefficients = torch.stack([terms.slope, terms.level], dim=-2) * window_weights
    return probabilities * (1 - probabilities) * (patch_basis @ coefficients)


def target_basis(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return target and membership of each patch, both 0 where it is ignored.

    Parameters
    ----------
    targets : Tensor, shape (windows, patches)
        In [0, 1]; negative or NaN where ignored.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    Tensor, shape (windows, patches, 2)
    """
    known = targets >= 0
    return torch.stack([torch.where(known, targets.to(dtype), 0), known.to(dtype)], dim=-1)


def _dice(
    probabilities: Tensor, targets: Tensor, weights: Tensor | None, smooth: float, reduction: Reduction
) -> tuple[DiceTerms, Tensor, Tensor]:
    basis = target_basis(targets, probabilities.dtype)
    n_windows = len(basis)
    counts = probabilities.new_ones(n_windows) if weights is None else weights.to(probabilities.dtype)
    sums = basis.transpose(1, 2) @ probabilities
    positives = basis[..., 0].sum(dim=1)
    if reduction == "window":
        each = dice_terms(sums[:, 0], sums[:, 1], positives[:, None], smooth=smooth)
        share = (counts / counts.sum())[:, None]
        return DiceTerms((share * each.loss).sum(dim=0), each.slope, each.level), basis, share[..., None]
    total = torch.einsum("n,nkc->kc", counts, sums)
    return dice_terms(total[0], total[1], counts @ positives, smooth=smooth), basis, counts[:, None, None]
