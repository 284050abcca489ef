"""`residual:srm`: statistics of high-pass residuals per patch, the classical forensic baseline.

Generated and auto-encoded content lacks the fine noise of a camera, or carries another one. The high-pass filters are
those of Fridrich and Kodovsky, Rich Models for Steganalysis of Digital Images (IEEE TIFS 7(3), 2012, fig. 3), each
divided by its largest coefficient. Where they count co-occurrences of quantised residuals over a whole image, this
takes first-order statistics of each patch and of its surroundings, beside how unusual they are within the window.

It needs no weights and no network: it is the floor that every learned backbone has to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its customary name)

from dlprobe.backbones.base import BackboneCard, require_divides
from dlprobe.backbones.torch_backbone import choose_device
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.errors import BackboneError
from dlprobe.spec import ModelSpec, Pins, fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.backbones.base import LoadRequest

NAME = "residual:srm"
PATCH_PX = 14
DEFAULT_WINDOW_PX = 504
DEFAULT_BATCH_SIZE = 8

#: RGB bytes to Y, Cb, Cr (ITU-R BT.601, full range, no offset).
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

#: High-pass filters on a 5x5 support; each sums to zero, and its largest coefficient is 1.
KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "first-horizontal": ((0,) * 5, (0,) * 5, (0, 0, -1, 1, 0), (0,) * 5, (0,) * 5),
    "first-vertical": ((0,) * 5, (0,) * 5, (0, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0,) * 5),
    "second-horizontal": ((0,) * 5, (0,) * 5, (0, 0.5, -1, 0.5, 0), (0,) * 5, (0,) * 5),
    "second-vertical": ((0,) * 5, (0, 0, 0.5, 0, 0), (0, 0, -1, 0, 0), (0, 0, 0.5, 0, 0), (0,) * 5),
    "square-3x3": (
        (0,) * 5,
        (0, -0.25, 0.5, -0.25, 0),
        (0, 0.5, -1, 0.5, 0),
        (0, -0.25, 0.5, -0.25, 0),
        (0,) * 5,
    ),
    "square-5x5": (
        (-1 / 12, 2 / 12, -2 / 12, 2 / 12, -1 / 12),
        (2 / 12, -6 / 12, 8 / 12, -6 / 12, 2 / 12),
        (-2 / 12, 8 / 12, -1, 8 / 12, -2 / 12),
        (2 / 12, -6 / 12, 8 / 12, -6 / 12, 2 / 12),
        (-1 / 12, 2 / 12, -2 / 12, 2 / 12, -1 / 12),
    ),
}
#: A residual counts as small below these many grey levels; the share of small ones is a statistic.
SMALL = (0.75, 3.0)
#: The window is looked at in full size, and averaged down by 2.
REDUCTIONS = (1, 2)
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
_STRIP = 4


class ResidualBackbone:
    """Residual statistics as a backbone (see `dlprobe.backbones.base.Backbone`).

    Every reduction x kernel x colour channel x statistic (logarithm of the mean magnitude, shares of small residuals) x
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
        self.pins = Pins(engine="torch", precision="float32", device=self.device.type, batch_size=batch_size)
        base = len(REDUCTIONS) * len(KERNELS) * len(YCBCR) * (1 + len(SMALL))
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
        self._kernels = torch.tensor(list(KERNELS.values()), dtype=torch.float32, device=self.device)[:, None]
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
        planes = (window.to(torch.float32) @ self._ycbcr.T).permute(2, 0, 1).contiguous()
        parts = [self._statistics(planes, reduction) for reduction in REDUCTIONS]
        statistics = torch.cat(parts, dim=1)  # (statistic, reduction x channel x kernel, rows, cols)
        values = [_around(statistics, side) for side in SURROUNDINGS]
        return torch.cat([*values, *(_robust_z(value) for value in values)]).flatten(0, 1).permute(1, 2, 0)

    def _statistics(self, planes: torch.Tensor, reduction: int) -> torch.Tensor:
        """Return mean magnitude and shares of small residuals of each patch."""
        if reduction > 1:
            planes = F.avg_pool2d(planes, reduction)
        framed = F.pad(planes[:, None], (_MARGIN,) * 4, mode="reflect")
        residuals = F.conv2d(framed, self._kernels).flatten(0, 1).abs_()
        side = self.spec.patch_px // reduction
        strips = torch.split(residuals, _STRIP * side, dim=1)  # a few rows of patches at a time stay in the cache
        return torch.cat([_pooled(strip, side) for strip in strips], dim=2)


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
    if request.engine != "torch" or request.precision not in {"auto", "float32"}:
        msg = f"{NAME} runs in torch and float32; leave --engine and --precision out"
        raise BackboneError(msg)
    if request.batch_size is not None and request.batch_size < 1:
        msg = f"batch_size is {request.batch_size}; it must be at least 1"
        raise BackboneError(msg)
    window_px = DEFAULT_WINDOW_PX if request.window_px is None else request.window_px
    return ResidualBackbone(window_px, request.device, request.batch_size or DEFAULT_BATCH_SIZE)


def _pooled(magnitudes: torch.Tensor, side: int) -> torch.Tensor:
    """Return mean magnitude and shares of small ones in each square of `side` px: (statistic, plane, rows, cols)."""
    shares = [F.avg_pool2d((magnitudes < bound).to(torch.float32), side) for bound in SMALL]
    return torch.stack([F.avg_pool2d(magnitudes, side), *shares])


def _around(statistics: torch.Tensor, side: int) -> torch.Tensor:
    """Return means over squares of `side` patches, cut at the border; the first becomes a logarithm."""
    means = F.avg_pool2d(statistics, side, stride=1, padding=side // 2, count_include_pad=False)
    means[0] = (means[0] + FLOOR).log_()
    return means


def _robust_z(values: torch.Tensor) -> torch.Tensor:
    """Return distances from the median over the grid, in robust standard deviations."""
    flat = values.flatten(2)
    centred = flat - flat.median(dim=2, keepdim=True).values
    spread = _MAD_TO_SIGMA * centred.abs().median(dim=2, keepdim=True).values + SPREAD_FLOOR
    return (centred / spread).clamp_(-LIMIT, LIMIT).view_as(values)


def _constants_sha256() -> str:
    return fingerprint(
        {
            "ycbcr": YCBCR,
            "kernels": KERNELS,
            "small": SMALL,
            "reductions": REDUCTIONS,
            "surroundings": SURROUNDINGS,
            "floor": FLOOR,
            "spread_floor": SPREAD_FLOOR,
            "limit": LIMIT,
        }
    )
