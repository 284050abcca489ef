"""Put named tensors into a network, every one accounted for."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Tensors that a checkpoint may have and an embedding does not need. What was dropped is told as ``backbone.dropped``.
DROPPED_PATTERNS = (
    "head.*",  # a classifier on top of the pooled tokens
    "head_dist.*",
    "fc.*",
    "mask_token",  # pretraining only
    "*pos_weight",  # of a weighted loss
)


def fit_state(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    what: str,
    droppable: Sequence[str] = DROPPED_PATTERNS,
) -> tuple[str, ...]:
    """Copy tensors into a network; every name and shape must agree.

    Parameters
    ----------
    network : torch.nn.Module
        Receives the values, in its own dtype.
    tensors : mapping of str to tensor
        In the network's own naming.
    what : str
        Which file and which network, for the message.
    droppable : sequence of str
        Patterns of names that may be left over.

    Returns
    -------
    tuple of str
        Names that were left over, all of them among `droppable`.

    Raises
    ------
    BackboneError
        If a tensor is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in tensors]
    left = [name for name in tensors if name not in expected]
    dropped = tuple(name for name in left if any(fnmatchcase(name, pattern) for pattern in droppable))
    unexpected = [name for name in left if name not in dropped]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)]
    if trouble := "; ".join(f"{kind} {_some(names)}" for kind, names in found if names):
        msg = f"{what} do not fit: {trouble}; give the file that belongs to this backbone, or the backbone of this file"
        raise BackboneError(msg)
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
    return dropped


def resample_positions(
    tensors: dict[str, torch.Tensor], grid: tuple[int, int], width: int, prefix_tokens: int, name: str = "pos_embed"
) -> str:
    """Bring a position embedding to the grid of the window with timm's own function, in place.

    Parameters
    ----------
    tensors : dict of str to tensor
        Changed under `name`, if it is there, has shape (1, prefix + rows * rows, width) and another grid.
    grid : tuple of int
        Rows and columns wanted.
    width : int
        Numbers per token.
    prefix_tokens : int
        Tokens before the patches that have positions too.

    Returns
    -------
    str
        What was done, for people; empty if nothing.
    """
    from timm.layers import resample_abs_pos_embed

    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 3 or tensor.shape[2] != width:
        return ""
    side = math.isqrt(max(0, tensor.shape[1] - prefix_tokens))
    if side == 0 or side * side != tensor.shape[1] - prefix_tokens or (side, side) == grid:
        return ""
    tensors[name] = resample_abs_pos_embed(
        tensor, new_size=list(grid), old_size=[side, side], num_prefix_tokens=prefix_tokens
    )
    return describe_resampling((side, side), grid)


def describe_resampling(before: tuple[int, int], after: tuple[int, int]) -> str:
    """Say that a position embedding was brought from one grid to another."""
    return f"position embedding from {before[0]}x{before[1]} to {after[0]}x{after[1]} (timm: bicubic, antialiased)"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
