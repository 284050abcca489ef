"""Storage types of embeddings, and the way back from int8.

int8 keeps, for each window and feature, the largest magnitude over the window's patches as the scale of 127 steps: an
error of at most 1/254 of that magnitude, for 4 bytes a window and feature beside one byte a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Storage types, the default first.
DTYPES = ("float16", "float32", "int8")
#: Steps of an int8 code on either side of zero.
STEPS = 127


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
