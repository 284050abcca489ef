"""Region losses and their gradients, written as sums so that many heads and many tiles share one pass.

A column is the logit of one head. With probabilities p, targets t, patch weights m and smoothing s, the Dice loss of a
column is ``1 - (2 I + s) / (P + T + s)``, where ``I = sum m t p``, ``P = sum m p`` and ``T = sum m t`` run over the
patches of a batch or of one window (Milletari et al. 2016, eq. 2 without squares; MONAI's ``DiceLoss`` with
``smooth_nr = smooth_dr = s``). Its gradient with respect to the probability of a patch is linear in the target,
``m (slope t + level)``: two numbers for each column say it all. The same holds for the Tversky loss.

The terms are plain arithmetic on NumPy arrays or torch tensors; torch is loaded by the functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, dtype

Reduction = Literal["batch", "window"]
SMOOTH = 1e-5
#: Costs of a false alarm and of a miss in the Tversky loss; Salehi et al. 2017, whose best were these.
TVERSKY_FALSE_ALARM, TVERSKY_MISS = 0.3, 0.7


class RegionTerms(NamedTuple):
    """Loss of each column, and its derivative by a probability: patch weight times (slope times target plus level)."""

    loss: Any
    slope: Any
    level: Any


def dice_terms(
    overlap: Any, predicted: Any, positives: Any, *, smooth: float = SMOOTH, positive_weight: Any = 1.0
) -> RegionTerms:
    """Return the Dice loss and its derivative from three sums.

    Parameters
    ----------
    overlap, predicted, positives : Tensor or ndarray
        Sums of target times probability, of probability and of target over the patches that count; broadcastable.
    smooth : float
        Added to numerator and denominator.
    positive_weight : Tensor, ndarray or float
        A positive patch counts this many times; broadcastable.

    Returns
    -------
    RegionTerms
        Each of the broadcast shape.
    """
    extra = positive_weight - 1
    numerator = 2 * positive_weight * overlap + smooth
    denominator = predicted + extra * overlap + positive_weight * positives + smooth
    level = numerator / denominator**2
    slope = extra * level - 2 * positive_weight / denominator
    return RegionTerms(1 - numerator / denominator, slope, level)


def tversky_terms(
    overlap: Any, predicted: Any, positives: Any, *, smooth: float = SMOOTH, positive_weight: Any = 1.0
) -> RegionTerms:
    """Return the Tversky loss (Salehi et al. 2017, eq. 3) and its derivative from three sums.

    Parameters
    ----------
    overlap, predicted, positives, smooth, positive_weight
        As for `dice_terms`.

    Returns
    -------
    RegionTerms
        Each of the broadcast shape.
    """
    false_alarms = predicted - overlap
    misses = positive_weight * (positives - overlap)
    numerator = positive_weight * overlap + smooth
    denominator = numerator + TVERSKY_FALSE_ALARM * false_alarms + TVERSKY_MISS * misses
    steepness = numerator / denominator**2
    growth = positive_weight * (1 - TVERSKY_MISS) - TVERSKY_FALSE_ALARM
    slope = steepness * growth - positive_weight / denominator
    return RegionTerms(1 - numerator / denominator, slope, steepness * TVERSKY_FALSE_ALARM)


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
    loss: Tensor = _dice(probabilities, targets, weights, smooth, reduction)[0].loss
    return loss


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
    import torch

    terms, basis, window_weights = _dice(probabilities, targets, weights, smooth, reduction)
    coefficients = torch.stack([terms.slope, terms.level], dim=-2) * window_weights
    return probabilities * (1 - probabilities) * (basis @ coefficients)


def target_basis(targets: Tensor, kind: dtype, classes: int = 1) -> Tensor:
    """Return target and membership of each patch, both 0 where it is ignored.

    Parameters
    ----------
    targets : Tensor, shape (windows, patches)
        In [0, 1] for one class, a class number for several; negative or NaN where ignored.
    kind : torch.dtype
        Of the result.
    classes : int
        How many classes there are to tell apart; 1 means a positive class against the rest.

    Returns
    -------
    Tensor, shape (windows, patches, classes + 1)
    """
    import torch

    known = targets >= 0
    if classes == 1:
        parts = [torch.where(known, targets.to(kind), 0)]
    else:
        parts = [(targets == each).to(kind) for each in range(classes)]
    return torch.stack([*parts, known.to(kind)], dim=-1)


def _dice(
    probabilities: Tensor, targets: Tensor, weights: Tensor | None, smooth: float, reduction: Reduction
) -> tuple[RegionTerms, Tensor, Tensor]:
    import torch

    basis = target_basis(targets, probabilities.dtype)
    counts = probabilities.new_ones(len(basis)) if weights is None else weights.to(probabilities.dtype)
    sums = basis.transpose(1, 2) @ probabilities
    positives = basis[..., 0].sum(dim=1)
    if reduction == "window":
        each = dice_terms(sums[:, 0], sums[:, 1], positives[:, None], smooth=smooth)
        share = (counts / counts.sum())[:, None]
        return each._replace(loss=(share * each.loss).sum(dim=0)), basis, share[..., None]
    total = torch.einsum("n,nkc->kc", counts, sums)
    return dice_terms(total[0], total[1], counts @ positives, smooth=smooth), basis, counts[:, None, None]
