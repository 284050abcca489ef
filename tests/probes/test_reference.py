"""The one-pass trainer against a plain two-pass transcription in float64, of every objective and setting.

The reference standardises first and trains a head alone; its losses are the formulas, its slopes autograd's.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from dlprobe.probes import GroupMoments, HeadBatch, HeadSpec, fit_heads
from dlprobe.probes.heads import OBJECTIVES, THREE_CLASS_OBJECTIVES
from dlprobe.probes.multihead import poisson_weights

WINDOWS, PATCHES, WIDTH, BATCH = 18, 30, 12, 6
STEPS = WINDOWS // BATCH


class Data:
    """A small problem under three schemes, whose features differ in mean and scale, with one that is constant."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(WINDOWS, PATCHES, WIDTH))
        direction = rng.normal(size=WIDTH)
        direction[5] = 0
        positive = noise @ direction > 2
        noise[..., 5] = 0
        self.embeddings = (noise * rng.uniform(0.2, 5, WIDTH) + rng.normal(0, 4, WIDTH)).astype(dtype)
        hidden = rng.random(positive.shape) < 0.1
        self.targets = {
            "hard": np.where(hidden, -1, positive).astype(np.int8),
            "soft": np.where(hidden, np.nan, 0.9 * positive + 0.05).astype(np.float32),
            "three-class": np.where(hidden, -1, np.where(positive, 2, noise[..., 1] > 0)).astype(np.int8),
        }
        self.groups = np.arange(WINDOWS) % 4 - 1  # group -1 trains none
        self.moments = GroupMoments.of(self.embeddings, self.groups)

    def batches(self, epoch):
        order = np.random.default_rng(epoch).permutation(WINDOWS)
        for rows in order.reshape(STEPS, BATCH):
            targets = {scheme: each[rows] for scheme, each in self.targets.items()}
            yield HeadBatch(self.embeddings[rows], targets, self.groups[rows], rows)


def logit_losses(head, z, target, known, times):
    """Return the loss of a head on one batch as its formula says it, by torch in float64; `z` needs a gradient."""
    smooth, positive = 1e-5, head.positive_weight
    known = torch.from_numpy(known)
    times = torch.from_numpy(times)[:, None]
    if head.scheme == "three-class":
        classes = torch.from_numpy(target)[..., None] == torch.arange(3)
        p, t = z.softmax(dim=-1), classes.double()
        over = (0, 1) if head.objective == "dice-batch" else (1,)
        m = (known * (times if head.objective == "dice-batch" else 1))[..., None]
        dice = 1 - (2 * (m * t * p).sum(over) + smooth) / ((m * p).sum(over) + (m * t).sum(over) + smooth)
        dice = dice.mean(dim=-1)
        return dice if head.objective == "dice-batch" else (dice * times[:, 0]).sum() / times.sum().clamp(min=1)
    z, t = z[..., 0], torch.where(known > 0, torch.from_numpy(target), 0)
    p = z.sigmoid()

    def region(m, over):
        """Dice, or Tversky with its two costs; a soft positive share t counts `positive` times."""
        hit = (m * positive * t * p).sum(over)
        alarm, miss = (m * (1 - t) * p).sum(over), (m * positive * t * (1 - p)).sum(over)
        if head.objective == "tversky":
            return 1 - (hit + smooth) / (hit + 0.3 * alarm + 0.7 * miss + smooth)
        return 1 - (2 * hit + smooth) / (2 * hit + alarm + miss + smooth)

    def mean(each):
        return (known * times * each).sum() / (known * times).sum().clamp(min=1)

    entropy = -(positive * t * logsigmoid(z) + (1 - t) * logsigmoid(-z))
    focal = -(positive * t * (1 - p) ** 2 * logsigmoid(z) + (1 - t) * p**2 * logsigmoid(-z))
    found = {
        "dice-batch": lambda: region(known * times, (0, 1)),
        "tversky": lambda: region(known * times, (0, 1)),
        "dice-window": lambda: (region(known, 1) * times[:, 0]).sum() / times.sum().clamp(min=1),
        "bce": lambda: mean(entropy),
        "dice+bce": lambda: region(known * times, (0, 1)) + mean(entropy),
        "focal": lambda: mean(focal),
        "lovasz": lambda: lovasz(z, t >= 0.5, known * times * torch.where(t >= 0.5, positive, 1.0)),
    }
    return found[head.objective]()


def lovasz(z, t, weight):
    """The Lovasz hinge of Berman et al. 2018, patch by patch in the order of errors."""
    errors = (1 - z * (2.0 * t - 1)).flatten()
    order = errors.argsort(descending=True)
    t, weight = t.flatten()[order].double(), weight.flatten()[order]
    missed = (weight * t).sum() - (weight * t).cumsum(0)
    union = (weight * t).sum() + (weight * (1 - t)).cumsum(0)
    jaccard = torch.where(union > 0, 1 - missed / union, 0)
    steps = torch.diff(jaccard, prepend=torch.zeros(1, dtype=jaccard.dtype))
    return (errors[order].clamp(min=0) * steps.detach()).sum()


def reference(data, head, epochs, window_weights):
    """Standardise the whole training set first, then train this head alone, one batch after the other."""
    inside = np.isin(data.groups, head.train_groups)
    rows = data.embeddings[inside].reshape(-1, WIDTH).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    inverse = np.array([1 / d if d > 0 else 0.0 for d in deviation])
    weights = np.random.default_rng(head.seed).normal(0, 0.01, (head.n_logits, WIDTH))
    bias, step, losses = np.zeros(head.n_logits), 0, []
    velocity, bias_velocity = np.zeros_like(weights), np.zeros_like(bias)
    for epoch in range(epochs):
        total = 0.0
        for batch in data.batches(epoch):
            x = (batch.embeddings.astype(np.float64) - mean) * inverse
            target = batch.targets[head.scheme].astype(np.float64)
            known = (target >= 0).astype(np.float64)
            times = np.isin(batch.groups, head.train_groups).astype(np.float64)
            if window_weights == "poisson":
                times = times * poisson_weights(head.seed, batch.windows)
            z = torch.from_numpy(x @ weights.T + bias).requires_grad_()
            loss = logit_losses(head, z, target, known, times)
            (by_logit,) = torch.autograd.grad(loss, z)
            slope = by_logit.numpy()
            total += loss.item()
            gradient = np.einsum("npk,npd->kd", slope, x) + head.weight_decay * weights
            fall = 0.5 * (1 + np.cos(np.pi * step / (epochs * STEPS))) if head.schedule == "cosine" else 1.0
            velocity = head.momentum * velocity + gradient
            bias_velocity = head.momentum * bias_velocity + slope.sum(axis=(0, 1))
            weights = weights - head.learning_rate * fall * velocity
            bias = bias - head.learning_rate * fall * bias_velocity
            step += 1
        losses.append(total / STEPS)
    raw = weights * inverse
    return raw, bias - raw @ mean, losses


OF_ALL_SETTINGS = [
    HeadSpec(scheme="hard", learning_rate=0.5, train_groups=(0, 1)),
    HeadSpec(scheme="hard", learning_rate=2.0, weight_decay=0.01, train_groups=(1, 2), seed=3),
    HeadSpec(scheme="soft", learning_rate=1.0, train_groups=(0, 2), seed=1, momentum=0.5),
    HeadSpec(scheme="soft", learning_rate=0.3, train_groups=(0, 1, 2), positive_weight=4.0, schedule="constant"),
    HeadSpec(scheme="hard", learning_rate=0.7, objective="dice-window", train_groups=(0,), positive_weight=2.0),
    HeadSpec(scheme="soft", learning_rate=0.7, objective="dice-window", train_groups=(1,), seed=9),
]
#: Every objective, on hard or soft targets, and both that three classes go with.
OF_ALL_OBJECTIVES = [
    *(
        HeadSpec(
            scheme=scheme, objective=name, learning_rate=rate, weight_decay=1e-3, train_groups=(0, 2), seed=i, **more
        )
        for i, (name, rate) in enumerate(zip(OBJECTIVES, (0.5, 0.7, 0.2, 0.2, 0.5, 0.4, 0.1), strict=True))
        for scheme, more in (("hard", {"positive_weight": 3.0}), ("soft", {}))
    ),
    *(
        HeadSpec(scheme="three-class", objective=name, learning_rate=1.0, weight_decay=1e-3, train_groups=(0, 1))
        for name in THREE_CLASS_OBJECTIVES
    ),
]


@pytest.mark.parametrize("window_weights", ["poisson", "ones"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("heads", [OF_ALL_SETTINGS, OF_ALL_OBJECTIVES], ids=["settings", "objectives"])
def test_every_head_agrees_with_a_two_pass_reference(window_weights, dtype, heads):
    data = Data(dtype=dtype)
    options = {"epochs": 4, "steps_per_epoch": STEPS, "window_weights": window_weights}
    for found in fit_heads(data.batches, heads, data.moments, **options):
        weights, bias, losses = reference(data, found.spec, 4, window_weights)
        weights = weights.reshape(found.weights.shape)
        np.testing.assert_allclose(found.weights, weights, rtol=2e-4, atol=1e-5 * np.abs(weights).max())
        np.testing.assert_allclose(found.bias, bias.reshape(np.shape(found.bias)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.loss_by_epoch, losses, rtol=1e-4)
        assert found.steps == 4 * STEPS
        assert found.flag is None
