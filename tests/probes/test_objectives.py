"""Every objective against an independent loss and autograd, in float64."""

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, TverskyLoss
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchvision.ops import sigmoid_focal_loss

from dlprobe.probes.heads import OBJECTIVES
from dlprobe.probes.losses import target_basis
from dlprobe.probes.multihead import objectives
from dlprobe.probes.multihead.objectives import Importance, Labels, objective
from dlprobe.probes.multihead.workers import Workers

WINDOWS, PATCHES, COLUMNS, SMOOTH = 4, 31, 3, 1e-3
WORKERS = Workers(torch.device("cpu"))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(objectives, "TILE_NUMBERS", 2 * PATCHES * COLUMNS)


def problem(seed=0, soft=False, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(WINDOWS, PATCHES, COLUMNS, generator=generator, dtype=torch.float64)
    targets = torch.rand(WINDOWS, PATCHES, generator=generator, dtype=torch.float64)
    targets = targets if soft else (targets < 0.3).double()
    hidden = torch.rand(WINDOWS, PATCHES, generator=generator) < ignored
    return logits, torch.where(hidden, -1.0, targets), hidden


def run(name, logits, targets, counts=None, *, positive=1.0, classes=1):
    basis = target_basis(targets, torch.float64, classes)
    counts = torch.ones(WINDOWS, logits.shape[-1], dtype=torch.float64) if counts is None else counts
    importance = Importance(counts, torch.full((logits.shape[-1],), positive, dtype=torch.float64))
    bias = torch.linspace(-1, 1, logits.shape[-1], dtype=torch.float64)
    gradient = logits.detach() - bias
    made = objective(name, classes, SMOOTH)
    found = made.differentiate(gradient, bias, Labels(basis, basis.sum(dim=1)), importance, WORKERS)
    np.testing.assert_allclose(found.bias, gradient.sum(dim=(0, 1)), rtol=1e-9, atol=1e-12)
    return found.loss, gradient


def lovasz_hinge(logits, labels):
    """Algorithm 1 and the binary hinge of Berman et al. 2018, one column, patch by patch."""
    signs = 2 * labels - 1
    errors = 1 - logits * signs
    order = sorted(range(len(errors)), key=lambda i: -errors[i].item())
    positives, hit, union, before, loss = float(labels.sum()), 0.0, float(labels.sum()), 0.0, 0.0
    for i in order:
        hit, union = (hit + 1, union) if labels[i] else (hit, union + 1)
        now = 1 - (positives - hit) / union
        loss = loss + torch.relu(errors[i]) * (now - before)
        before = now
    return loss


REGION = {"sigmoid": True, "smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
#: Losses of one column of clean data, shapes (windows, patches).
INDEPENDENT = {
    "dice-batch": lambda x, y: DiceLoss(batch=True, **REGION)(x[:, None], y[:, None]),
    "dice-window": lambda x, y: DiceLoss(batch=False, **REGION)(x[:, None], y[:, None]),
    "tversky": lambda x, y: TverskyLoss(alpha=0.3, beta=0.7, batch=True, **REGION)(x[:, None], y[:, None]),
    "bce": binary_cross_entropy_with_logits,
    "dice+bce": lambda x, y: DiceCELoss(batch=True, **REGION)(x[:, None], y[:, None]),
    "focal": lambda x, y: sigmoid_focal_loss(x, y, alpha=-1, gamma=2, reduction="mean"),
    "lovasz": lambda x, y: lovasz_hinge(x.reshape(-1), y.reshape(-1)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("positives", [0.3, 0.0])
def test_loss_and_gradient_agree_with_an_independent_implementation(name, positives):
    logits, targets, _ = problem(ignored=0)
    targets = targets * (positives > 0)
    logits.requires_grad_()
    expected = torch.stack([INDEPENDENT[name](logits[..., c], targets) for c in range(COLUMNS)])
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    loss, gradient = run(name, logits, targets)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ignored_patches_have_no_gradient_and_change_nothing(name):
    logits, targets, hidden = problem(seed=1)
    loss, gradient = run(name, logits, targets)
    assert (gradient[hidden] == 0).all()
    assert (gradient[~hidden] != 0).any()
    other, moved = run(name, torch.where(hidden[..., None], 7.0, logits), targets)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, moved, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "lovasz"])
def test_logits_in_bfloat16_lose_no_gradient_where_they_saturate(name):
    """A sigmoid in bfloat16 is 1 from a logit of 6 on; what comes back may only be rounded once."""
    logits, targets, hidden = problem(seed=6)
    coarse = (5 * logits).bfloat16()
    expected_loss, expected = run(name, coarse.double(), targets)
    gradient = coarse.clone()
    basis = target_basis(targets, torch.float32)
    importance = Importance(torch.ones(WINDOWS, COLUMNS), torch.ones(COLUMNS))
    labels = Labels(basis, basis.sum(dim=1))
    found = objective(name, 1, SMOOTH).differentiate(gradient, torch.zeros(COLUMNS), labels, importance, WORKERS)
    np.testing.assert_allclose(found.loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(found.bias, expected.sum(dim=(0, 1)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient.double(), expected, rtol=5e-3, atol=1e-6 * expected.abs().max())
    wrong = ~hidden[..., None] & (targets == 0)[..., None] & (coarse > 7) & (coarse < 15)
    assert wrong.sum() > 10
    assert (gradient[wrong] > 0).all()


@pytest.mark.parametrize("columns", [1, 7, 100])
def test_tiles_that_cut_windows_change_nothing(columns, monkeypatch):
    logits, targets, _ = problem(seed=7)
    expected = {name: run(name, logits, targets) for name in OBJECTIVES}
    monkeypatch.setattr(objectives, "TILE_NUMBERS", columns)
    for name, (loss, gradient) in expected.items():
        found = run(name, logits, targets)
        torch.testing.assert_close(found[0], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(found[1], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_window_counts_and_positive_weights_are_repetitions(name):
    """Three windows of which one counts twice and one never; a positive patch that counts twice is there twice."""
    logits, targets, _ = problem(seed=2, ignored=0)
    counts = torch.tensor([[1.0, 2, 0, 1]], dtype=torch.float64).T.repeat(1, COLUMNS)
    loss, gradient = run(name, logits, targets, counts, positive=2.0)
    assert (gradient[2] == 0).all()

    doubled = torch.where(targets == 1, targets, -1.0)  # the positives once more, as further patches
    longer = torch.cat([logits, logits], dim=1)[[0, 1, 1, 3]]
    labels = torch.cat([targets, doubled], dim=1)[[0, 1, 1, 3]]
    expected, slopes = run(name, longer, labels)
    folded = slopes[:, :PATCHES] + slopes[:, PATCHES:]
    merged = torch.stack([folded[0], folded[1] + folded[2], torch.zeros_like(folded[0]), folded[3]])
    if name in {"bce", "dice+bce", "focal"}:  # torch divides by the patches, of which the repetition has more
        if name == "dice+bce":
            return
        ratio = (labels >= 0).sum() / (counts[:, 0] * (targets >= 0).sum(dim=1)).sum()
        expected, merged = expected * ratio, merged * ratio
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(gradient, merged, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["dice-batch", "dice-window", "tversky", "bce", "dice+bce", "focal"])
def test_soft_targets_agree_with_finite_differences_of_the_loss(name):
    logits, targets, _ = problem(seed=3, soft=True)
    _, gradient = run(name, logits, targets, positive=3.0)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        step = 1e-3 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        above, below = (run(name, logits + sign * step, targets, positive=3.0)[0] for sign in (1, -1))
        predicted = 2 * (gradient * step).sum(dim=(0, 1))
        np.testing.assert_allclose(above - below, predicted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["dice-batch", "dice-window"])
def test_softmax_dice_agrees_with_monai(name):
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(WINDOWS, PATCHES, 6, generator=generator, dtype=torch.float64)  # two heads
    targets = torch.randint(0, 3, (WINDOWS, PATCHES), generator=generator)
    logits.requires_grad_()
    made = DiceLoss(softmax=True, batch=name == "dice-batch", smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    truth = one_hot(targets, 3).movedim(-1, 1).double()
    expected = torch.stack([made(logits[..., a : a + 3].movedim(-1, 1), truth) for a in (0, 3)])
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    loss, gradient = run(name, logits, targets, classes=3)
    np.testing.assert_allclose(loss, expected.detach().repeat_interleave(3), rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-12)

    hidden = torch.rand(targets.shape, generator=generator) < 0.3
    _, gradient = run(name, logits, torch.where(hidden, -1, targets), classes=3)
    assert (gradient[hidden] == 0).all()
