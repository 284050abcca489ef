"""`residual:srm`: statistics of high-pass residuals per patch, the classical forensic baseline.

Generated and auto-encoded content lacks the fine noise of a camera, or carries another one. The high-pass filters are
those of Fridrich and Kodovsky, Rich Models for Steganalysis of Digital Images (IEEE TIFS 7(3), 2012, fig. 3), each
divided by its largest coefficient. Where they count co-occurrences of quantised residuals over a whole image, this
takes first-order statistics of each patch and of its surroundings, beside how unusual they are within the window.

It needs no weights and no network: it is the floor that every learned backbone has to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its customary name)

from dlprobe.backbones.base import BackboneCard, require_divides
from dlprobe.backbones.engines.choosing import choose_device
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.errors import BackboneError
from dlprobe.spec import ModelSpec, Pins, fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.backbones.base import LoadRequest
    from dlprobe.backbones.loading import Recipe

NAME = "residual:srm"
PATCH_PX = 14
DEFAULT_WINDOW_PX = 504
DEFAULT_BATCH_SIZE = 8


def _line(taps: tuple[float, ...]) -> NDArray[np.float64]:
    """Return a horizontal filter in the middle row of a 5x5 support."""
    kernel = np.zeros((5, 5))
    kernel[2] = taps
    return kernel


#: RGB bytes to Y, Cb, Cr (ITU-R BT.601, full range, no offset).
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

#: High-pass filters on a 5x5 support; each sums to zero, and its central coefficient is -1.
KERNELS: dict[str, NDArray[np.float64]] = {
    "first-horizontal": _line((0, 0, -1, 1, 0)),
    "first-vertical": _line((0, 0, -1, 1, 0)).T,
    "second-horizontal": _line((0, 0.5, -1, 0.5, 0)),
    "second-vertical": _line((0, 0.5, -1, 0.5, 0)).T,
    "second-diagonal": np.diag((0, 0.5, -1, 0.5, 0)),
    "second-antidiagonal": np.fliplr(np.diag((0, 0.5, -1, 0.5, 0))),
    "square-3x3": np.pad(np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4, 1),
    "square-5x5": np.array(
        [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]
    )
    / 12,
    "fourth-horizontal": _line((-1, 4, -6, 4, -1)) / 6,
    "fourth-vertical": _line((-1, 4, -6, 4, -1)).T / 6,
    "wide-second-horizontal": _line((0.5, 0, -1, 0, 0.5)),
    "wide-second-vertical": _line((0.5, 0, -1, 0, 0.5)).T,
}


class Planes(NamedTuple):
    """What is measured in some colour channels: which of `KERNELS`, and what counts as a small residual.

    The share of residuals of at most each of `small` grey levels is a statistic, beside their mean magnitude.
    """

    channels: tuple[int, ...]
    kernels: tuple[str, ...]
    small: tuple[float, ...]


#: Residuals of grey content are multiples of 1/12: a bound between two of them leaves no decision to rounding.
TIE_BREAK = 1 / 24
#: Luma has every kernel and the finer distribution; chroma, which is smoother, the first eight and a coarse one.
PLANES = (
    Planes((0,), tuple(KERNELS), (0.25, 0.75, 1.5, 3.0, 6.0)),
    Planes((1, 2), tuple(KERNELS)[:8], (0.25, 0.75)),
)
#: Sides of the surroundings that statistics are taken over, in patches: 14, 42 and 98 px.
SURROUNDINGS = (1, 3, 7)
#: Added to a mean magnitude before its logarithm, in grey levels.
FLOOR = 0.02
#: Added to a spread before it divides, so that flat windows stay finite.
SPREAD_FLOOR = 0.05
#: Bound of the robust z-scores.
LIMIT = 20.0
#: Median absolute deviation to standard deviation, of a normal distribution.
_MAD_TO_SIGMA = 1.4826
_MARGIN = 2
_STRIP_PATCHES = 4


class ResidualBackbone:
    """Residual statistics as a backbone (see `dlprobe.backbones.base.Backbone`).

    Every plane (kernel x colour channel) x statistic (logarithm of the mean magnitude, shares of small residuals) x
    surroundings gives two numbers: the value, and its distance from the window's median in robust standard deviations.

    Parameters
    ----------
    window_px : int
        Side of a window; 14 divides it.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    batch_size : int
        Windows that callers should hand over at a time; each is computed by itself, so that it changes nothing.

    Raises
    ------
    BackboneError
        If 14 does not divide the window, or the device is not on this machine.
    """

    weights = "none"

    def __init__(
        self, window_px: int = DEFAULT_WINDOW_PX, device: str = "auto", batch_size: int = DEFAULT_BATCH_SIZE
    ) -> None:
        require_divides(PATCH_PX, window_px, NAME)
        self.device = choose_device(device)
        self.recipe: Recipe | None = None
        self.pins = Pins(engine="torch", precision="float32", device=self.device.type, batch_size=batch_size)
        base = sum(len(planes.channels) * len(planes.kernels) * (1 + len(planes.small)) for planes in PLANES)
        self.spec = ModelSpec(
            backbone=NAME,
            implementation="residual",
            weights_sha256=_constants_sha256(),
            layers=(),
            norm=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize_rule=RESIZE_RULE,
            window_px=window_px,
            patch_px=PATCH_PX,
            width=2 * len(SURROUNDINGS) * base,
        )
        self.card = BackboneCard(
            name=NAME,
            weights=self.weights,
            licence="Apache-2.0",
            trained_on="nothing: fixed high-pass filters",
            notes="Fridrich and Kodovsky, Rich Models for Steganalysis of Digital Images, IEEE TIFS 7(3), 2012",
        )
        self._kernels = [
            torch.tensor(np.stack([KERNELS[name] for name in planes.kernels]), dtype=torch.float32, device=self.device)
            for planes in PLANES
        ]
        self._ycbcr = torch.tensor(YCBCR, dtype=torch.float32, device=self.device)

    @property
    def width(self) -> int:
        """Numbers per patch."""
        return self.spec.width

    @property
    def patch_px(self) -> int:
        """Side of a patch, in pixels."""
        return self.spec.patch_px

    @property
    def weights_sha256(self) -> str:
        """Hash of the kernels and constants."""
        return self.spec.weights_sha256

    def __call__(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Embed windows, one by one.

        Parameters
        ----------
        windows : ndarray or tensor of uint8, shape (batch, window_px, window_px, 3)
            RGB.

        Returns
        -------
        tensor of float32, shape (batch, rows, cols, width)
            On the backbone's device; magnitudes stay below 256, so that float16 can hold them.

        Raises
        ------
        BackboneError
            If shape or dtype are others.
        """
        side = self.spec.window_px
        if windows.ndim != 4 or tuple(windows.shape[1:]) != (side, side, 3):
            msg = f"{NAME} expects windows of shape (batch, {side}, {side}, 3), got {tuple(windows.shape)}"
            raise BackboneError(msg)
        if str(windows.dtype).removeprefix("torch.") != "uint8":
            msg = f"{NAME} expects windows of uint8 RGB, got {windows.dtype}"
            raise BackboneError(msg)
        grid = self.spec.grid
        embeddings = torch.empty((len(windows), grid, grid, self.width), dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            for window, embedding in zip(windows, embeddings, strict=True):
                pixels = torch.tensor(window) if isinstance(window, np.ndarray) else window
                embedding.copy_(self._embed(pixels.to(self.device)))
        return embeddings

    def _embed(self, window: torch.Tensor) -> torch.Tensor:
        channels = (window.to(torch.float32) @ self._ycbcr.T).permute(2, 0, 1)
        framed = F.pad(channels[:, None], (_MARGIN,) * 4, mode="reflect")
        means, shares = [], []
        for planes, kernels in zip(PLANES, self._kernels, strict=True):
            residuals = F.conv2d(framed[list(planes.channels)], kernels[:, None]).flatten(0, 1).abs_()
            strips = torch.split(residuals, _STRIP_PATCHES * PATCH_PX, dim=1)  # a strip stays in the cache
            pooled = torch.cat([_pooled(strip.contiguous(), planes.small) for strip in strips], dim=2)
            means.append(pooled[0])
            shares.append(pooled[1:].flatten(0, 1))
        statistics = torch.cat([*means, *shares])
        magnitudes = sum(len(part) for part in means)
        values = [_around(statistics, side, magnitudes) for side in SURROUNDINGS]
        return torch.cat([*values, *(_robust_z(value) for value in values)]).permute(1, 2, 0)


def load_residual(request: LoadRequest) -> ResidualBackbone:
    """Return the backbone that `dlprobe.backbones.load_backbone` was asked for.

    Raises
    ------
    BackboneError
        If it is not ``srm``, or weights, layers, an engine or a precision are asked for that it does not have.
    """
    if request.model != "srm":
        msg = f"no backbone 'residual:{request.model}'; write {NAME}"
        raise BackboneError(msg)
    if request.weights not in {"pretrained", ResidualBackbone.weights}:
        msg = f"{NAME} has no weights, but {request.weights!r} was asked for; leave --weights out"
        raise BackboneError(msg)
    if tuple(request.layers) not in {(-1,), ()}:
        msg = f"{NAME} has no blocks, but layers {list(request.layers)} were asked for; leave --layers out"
        raise BackboneError(msg)
    if request.engine != "torch" or request.compiled or request.precision not in {"auto", "float32"}:
        msg = f"{NAME} runs in torch and float32; leave --engine, --compile and --precision out"
        raise BackboneError(msg)
    if request.batch_size is not None and request.batch_size < 1:
        msg = f"batch_size is {request.batch_size}; it must be at least 1"
        raise BackboneError(msg)
    window_px = DEFAULT_WINDOW_PX if request.window_px is None else request.window_px
    return ResidualBackbone(window_px, request.device, request.batch_size or DEFAULT_BATCH_SIZE)


def _pooled(magnitudes: torch.Tensor, small: tuple[float, ...]) -> torch.Tensor:
    """Return mean magnitude and shares of small ones in each patch: (statistic, plane, rows, cols)."""
    below = torch.empty_like(magnitudes)
    pooled = [_patch_means(magnitudes)]
    for bound in small:
        torch.lt(magnitudes, bound + TIE_BREAK, out=below)
        pooled.append(_patch_means(below))
    return torch.stack(pooled)


def _patch_means(planes: torch.Tensor) -> torch.Tensor:
    count, height, width = planes.shape
    columns = planes.view(count, height // PATCH_PX, PATCH_PX, width).sum(2)
    sums = columns.view(count, height // PATCH_PX, width // PATCH_PX, PATCH_PX).sum(3)
    return sums / PATCH_PX**2


def _around(statistics: torch.Tensor, side: int, magnitudes: int) -> torch.Tensor:
    """Return means over squares of `side` patches, cut at the border; the first `magnitudes` become logarithms."""
    means = F.avg_pool2d(statistics, side, stride=1, padding=side // 2, count_include_pad=False)
    means[:magnitudes] = (means[:magnitudes] + FLOOR).log_()
    return means


def _robust_z(values: torch.Tensor) -> torch.Tensor:
    """Return distances from the median over the grid, in robust standard deviations."""
    flat = values.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    spread = _MAD_TO_SIGMA * centred.abs().median(dim=1, keepdim=True).values + SPREAD_FLOOR
    return (centred / spread).clamp_(-LIMIT, LIMIT).view_as(values)


def _constants_sha256() -> str:
    return fingerprint(
        {
            "ycbcr": YCBCR,
            "kernels": {name: kernel.tolist() for name, kernel in KERNELS.items()},
            "planes": PLANES,
            "tie_break": TIE_BREAK,
            "surroundings": SURROUNDINGS,
            "floor": FLOOR,
            "spread_floor": SPREAD_FLOOR,
            "limit": LIMIT,
        }
    )
