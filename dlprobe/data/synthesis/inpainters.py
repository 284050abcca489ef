"""Ways to fill a mask with new content, before it passes through an auto-encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    Inpainter: TypeAlias = Callable[
        [NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]
    ]

#: Functions of (pixels, mask, donor pixels, rng) that return pixels with the mask filled and the rest untouched.
INPAINTERS: Registry[Inpainter] = Registry("inpainter", "dlprobe.inpainters")
#: Radius of the neighbourhood from which OpenCV continues a pixel.
_RADIUS_PX = 3.0


@INPAINTERS.register("telea")
def telea(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    donor: NDArray[np.uint8],  # noqa: ARG001 (one signature for all)
    rng: np.random.Generator,  # noqa: ARG001
) -> NDArray[np.uint8]:
    """Fill by fast marching (Telea, An Image Inpainting Technique Based on the Fast Marching Method, 2004)."""
    return _opencv(pixels, mask, cv2.INPAINT_TELEA)


@INPAINTERS.register("ns")
def navier_stokes(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    donor: NDArray[np.uint8],  # noqa: ARG001
    rng: np.random.Generator,  # noqa: ARG001
) -> NDArray[np.uint8]:
    """Fill by fluid dynamics (Bertalmio, Bertozzi and Sapiro, Navier-Stokes ... Image and Video Inpainting, 2001)."""
    return _opencv(pixels, mask, cv2.INPAINT_NS)


@INPAINTERS.register("donor")
def donate(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], donor: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Fill with content of another photograph, cut at random, unscaled; a smaller donor is continued by reflection."""
    height, width = mask.shape
    spare = [(0, max(0, side - have)) for side, have in zip((height, width), donor.shape[:2], strict=True)]
    wide = np.pad(donor, (*spare, (0, 0)), mode="symmetric")
    y, x = (int(rng.integers(0, have - side + 1)) for have, side in zip(wide.shape[:2], (height, width), strict=True))
    return np.where(mask[..., None], wide[y : y + height, x : x + width], pixels)


def _opencv(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], method: int) -> NDArray[np.uint8]:
    filled = cv2.inpaint(pixels, mask.astype(np.uint8), _RADIUS_PX, method)
    return np.where(mask[..., None], filled, pixels)
