"""Embeddings as they are stored, and back.

int8 keeps, for each window and feature, the largest magnitude over the window's patches as the scale of 127 steps: an
error of at most 1/254 of that magnitude, for 4 bytes a window and feature beside one byte a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Storage types, the default first.
DTYPES = ("float16", "float32", "int8")
_STEPS = 127


def to_float(values: NDArray[np.float32], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Round to a floating-point storage type.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols, width)
        Finite embeddings of a window.
    dtype : dtype
        Storage type.
    name : str
        What they are embeddings of, for the message.

    Raises
    ------
    CacheError
        If a value is too large for the type; names the channel.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if np.isinf(stored).any():
        largest = np.abs(values).max(axis=(0, 1))
        channel = int(largest.argmax())
        msg = (
            f"channel {channel} reaches {largest[channel]:.4g} in {name}, too large for {dtype.name}; "
            "extract to another path with dtype float32 (--dtype float32)"
        )
        raise CacheError(msg)
    return stored


def quantise(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes and the scale of each feature.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols, width)
        Finite embeddings of a window.

    Returns
    -------
    codes : ndarray of int8, shape (rows, cols, width)
        In -127..127.
    scale : ndarray of float32, shape (width,)
        Zero where a feature is zero throughout.
    """
    scale = (np.abs(values).max(axis=(0, 1)) / np.float32(_STEPS)).astype(np.float32)
    steps = values / np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(steps), -_STEPS, _STEPS).astype(np.int8), scale


def dequantise(
    codes: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return embeddings from codes, one window at a time so that the work stays in the processor's cache.

    Parameters
    ----------
    codes : ndarray of int8, shape (n, rows, cols, width)
        As stored.
    scale : ndarray of float32, shape (n, width)
        As stored.
    out : ndarray of float32, shape (n, rows, cols, width), optional
        Where to put them.
    """
    found = np.empty(codes.shape, np.float32) if out is None else out
    for window in range(len(codes)):
        np.multiply(codes[window], scale[window], out=found[window])
    return found
