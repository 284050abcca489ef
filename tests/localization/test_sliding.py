"""The sliding window against a naive transcription of the published recipe."""

import numpy as np
import pytest

from dlprobe.backbones.residual import ResidualBackbone
from dlprobe.errors import DataError, IdentityError, ProbeError
from dlprobe.localization import Adaptive, SlidingSettings, score_map, score_maps
from dlprobe.probes import Probe

SIZES = [(504, 504), (505, 700), (300, 451), (1016, 1016)]
LARGE = [(1411, 1411), (3000, 200), (200, 3000)]


@pytest.fixture(scope="module")
def backbone():
    return ResidualBackbone(window_px=504)


@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize("size", [*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in LARGE)])
def test_agrees_with_the_recipe(means, kit, size, n_logits):
    image, probe = kit.photograph(*size), kit.probe(means, n_logits)
    found = score_map(image, means, probe)
    scores, disagreement, count = kit.naive(image, means, probe)
    assert found.scores.shape == scores.shape == (*size, 3)[: 2 + (n_logits == 3)]
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.disagreement, disagreement, atol=1e-5)
    np.testing.assert_array_equal(found.n_windows, count)
    assert scores.std() > 0.01
    assert size == (504, 504) or disagreement.max() > 0.01


def test_agrees_with_the_recipe_on_residual_statistics(backbone, kit):
    image, probe = kit.photograph(504, 560), kit.probe(backbone, 3, scale=0.05)
    np.testing.assert_allclose(
        score_map(image, backbone, probe).scores, kit.naive(image, backbone, probe)[0], atol=1e-5
    )


@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"upsample": "bilinear"},
        {"upsample": "nearest"},
        {"aggregate": "sum"},
        {"blend": "hann"},
        {"stride_px": 77, "blend": "hann"},
        {"stride_px": 504},
    ],
    ids=str,
)
def test_options(means, kit, options, n_logits):
    image, probe = kit.photograph(560, 690), kit.probe(means, n_logits)
    found = score_map(image, means, probe, **options).scores
    names = {"upsample": "mode", "stride_px": "stride"}
    expected = kit.naive(image, means, probe, **{names.get(name, name): value for name, value in options.items()})[0]
    atol = 3e-5 if "aggregate" in options else 1e-5  # a sum has the rounding of as many windows
    np.testing.assert_allclose(found, expected, atol=atol)
    assert np.abs(found - score_map(image, means, probe).scores).max() > 1e-3


def test_batches_span_images_and_change_nothing(kit):
    backbone = kit.Backbone(window_px=112, batch_size=7)
    probe = kit.probe(backbone, 3)
    images = [kit.photograph(*size, seed=i) for i, size in enumerate([(112, 112), (200, 130), (60, 300), (112, 150)])]
    alone = [score_map(image, backbone, probe, stride_px=50) for image in images]
    backbone.batches.clear()
    asked, held = [], []

    def items():
        for i, image in enumerate(images):
            asked.append(i)
            yield f"image {i}", image

    found = []
    for key, result in score_maps(items(), backbone, probe, SlidingSettings(stride_px=50)):
        found.append((key, result))
        held.append(len(asked) - len(found))
    assert [key for key, _ in found] == [f"image {i}" for i in range(4)]
    for (_, together), single in zip(found, alone, strict=True):
        np.testing.assert_array_equal(together.scores, single.scores)
        np.testing.assert_array_equal(together.disagreement, single.disagreement)
    windows = sum(result.windows_seen for result in alone)
    assert backbone.batches == [7] * (windows // 7) + [windows % 7] * (windows % 7 > 0)
    assert held[0] <= 2  # not all images at once


def test_adaptive_with_everything_undecided_is_the_dense_grid(kit):
    backbone = kit.Backbone(window_px=112)
    image, probe = kit.photograph(230, 200), kit.probe(backbone, 3)
    dense = score_map(image, backbone, probe, stride_px=28)
    found = score_map(image, backbone, probe, stride_px=28, adaptive=Adaptive(margin=1, budget=1))
    np.testing.assert_array_equal(found.scores, dense.scores)
    np.testing.assert_array_equal(found.n_windows, dense.n_windows)
    assert found.windows_seen == found.windows_dense == dense.windows_seen


def test_adaptive_with_nothing_undecided_is_the_coarse_grid(means, kit):
    image, probe = kit.photograph(1016, 900), kit.probe(means, 1)
    found = score_map(image, means, probe, adaptive=Adaptive(margin=0, threshold=1.0, coarse_every=3))
    rows, columns = (0, 384, 512), (0, 384, 396)
    expected = np.zeros((1016, 900), int)
    for y in rows:
        for x in columns:
            expected[y : y + 504, x : x + 504] += 1
    np.testing.assert_array_equal(found.n_windows, expected)
    assert found.windows_seen == 9


def test_adaptive_looks_where_it_is_undecided_and_keeps_to_its_budget(kit):
    backbone = kit.Backbone(window_px=112)
    image = np.zeros((340, 340, 3), np.uint8)
    image[20:70, 230:290] = 255
    weights = np.array([[20.0, 20, 20, 0, 0, 0]], np.float32)
    probe = Probe(weights, np.array([-30.0], np.float32), kit.probe(backbone, 1).card)
    seen = {}
    for budget in (0.01, 0.5):
        found = score_map(
            image, backbone, probe, stride_px=28, adaptive=Adaptive(coarse_every=3, budget=budget, edge_px=14)
        )
        assert found.windows_dense == 100
        seen[budget] = found.n_windows
        assert found.windows_seen <= max(16, 100 * budget)
    added = seen[0.5] - seen[0.01]
    outline = np.zeros((340, 340), bool)
    outline[20:70, 230:290] = True
    outline[30:60, 240:280] = False
    assert added[outline].min() >= 1
    assert added[outline].mean() > 4
    assert added[200:, :200].max() == 0


def test_adaptive_mixes_with_other_images_in_a_batch(kit):
    backbone = kit.Backbone(window_px=112, batch_size=5)
    probe = kit.probe(backbone, 1)
    settings = SlidingSettings(stride_px=28, adaptive=Adaptive(coarse_every=3, margin=0.1))
    images = [kit.photograph(*size, seed=i) for i, size in enumerate([(230, 130), (112, 112), (112, 260), (60, 60)])]
    together = [found.scores for _, found in score_maps(enumerate(images), backbone, probe, settings)]
    for image, found in zip(images, together, strict=True):
        alone = score_map(image, backbone, probe, stride_px=28, adaptive=settings.adaptive)
        np.testing.assert_array_equal(found, alone.scores)
        assert alone.windows_seen <= max(4, alone.windows_dense / 2)


def test_an_image_of_256_px_is_seen_through_25_windows(means, kit):
    found = score_map(kit.photograph(256, 256), means, kit.probe(means, 1))
    assert found.logits.shape == (1016, 1016, 1)
    assert found.scores.shape == found.disagreement.shape == (256, 256)
    assert found.windows_seen == 25
    assert found.n_windows.max() == found.n_windows[503, 503] == 16
    assert found.n_windows.min() == 1
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1


def test_disagreement_is_the_spread_of_the_windows_own_scores(means, kit):
    image, probe = kit.photograph(504, 632), kit.probe(means, 1)
    found = score_map(image, means, probe)
    alone = [score_map(np.ascontiguousarray(image[:, x : x + 504]), means, probe).scores for x in (0, 128)]
    both = np.stack([alone[0][:, 128:], alone[1][:, :376]])
    np.testing.assert_allclose(found.disagreement[:, 128:504], both.std(axis=0), atol=1e-6)
    assert (found.disagreement[:, :128] == 0).all()


def test_a_planted_region_lights_up_where_it_is(backbone, kit):
    """A probe that reads one residual statistic must point at the only noisy square."""
    image = np.full((504, 640, 3), 120, np.uint8)
    image[140:280, 420:560] += np.random.default_rng(0).integers(0, 40, (140, 140, 3)).astype(np.uint8)
    flat, noisy = (backbone(image[None, :504, x : x + 504])[0].numpy() for x in (0, 136))
    direction = noisy[12, 22] - flat[2, 2]
    bias = -0.5 * float((noisy[12, 22] + flat[2, 2]) @ direction)
    probe = kit.probe(backbone, 1)
    probe = Probe(direction[None], np.array([bias], np.float32), probe.card)
    scores = score_map(image, backbone, probe).scores
    assert scores[175:245, 455:525].min() > 0.5
    assert scores[:, :300].max() < 0.5
    assert scores[400:].max() < 0.5


def test_refuses_what_does_not_belong_together(backbone, kit):
    image, probe = kit.photograph(504, 504), kit.probe(backbone, 1)
    with pytest.raises(DataError, match="RGB"):
        score_map(image[..., 0], backbone, probe)
    with pytest.raises(ProbeError, match="one or three"):
        score_map(image, backbone, kit.probe(backbone, 2))
    with pytest.raises(IdentityError, match="window_px: 504 != 112"):
        score_map(image, ResidualBackbone(window_px=112), probe)
    with pytest.raises(ProbeError, match="loaded for 504"):
        score_map(image, backbone, probe, window_px=512)


@pytest.mark.parametrize(
    "options",
    [
        {"upsample": "cubic"},
        {"aggregate": "avg"},
        {"blend": "gauss"},
        {"stride_px": 0},
        {"aggregate": "sum", "blend": "hann"},
        {"aggregate": "sum", "adaptive": Adaptive()},
        {"stride_px": 252, "adaptive": Adaptive(coarse_every=3)},
    ],
    ids=str,
)
def test_an_unknown_option_is_refused_by_name(means, kit, options):
    with pytest.raises(DataError, match=r"write|leave out|at most"):
        score_map(kit.photograph(504, 504), means, kit.probe(means, 1), **options)


@pytest.mark.parametrize(
    "values", [{"coarse_every": 1}, {"margin": -0.1}, {"edge_px": -1}, {"budget": 0}, {"threshold": 2}], ids=str
)
def test_adaptive_settings_are_checked_at_the_door(values):
    with pytest.raises(DataError, match=next(iter(values))):
        Adaptive(**values)


def test_a_strip_that_would_become_billions_of_pixels_is_refused(means, kit):
    with pytest.raises(DataError, match="less narrow"):
        score_map(np.zeros((1, 20_000, 3), np.uint8), means, kit.probe(means, 1))
