"""The Dice loss against MONAI and autograd."""

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from dlprobe.probes.losses import dice_gradient, dice_loss, dice_terms

WINDOWS, PATCHES, COLUMNS = 5, 37, 4


def problem(seed=0, positives=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(WINDOWS, PATCHES, COLUMNS, generator=generator, dtype=torch.float64)
    targets = (torch.rand(WINDOWS, PATCHES, generator=generator) < positives).to(torch.float64)
    return logits, targets


def monai_loss(logits, targets, reduction, smooth):
    """Per column: each column is a sample set of one channel."""
    loss = DiceLoss(sigmoid=True, batch=reduction == "batch", smooth_nr=smooth, smooth_dr=smooth)
    return torch.stack([loss(logits[:, None, :, c], targets[:, None]) for c in range(logits.shape[-1])])


@pytest.mark.parametrize("reduction", ["batch", "window"])
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
@pytest.mark.parametrize("positives", [0.3, 0.02, 0.0, 1.0])
def test_loss_and_gradient_agree_with_monai(reduction, smooth, positives):
    logits, targets = problem(positives=positives)
    logits.requires_grad_()
    expected = monai_loss(logits, targets, reduction, smooth)
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    probabilities = logits.detach().sigmoid()
    found = dice_loss(probabilities, targets, smooth=smooth, reduction=reduction)
    np.testing.assert_allclose(found, expected.detach(), rtol=0, atol=1e-9)
    gradient = dice_gradient(probabilities, targets, smooth=smooth, reduction=reduction)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reduction", ["batch", "window"])
@pytest.mark.parametrize("ignored", [-1.0, float("nan")])
def test_ignored_patches_have_no_gradient_and_change_nothing(reduction, ignored):
    logits, targets = problem(seed=1)
    hidden = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    hidden[0] = True  # a whole window
    targets = torch.where(hidden, ignored, targets)
    probabilities = logits.sigmoid()
    gradient = dice_gradient(probabilities, targets, reduction=reduction)
    assert (gradient[hidden] == 0).all()
    assert (gradient[~hidden] != 0).all()
    changed = torch.where(hidden[..., None], 0.123, probabilities)
    torch.testing.assert_close(
        dice_loss(changed, targets, reduction=reduction),
        dice_loss(probabilities, targets, reduction=reduction),
        rtol=0,
        atol=0,
    )


def test_ignored_patches_agree_with_monai_on_the_patches_that_are_left():
    logits, targets = problem(seed=3)
    kept = targets.clone()
    kept[:, 20:] = -1
    expected = monai_loss(logits[:, :20], targets[:, :20], "window", 1e-5)
    torch.testing.assert_close(dice_loss(logits.sigmoid(), kept, reduction="window"), expected)


@pytest.mark.parametrize("reduction", ["batch", "window"])
def test_soft_targets_and_window_weights_agree_with_autograd(reduction):
    logits, _ = problem(seed=4)
    logits.requires_grad_()
    targets = torch.rand(WINDOWS, PATCHES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    weights = torch.tensor([0.0, 1, 3, 2, 1], dtype=torch.float64)
    loss = dice_loss(logits.sigmoid(), targets, weights, reduction=reduction)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    gradient = dice_gradient(logits.detach().sigmoid(), targets, weights, reduction=reduction)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-14)
    assert (gradient[0] == 0).all()
    repeated = torch.repeat_interleave(torch.arange(WINDOWS), weights.long())
    torch.testing.assert_close(
        loss.detach(), dice_loss(logits.detach().sigmoid()[repeated], targets[repeated], reduction=reduction)
    )


def test_a_positive_weight_counts_positive_patches_several_times():
    logits, targets = problem(seed=6)
    logits.requires_grad_()
    probabilities = logits.sigmoid()
    overlap = torch.einsum("npc,np->c", probabilities, targets)
    terms = dice_terms(overlap, probabilities.sum((0, 1)), targets.sum(), positive_weight=3.0)
    flat, labels = probabilities.reshape(-1, COLUMNS), targets.reshape(-1)
    thrice = torch.repeat_interleave(torch.arange(len(labels)), (1 + 2 * labels).long())
    torch.testing.assert_close(terms.loss, dice_loss(flat[thrice][None], labels[thrice][None]))
    (slope,) = torch.autograd.grad(terms.loss.sum(), probabilities)
    torch.testing.assert_close(terms.slope * targets[..., None] + terms.level, slope)


def test_a_window_without_positives_teaches_next_to_nothing_alone_but_not_in_a_batch():
    """The reason for the default objective."""
    logits, targets = problem(seed=7)
    targets[1:] = 0
    alone = dice_gradient(logits.sigmoid(), targets, reduction="window")[1:].abs().sum()
    together = dice_gradient(logits.sigmoid(), targets, reduction="batch")[1:].abs().sum()
    assert alone < 1e-4 * together
