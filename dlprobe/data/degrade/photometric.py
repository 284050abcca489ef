"""What changes values in place: noise, blur, gamma and colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

from dlprobe.data.degrade.base import Photometric, named, require_within
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from dlprobe.data.degrade.base import Pixels

_LARGEST_KERNEL_PX = 999


@named("noise")
@dataclass(frozen=True, slots=True)
class Noise(Photometric):
    """White Gaussian noise, independent in each pixel and channel, rounded and clipped.

    Parameters
    ----------
    sigma_levels : float
        Standard deviation in grey levels of 0..255 (not a variance, which IMDLBenCo's tables give).
    """

    sigma_levels: float

    def __post_init__(self) -> None:
        require_within(0, 255, sigma_levels=self.sigma_levels)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Return noisy pixels."""
        noisy = pixels + self.sigma_levels * rng.standard_normal(pixels.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


@named("blur")
@dataclass(frozen=True, slots=True)
class Blur(Photometric):
    """Gaussian blur, the border mirrored without its edge (OpenCV's ``GaussianBlur``).

    Parameters
    ----------
    sigma_px : float, optional
        Standard deviation; the kernel then reaches over four of them.
    kernel_px : int, optional
        Odd side of the kernel, as in papers that name a kernel alone: OpenCV then takes the standard deviation
        ``0.15 * kernel_px + 0.35``, and fixed weights of its own up to 7. Give one of the two.
    """

    sigma_px: float | None = None
    kernel_px: int | None = None

    def __post_init__(self) -> None:
        if (self.sigma_px is None) == (self.kernel_px is None):
            msg = "a blur has either a sigma or a kernel; write blur:sigma=1.5 or blur:kernel=7"
            raise DataError(msg)
        if self.sigma_px is not None:
            require_within(0, 100, sigma_px=self.sigma_px)
        if self.kernel_px is not None:
            require_within(1, _LARGEST_KERNEL_PX, kernel_px=self.kernel_px)
            if self.kernel_px % 2 == 0:
                msg = f"kernel_px is {self.kernel_px}; it must be odd"
                raise DataError(msg)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return blurred pixels."""
        import cv2

        if self.sigma_px is None:
            side, sigma = self.kernel_px, 0.0
        else:
            side, sigma = 2 * math.ceil(4 * self.sigma_px) + 1, self.sigma_px
        if side == 1:
            return pixels
        return np.asarray(cv2.GaussianBlur(pixels, (side, side), sigma), np.uint8)


@named("gamma")
@dataclass(frozen=True, slots=True)
class Gamma(Photometric):
    """A power law: ``255 * (value / 255) ** exponent``; exponents above 1 darken.

    Parameters
    ----------
    exponent : float
        Of the power law.
    """

    exponent: float

    def __post_init__(self) -> None:
        require_within(0.01, 100, exponent=self.exponent)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return the values looked up in a table."""
        table = np.rint(255 * (np.arange(256) / 255) ** self.exponent).astype(np.uint8)
        return table[pixels]


@named("jitter")
@dataclass(frozen=True, slots=True)
class ColourJitter(Photometric):
    """Brightness, then contrast, saturation and hue, as Pillow's ``ImageEnhance`` and torchvision's ``ColorJitter``.

    Parameters
    ----------
    brightness, contrast, saturation : float
        Factors: the distance from black, from the image's mean luma, from the pixel's own luma. 1 changes nothing.
    hue_turns : float
        Shift of hue, -0.5 to 0.5 of a full turn, on a circle of 256 steps.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_turns: float = 0.0

    def __post_init__(self) -> None:
        require_within(0, 10, brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        require_within(-0.5, 0.5, hue_turns=self.hue_turns)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return the pixels in other colours."""
        image = Image.fromarray(pixels)
        for enhancer, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1:
                image = enhancer(image).enhance(factor)
        if steps := round(self.hue_turns * 256):
            hue, *others = image.convert("HSV").split()
            turned = np.asarray(hue) + np.uint8(steps % 256)  # wraps around, as hue does
            image = Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")
        return np.array(image)
