"""The sliding window against a naive transcription of the published recipe."""

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.backbones.residual import ResidualBackbone
from dlprobe.errors import DataError, IdentityError, ProbeError
from dlprobe.localization import score_map
from dlprobe.probes import Probe, make_card

WINDOW, STRIDE = 504, 128


@pytest.fixture(scope="module")
def backbone():
    return ResidualBackbone(window_px=WINDOW)


def make_probe(backbone, n_logits, seed=0, **changes):
    rng = np.random.default_rng(seed)
    width = backbone.spec.width
    classes = ["INPAINTED"] if n_logits == 1 else ["PRISTINE", "AUTOENCODED", "INPAINTED"][:n_logits]
    card = make_card(
        model=backbone.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=classes,
        threshold=0.5,
        threshold_policy="fixed",
    )
    weights = rng.normal(0, 0.05, (n_logits, width)).astype(np.float32)
    return Probe(weights, rng.normal(0, 0.1, n_logits).astype(np.float32), {**card, **changes})


def starts(side):
    found = []
    position = 0
    while position + WINDOW < side:
        found.append(position)
        position += STRIDE
    return [*found, side - WINDOW]


def naive(image, backbone, probe, mode="bicubic", aggregate="mean"):
    """The recipe word by word, window by window, in float64 where it is ours to choose."""
    height, width = image.shape[:2]
    working = Image.fromarray(image)
    if min(height, width) < WINDOW:
        scale = 1016 / (height * width) ** 0.5
        scale = max(scale, WINDOW / min(height, width))
        working = working.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(working)
    k = len(probe.bias)
    total = torch.zeros(k, *pixels.shape[:2], dtype=torch.float64)
    count = torch.zeros(pixels.shape[:2], dtype=torch.float64)
    for y in starts(pixels.shape[0]):
        for x in starts(pixels.shape[1]):
            crop = pixels[None, y : y + WINDOW, x : x + WINDOW]
            tokens = backbone(np.ascontiguousarray(crop))[0].double()
            logits = tokens @ torch.tensor(probe.weights).double().T + torch.tensor(probe.bias).double()
            up = torch.nn.functional.interpolate(
                logits.permute(2, 0, 1)[None],
                size=(WINDOW, WINDOW),
                mode=mode,
                align_corners=None if mode == "nearest" else False,
            )
            total[:, y : y + WINDOW, x : x + WINDOW] += up[0]
            count[y : y + WINDOW, x : x + WINDOW] += 1
    logits = total / count if aggregate == "mean" else total
    scores = (torch.sigmoid(logits) if k == 1 else torch.softmax(logits, dim=0)).float().numpy()
    if (height, width) != pixels.shape[:2]:
        scores = np.stack(
            [np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC)) for s in scores]
        )
        scores = np.clip(scores, 0, 1)
    return (scores[0] if k == 1 else np.moveaxis(scores, 0, -1)), count.numpy()


def photograph(height, width, seed=1):
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 220, (height // 40 + 1, width // 40 + 1, 3)), np.ones((40, 40, 1)))
    return (smooth[:height, :width] + rng.integers(0, 30, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize("size", [(504, 504), (505, 700), (300, 451)])
def test_agrees_with_the_recipe(backbone, size, n_logits):
    image, probe = photograph(*size), make_probe(backbone, n_logits)
    found = score_map(image, backbone, probe)
    expected, count = naive(image, backbone, probe)
    assert found.scores.shape == expected.shape == (*size, 3)[: 2 + (n_logits == 3)]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    np.testing.assert_array_equal(found.n_windows, count)
    assert expected.std() > 0.01


@pytest.mark.parametrize(("mode", "aggregate"), [("bilinear", "mean"), ("nearest", "mean"), ("bicubic", "sum")])
def test_options(backbone, mode, aggregate):
    image, probe = photograph(520, 640), make_probe(backbone, 3)
    found = score_map(image, backbone, probe, upsample=mode, aggregate=aggregate).scores
    np.testing.assert_allclose(found, naive(image, backbone, probe, mode, aggregate)[0], atol=2e-5)
    assert np.abs(found - score_map(image, backbone, probe).scores).max() > 1e-3


def test_an_image_of_256_px_is_seen_through_25_windows(backbone):
    found = score_map(photograph(256, 256), backbone, make_probe(backbone, 1))
    assert found.logits.shape == (1016, 1016, 1)
    assert found.scores.shape == found.disagreement.shape == (256, 256)
    assert found.n_windows.max() == found.n_windows[503, 503] == 16
    assert found.n_windows.min() == 1
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1


def test_disagreement_is_the_spread_of_the_windows_own_scores(backbone):
    image, probe = photograph(504, 632), make_probe(backbone, 1)
    found = score_map(image, backbone, probe)
    alone = [score_map(np.ascontiguousarray(image[:, x : x + 504]), backbone, probe).scores for x in (0, 128)]
    both = np.stack([alone[0][:, 128:], alone[1][:, :376]])
    np.testing.assert_allclose(found.disagreement[:, 128:504], both.std(axis=0), atol=1e-6)
    assert (found.disagreement[:, :128] == 0).all()


def test_a_planted_region_lights_up_where_it_is(backbone):
    """A probe that reads one residual statistic must point at the only noisy square."""
    image = np.full((504, 640, 3), 120, np.uint8)
    image[140:280, 420:560] += np.random.default_rng(0).integers(0, 40, (140, 140, 3)).astype(np.uint8)
    flat, noisy = (backbone(image[None, :504, x : x + 504])[0].numpy() for x in (0, 136))
    direction = noisy[12, 22] - flat[2, 2]
    bias = -0.5 * float((noisy[12, 22] + flat[2, 2]) @ direction)
    probe = make_probe(backbone, 1)
    probe = Probe(direction[None], np.array([bias], np.float32), probe.card)
    scores = score_map(image, backbone, probe).scores
    assert scores[175:245, 455:525].min() > 0.5
    assert scores[:, :300].max() < 0.5
    assert scores[400:].max() < 0.5


def test_refuses_what_does_not_belong_together(backbone):
    image, probe = photograph(504, 504), make_probe(backbone, 1)
    with pytest.raises(DataError, match="RGB"):
        score_map(image[..., 0], backbone, probe)
    with pytest.raises(ProbeError, match="one or three"):
        score_map(image, backbone, make_probe(backbone, 2))
    with pytest.raises(IdentityError, match="window_px: 504 != 112"):
        score_map(image, ResidualBackbone(window_px=112), probe)
    with pytest.raises(ProbeError, match="loaded for 504"):
        score_map(image, backbone, probe, window_px=512)


@pytest.mark.parametrize("options", [{"upsample": "cubic"}, {"aggregate": "avg"}])
def test_an_unknown_option_is_refused_by_name(backbone, options):
    with pytest.raises(DataError, match="write one of"):
        score_map(photograph(504, 504), backbone, make_probe(backbone, 1), **options)
