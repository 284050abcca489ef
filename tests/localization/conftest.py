"""A backbone that costs next to nothing, and the recipe written down once more without any of our code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.backbones.base import BackboneCard
from dlprobe.probes import Probe, make_card
from dlprobe.spec import ModelSpec, Pins

PATCH = 14


class PatchMeans:
    """Mean colour of each patch, and how it differs from the window's: a window knows of its surroundings."""

    weights = "none"
    card = BackboneCard(name="test:means", weights="none", licence="", trained_on="")

    def __init__(self, window_px=504, batch_size=8):
        self.spec = ModelSpec(
            backbone="test:means",
            implementation="test",
            weights_sha256="0" * 64,
            layers=(),
            norm=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize_rule="test",
            window_px=window_px,
            patch_px=PATCH,
            width=6,
        )
        self.pins = Pins(engine="torch", precision="float32", device="cpu", batch_size=batch_size)
        self.batches = []

    width = property(lambda self: self.spec.width)
    patch_px = property(lambda self: self.spec.patch_px)
    weights_sha256 = property(lambda self: self.spec.weights_sha256)

    def __call__(self, windows):
        self.batches.append(len(windows))
        grid = self.spec.grid
        patches = torch.tensor(np.asarray(windows)).reshape(len(windows), grid, PATCH, grid, PATCH, 3)
        means = patches.float().mean(dim=(2, 4)) / 255
        return torch.cat([means, means - means.mean(dim=(1, 2), keepdim=True)], dim=-1)


def make_probe(backbone, n_logits, seed=0, threshold=0.5, scale=3.0):
    """Return a probe with random weights."""
    rng = np.random.default_rng(seed)
    classes = ["INPAINTED"] if n_logits == 1 else ["PRISTINE", "AUTOENCODED", "INPAINTED"][:n_logits]
    card = make_card(
        model=backbone.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=classes,
        threshold=threshold,
        threshold_policy="fixed",
    )
    weights = rng.normal(0, scale, (n_logits, backbone.spec.width)).astype(np.float32)
    return Probe(weights, rng.normal(0, 0.1, n_logits).astype(np.float32), card)


def starts(side, window=504, stride=128):
    """Return where windows begin: every stride, the last one clamped."""
    found = []
    position = 0
    while position + window < side:
        found.append(position)
        position += stride
    return [*found, side - window]


def naive(image, backbone, probe, *, mode="bicubic", aggregate="mean", blend="none", stride=128):
    """Return scores, disagreement and window counts: the recipe word by word, in float64 where it is ours to choose."""
    window = backbone.spec.window_px
    height, width = image.shape[:2]
    working = Image.fromarray(image)
    if min(height, width) < window:
        scale = 1016 * window / 504 / (height * width) ** 0.5
        scale = max(scale, window / min(height, width))
        working = working.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(working)
    k = len(probe.bias)
    total = torch.zeros(k, *pixels.shape[:2], dtype=torch.float64)
    weights, count = torch.zeros(pixels.shape[:2]).double(), torch.zeros(pixels.shape[:2]).double()
    mean, squares = torch.zeros(pixels.shape[:2]).double(), torch.zeros(pixels.shape[:2]).double()
    profile = torch.sin(torch.pi * (torch.arange(window, dtype=torch.float64) + 0.5) / window) ** 2
    weight = profile[:, None] * profile[None] if blend == "hann" else torch.ones(window, window, dtype=torch.float64)
    for y in starts(pixels.shape[0], window, stride):
        for x in starts(pixels.shape[1], window, stride):
            crop = pixels[None, y : y + window, x : x + window]
            tokens = backbone(np.ascontiguousarray(crop))[0].double()
            logits = tokens @ torch.tensor(probe.weights).double().T + torch.tensor(probe.bias).double()
            up = torch.nn.functional.interpolate(
                logits.permute(2, 0, 1)[None],
                size=(window, window),
                mode=mode,
                align_corners=None if mode == "nearest" else False,
            )[0]
            here = (slice(y, y + window), slice(x, x + window))
            total[(slice(None), *here)] += up * weight
            weights[here] += weight
            count[here] += 1
            score = torch.sigmoid(up)[0] if k == 1 else torch.softmax(up, dim=0)[2]
            change = score - mean[here]
            mean[here] += change / count[here]
            squares[here] += change * (score - mean[here])
    logits = total / weights if aggregate == "mean" else total
    scores = (torch.sigmoid(logits) if k == 1 else torch.softmax(logits, dim=0)).float().numpy()
    maps = np.concatenate([scores, (squares / count).sqrt().float().numpy()[None]])
    if (height, width) != pixels.shape[:2]:
        maps = np.stack(
            [np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.BICUBIC)) for m in maps]
        )
        maps = np.clip(maps, 0, 1)
    return (maps[0] if k == 1 else np.moveaxis(maps[:3], 0, -1)), maps[-1], count.numpy()


def photograph(height, width, seed=1, cell=40):
    """Return squares of random colours under noise."""
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 220, (height // cell + 1, width // cell + 1, 3)), np.ones((cell, cell, 1)))
    return (smooth[:height, :width] + rng.integers(0, 30, (height, width, 3))).astype(np.uint8)


@pytest.fixture
def means():
    """Return the cheap backbone for windows of 504 px."""
    return PatchMeans()


@pytest.fixture(scope="session")
def kit():
    """Return the cheap backbone's class and what makes probes, images and expected maps."""
    return SimpleNamespace(Backbone=PatchMeans, probe=make_probe, naive=naive, photograph=photograph)
