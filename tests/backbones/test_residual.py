"""`residual:srm` against a naive transcription in float64, and what a backbone promises."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from dlprobe.backbones import residual
from dlprobe.backbones.base import Backbone, LoadRequest
from dlprobe.backbones.residual import KERNELS, PLANES, SURROUNDINGS, ResidualBackbone, load_residual
from dlprobe.errors import BackboneError

WINDOW_PX, GRID, PATCH_PX = 98, 7, 14


@pytest.fixture(scope="module")
def backbone() -> ResidualBackbone:
    return ResidualBackbone(WINDOW_PX, "cpu")


def textured(count: int, side: int = WINDOW_PX, seed: int = 0) -> np.ndarray:
    """Waves of colour with noise that grows from corner to corner, so that every statistic varies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    phases = rng.uniform(0, 6, (count, 1, 1, 3))
    noise = rng.normal(0, 1, (count, side, side, 3)) * (0.2 + 8 * y * x)[..., None]
    return np.clip(120 + 60 * np.sin(7 * x[..., None] + phases) + noise, 0, 255).astype(np.uint8)


def naive(window: np.ndarray) -> np.ndarray:
    """The embedding of one window, one loop a step, in float64."""
    red, green, blue = (window[..., i].astype(np.float64) for i in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = [luma, (blue - luma) / 1.772, (red - luma) / 1.402]
    grid = window.shape[0] // PATCH_PX
    means, shares = [], []
    for planes in PLANES:
        magnitudes = [
            np.abs(convolve(channels[c], KERNELS[name][::-1, ::-1], mode="mirror"))
            for c in planes.channels
            for name in planes.kernels
        ]
        means += [patch_means(m, grid) for m in magnitudes]
        shares += [patch_means(m < bound + 1 / 24, grid) for bound in planes.small for m in magnitudes]
    raw, unusual = [], []
    for side in SURROUNDINGS:
        for place, statistic in enumerate(means + shares):
            around = np.array([[box_mean(statistic, i, j, side // 2) for j in range(grid)] for i in range(grid)])
            value = np.log(around + 0.02) if place < len(means) else around
            median = lower_median(value)
            spread = 1.4826 * lower_median(np.abs(value - median)) + 0.05
            raw.append(value)
            unusual.append(np.clip((value - median) / spread, -20, 20))
    return np.stack(raw + unusual, axis=-1)


def patch_means(plane: np.ndarray, grid: int) -> np.ndarray:
    return np.array(
        [
            [plane[i * PATCH_PX : (i + 1) * PATCH_PX, j * PATCH_PX : (j + 1) * PATCH_PX].mean() for j in range(grid)]
            for i in range(grid)
        ]
    )


def box_mean(plane: np.ndarray, i: int, j: int, radius: int) -> float:
    return float(plane[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1].mean())


def lower_median(values: np.ndarray) -> float:
    return float(np.sort(values.ravel())[(values.size - 1) // 2])


def test_agrees_with_a_naive_transcription(backbone: ResidualBackbone):
    windows = textured(2)
    found = backbone(windows).numpy()
    assert found.shape == (2, GRID, GRID, backbone.width)
    for window, embedding in zip(windows, found, strict=True):
        expected = naive(window)
        assert (expected.std(axis=(0, 1)) > 0).mean() > 0.95  # the comparison looks at something
        # a residual within rounding of a bound may fall on either side: one pixel is 1/196 of a share
        close = np.isclose(embedding, expected, rtol=1e-3, atol=2e-3)
        assert close.mean() > 0.97
        magnitudes = sum(len(p.channels) * len(p.kernels) for p in PLANES)
        np.testing.assert_allclose(embedding[..., :magnitudes], expected[..., :magnitudes], atol=1e-4)
        values = backbone.width // 2
        np.testing.assert_allclose(embedding[..., :values], expected[..., :values], atol=4 / 196)


def test_an_even_grid_takes_the_lower_median():
    backbone = ResidualBackbone(112, "cpu")
    window = textured(1, 112)
    close = np.isclose(backbone(window)[0].numpy(), naive(window[0]), rtol=1e-3, atol=2e-3)
    assert close.mean() > 0.97


@pytest.mark.parametrize("name", list(KERNELS))
def test_kernels_sum_to_zero_and_are_centred(name: str):
    kernel = KERNELS[name]
    assert kernel.shape == (5, 5)
    assert kernel.sum() == pytest.approx(0, abs=1e-12)
    assert kernel[2, 2] == -1
    flat = convolve(np.full((9, 9), 77.0), kernel)
    np.testing.assert_allclose(flat, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "blind", "sees"),
    [
        ("first-horizontal", lambda y, x: y, lambda y, x: x),
        ("first-vertical", lambda y, x: x, lambda y, x: y),
        ("second-horizontal", lambda y, x: x + y * y, lambda y, x: x * x),
        ("second-vertical", lambda y, x: y + x * x, lambda y, x: y * y),
        ("second-diagonal", lambda y, x: x + (x - y) ** 2, lambda y, x: (x + y) ** 2),
        ("second-antidiagonal", lambda y, x: x + (x + y) ** 2, lambda y, x: (x - y) ** 2),
        ("square-3x3", lambda y, x: x * x + y * y + x * y, lambda y, x: x * x * y * y),
        ("square-5x5", lambda y, x: x * x + y * y + x * y, lambda y, x: x * x * y * y),
        ("fourth-horizontal", lambda y, x: x**3 + y**4, lambda y, x: x**4),
        ("fourth-vertical", lambda y, x: y**3 + x**4, lambda y, x: y**4),
        ("wide-second-horizontal", lambda y, x: x + y * y, lambda y, x: x * x),
        ("wide-second-vertical", lambda y, x: y + x * x, lambda y, x: y * y),
    ],
)
def test_kernels_respond_to_what_they_are_named_after(name: str, blind, sees):
    y, x = np.mgrid[-2:3, -2:3].astype(float)
    assert (KERNELS[name] * blind(y, x)).sum() == pytest.approx(0, abs=1e-9)
    assert abs((KERNELS[name] * sees(y, x)).sum()) > 0.5


@pytest.mark.parametrize(("row", "col"), [(0, 0), (2, 5), (6, 3)])
def test_a_noisy_patch_lights_up_at_its_own_place(backbone: ResidualBackbone, row: int, col: int):
    window = np.full((1, WINDOW_PX, WINDOW_PX, 3), 128, np.uint8)
    inner = slice(row * PATCH_PX + 3, row * PATCH_PX + 11), slice(col * PATCH_PX + 3, col * PATCH_PX + 11)
    window[0][inner] = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    logs = backbone(window)[0, ..., : len(PLANES[0].kernels)].numpy()
    quiet = np.ones((GRID, GRID), bool)
    quiet[row, col] = False
    np.testing.assert_allclose(logs[quiet], np.log(0.02), atol=1e-3)
    assert (logs[row, col] > 1).all()


def test_residuals_of_grey_content_never_lie_on_a_bound():
    lattice = np.arange(0, 12 * 20) / 12
    for planes in PLANES:
        for bound in planes.small:
            assert np.abs(lattice - (bound + residual.TIE_BREAK)).min() > 0.04


def test_each_window_is_embedded_by_itself(backbone: ResidualBackbone):
    windows = textured(5)
    together = backbone(windows)
    for window, embedding in zip(windows, together, strict=True):
        assert torch.equal(backbone(window[None])[0], embedding)
    assert torch.equal(backbone(torch.from_numpy(windows)), together)
    assert torch.equal(backbone(windows[:, ::-1][:, ::-1]), together)  # a view with negative strides
    assert backbone(windows[:0]).shape == (0, GRID, GRID, backbone.width)


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_flat_windows_stay_finite(backbone: ResidualBackbone, fill: int):
    embedding = backbone(np.full((1, WINDOW_PX, WINDOW_PX, 3), fill, np.uint8))
    assert torch.isfinite(embedding).all()
    half = backbone.width // 2
    assert (embedding[..., half:].abs() < 1e-2).all()  # nothing is unusual where all is the same


def test_embeddings_survive_storage_in_float16(backbone: ResidualBackbone):
    checks = np.indices((WINDOW_PX, WINDOW_PX)).sum(axis=0) % 2 * 255
    harsh = np.repeat(checks[None, ..., None], 3, axis=3).astype(np.uint8)
    harsh[:, :49] = 0
    for windows in (harsh, textured(1)):
        embedding = backbone(windows)
        assert embedding.abs().max() <= residual.LIMIT
        torch.testing.assert_close(embedding.half().float(), embedding, rtol=1e-3, atol=1e-3)


def test_what_it_says_of_itself(backbone: ResidualBackbone):
    assert isinstance(backbone, Backbone)
    assert backbone.spec.backbone == "residual:srm"
    assert backbone.spec.implementation == "residual"
    assert (backbone.patch_px, backbone.spec.grid) == (14, GRID)
    assert backbone.width == backbone.spec.width == 720
    assert backbone.spec.layers == ()
    assert not backbone.spec.norm
    assert backbone.pins.precision == "float32"
    assert backbone.weights_sha256 == ResidualBackbone(504, "cpu").weights_sha256
    assert "Fridrich" in backbone.card.notes
    assert not backbone(textured(1)).requires_grad


@pytest.mark.parametrize(
    "name", ["FLOOR", "TIE_BREAK", "SPREAD_FLOOR", "LIMIT", "SURROUNDINGS", "YCBCR", "PLANES", "KERNELS"]
)
def test_every_constant_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch, name: str):
    before = ResidualBackbone(WINDOW_PX, "cpu").spec.fingerprint
    changed = {
        "SURROUNDINGS": (1, 3, 9),
        "YCBCR": residual.YCBCR[::-1],
        "PLANES": (PLANES[0]._replace(small=(0.25, 0.75, 1.5, 3.0, 7.0)), PLANES[1]),
        "KERNELS": {**KERNELS, "square-3x3": KERNELS["square-3x3"] / 2},
    }
    value = changed.get(name) or getattr(residual, name) * 2
    monkeypatch.setattr(residual, name, value)
    assert ResidualBackbone(WINDOW_PX, "cpu").spec.fingerprint != before


def test_loads_by_request():
    assert load_residual(LoadRequest(model="srm", device="cpu")).spec.window_px == 504
    loaded = load_residual(LoadRequest(model="srm", device="cpu", window_px=112, batch_size=3))
    assert (loaded.spec.window_px, loaded.pins.batch_size) == (112, 3)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (LoadRequest(model="cnn", device="cpu"), "write residual:srm"),
        (LoadRequest(model="srm", device="cpu", weights="random:0", seed=0), "has no weights"),
        (LoadRequest(model="srm", device="cpu", layers=(3,)), "has no blocks"),
        (LoadRequest(model="srm", device="cpu", precision="bfloat16"), "float32"),
        (LoadRequest(model="srm", device="cpu", engine="openvino"), "torch"),
        (LoadRequest(model="srm", device="cpu", batch_size=0), "at least 1"),
        (LoadRequest(model="srm", device="cpu", window_px=500), "490 and 504"),
        (LoadRequest(model="srm", device="nowhere"), "not on this machine"),
    ],
)
def test_what_it_cannot_do_is_one_line(request_: LoadRequest, says: str):
    with pytest.raises(BackboneError, match=says) as caught:
        load_residual(request_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "windows",
    [
        np.zeros((1, 98, 98), np.uint8),
        np.zeros((98, 98, 3), np.uint8),
        np.zeros((1, 112, 98, 3), np.uint8),
        np.zeros((1, 98, 98, 3), np.float32),
    ],
)
def test_other_shapes_and_types_are_refused(backbone: ResidualBackbone, windows: np.ndarray):
    with pytest.raises(BackboneError, match="residual:srm expects windows"):
        backbone(windows)
