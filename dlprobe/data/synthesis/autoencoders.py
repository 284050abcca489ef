"""Two linear auto-encoders, fitted in closed form on sums over photographs.

They stand in for the variational auto-encoders of latent diffusion: content passes through a narrow code, comes back
with its meaning unchanged, and loses fine detail. Each is a least-squares solution of second moments that add up over
photographs, so that fitting on all photographs but a few costs one small solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Side of the colour blocks of the principal-component auto-encoder, in pixels.
BLOCK_PX = 8
#: Components kept of a block's 192 numbers: as many as recent latent-diffusion models keep of 8x8 pixels.
COMPONENTS = 16
#: Factor by which the super-resolving auto-encoder shrinks each side.
FACTOR = 3
#: Radius of the neighbourhood of small pixels from which a large one is regressed.
RADIUS = 2
#: Ridge penalty, per sample, for pixel values in [0, 1].
RIDGE = 1e-4


class Autoencoder(Protocol):
    """Pixels in, pixels of the same shape out."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode and decode RGB bytes of shape (height, width, 3)."""
        ...


class Moments(NamedTuple):
    """Means over the samples of one photograph: of the inputs, their products, and inputs times outputs."""

    mean: NDArray[np.float64]
    second: NDArray[np.float64]
    cross: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockPca:
    """Projection of 8x8 colour blocks on their leading principal components.

    Parameters
    ----------
    mean : ndarray, shape (192,)
        Mean block.
    axes : ndarray, shape (192, components)
        Orthonormal components.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode and decode; a side that 8 does not divide is continued by reflection and cut again."""
        padded = _padded(pixels, BLOCK_PX)
        blocks = _blocks(padded, BLOCK_PX) - self.mean
        decoded = blocks @ self.axes @ self.axes.T + self.mean
        return _bytes(_unblock(decoded, padded.shape, BLOCK_PX), pixels.shape)


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """Area reduction by 3, undone by a linear map from 5x5 small pixels to 3x3 large ones.

    Parameters
    ----------
    weights : ndarray, shape (75 + 1, 27)
        Ridge regression; the last row is the constant.
    """

    weights: NDArray[np.float64]

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode and decode; a side that 3 does not divide is continued by reflection and cut again."""
        padded = _padded(pixels, FACTOR)
        decoded = _neighbourhoods(_shrunk(padded)) @ self.weights
        return _bytes(_unblock(decoded, padded.shape, FACTOR), pixels.shape)


def pca_moments(pixels: NDArray[np.uint8]) -> Moments:
    """Return the moments of a photograph's 8x8 blocks."""
    blocks = _blocks(_padded(pixels, BLOCK_PX), BLOCK_PX)
    return Moments(blocks.mean(axis=0), blocks.T @ blocks / len(blocks), np.empty((0, 0)))


def super_resolution_moments(pixels: NDArray[np.uint8]) -> Moments:
    """Return the moments that regress a photograph on its reduction."""
    padded = _padded(pixels, FACTOR)
    inputs, outputs = _neighbourhoods(_shrunk(padded)), _blocks(padded, FACTOR)
    return Moments(inputs.mean(axis=0), inputs.T @ inputs / len(inputs), inputs.T @ outputs / len(inputs))


def fit_pca(moments: Sequence[Moments], components: int = COMPONENTS) -> BlockPca:
    """Fit the principal components of the blocks of several photographs, each of the same weight.

    Raises
    ------
    DataError
        If no photograph is given.
    """
    pooled = _pooled(moments)
    covariance = pooled.second - np.outer(pooled.mean, pooled.mean)
    _, vectors = np.linalg.eigh(covariance)  # eigenvalues ascend
    return BlockPca(pooled.mean, vectors[:, ::-1][:, :components])


def fit_super_resolution(moments: Sequence[Moments], ridge: float = RIDGE) -> SuperResolution:
    """Fit the map from small to large pixels on several photographs, each of the same weight.

    Raises
    ------
    DataError
        If no photograph is given.
    """
    pooled = _pooled(moments)
    penalty = np.full(len(pooled.second), ridge)
    penalty[-1] = 0.0  # the constant is free
    weights = np.linalg.solve(pooled.second + np.diag(penalty), pooled.cross)
    return SuperResolution(np.asarray(weights, np.float64))


def _pooled(moments: Sequence[Moments]) -> Moments:
    if not moments:
        msg = "an auto-encoder needs at least one photograph to be fitted on; give more photographs"
        raise DataError(msg)
    return Moments(*(np.mean(np.stack(values), axis=0) for values in zip(*moments, strict=True)))


def _padded(pixels: NDArray[np.uint8], step: int) -> NDArray[np.float64]:
    height, width = pixels.shape[:2]
    values = pixels.astype(np.float64) / 255.0
    return np.pad(values, ((0, -height % step), (0, -width % step), (0, 0)), mode="symmetric")


def _blocks(values: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    height, width, channels = values.shape
    split = values.reshape(height // step, step, width // step, step, channels)
    return split.transpose(0, 2, 1, 3, 4).reshape(-1, step * step * channels)


def _unblock(blocks: NDArray[np.float64], shape: tuple[int, ...], step: int) -> NDArray[np.float64]:
    height, width, channels = shape
    split = blocks.reshape(height // step, width // step, step, step, channels)
    return split.transpose(0, 2, 1, 3, 4).reshape(shape)


def _shrunk(values: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width, channels = values.shape
    small: NDArray[np.float64] = values.reshape(height // FACTOR, FACTOR, width // FACTOR, FACTOR, channels).mean(
        axis=(1, 3)
    )
    return np.rint(small * 255.0) / 255.0  # the code is stored in bytes


def _neighbourhoods(small: NDArray[np.float64]) -> NDArray[np.float64]:
    side = 2 * RADIUS + 1
    framed = np.pad(small, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="symmetric")
    views = np.lib.stride_tricks.sliding_window_view(framed, (side, side), axis=(0, 1))
    flat = views.reshape(-1, side * side * small.shape[2])
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)


def _bytes(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    cut = values[: shape[0], : shape[1]]
    return np.clip(np.rint(cut * 255.0), 0, 255).astype(np.uint8)
