"""What an interrupted adaptation goes on from: one file, there and whole or not there, without any code in it."""

from __future__ import annotations

from io import BytesIO
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from dlprobe.errors import ProbeError
from dlprobe.publish import publish

if TYPE_CHECKING:
    from pathlib import Path


def write_state(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values, durably."""
    import torch

    content = BytesIO()
    torch.save({"identity": identity, **state}, content)
    with publish(path, durable=True) as scratch:
        scratch.write_bytes(content.getbuffer())


def read_state(path: Path, identity: str) -> dict[str, Any] | None:
    """Return what `write_state` wrote; None if there is no file.

    Raises
    ------
    ProbeError
        If it is damaged, or belongs to another adaptation.
    """
    import torch

    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        msg = f"the checkpoint {path} is damaged; remove it and run the same command again"
        raise ProbeError(msg) from error
    if not isinstance(state, dict) or state.pop("identity", None) != identity:
        msg = f"the checkpoint {path} is of other windows, weights or settings; remove it, or give another --out"
        raise ProbeError(msg)
    return state
