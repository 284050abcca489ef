"""Let float32 mean float32 on CUDA, whatever the process allows, and by whichever of torch's two sets of names."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

#: torch 2.9 named the settings anew. To read one by its old name raises where it was set by the new one, and to set one
#: by its old name does not undo what a level above allows, and warns.
_NAME, _ALLOWED, _FORBIDDEN = (
    ("fp32_precision", "tf32", "ieee") if hasattr(torch.backends, "fp32_precision") else ("allow_tf32", True, False)
)


class _Without:
    """How many callers compute without TF32, and what was allowed before the first of them."""

    lock = threading.Lock()
    callers = 0
    allowed: tuple[Any, ...] = ()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute matrix products and convolutions with 24 bits of mantissa and not with eleven.

    The settings are the process's: all go back to what the first caller found when the last one has ended.
    """
    with _Without.lock:
        if not _Without.callers:
            _Without.allowed = tuple(setting for setting in _settings() if getattr(setting, _NAME) == _ALLOWED)
            for setting in _Without.allowed:
                setattr(setting, _NAME, _FORBIDDEN)
        _Without.callers += 1
    try:
        yield
    finally:
        with _Without.lock:
            _Without.callers -= 1
            if not _Without.callers:
                for setting in _Without.allowed:
                    _allow(setting)


def _allow(setting: Any) -> None:
    """Set back what was allowed; by the new names also as it was, by a level above or here."""
    if _NAME == "fp32_precision":
        setting.fp32_precision = "none"  # what is above holds
    if getattr(setting, _NAME) != _ALLOWED:
        setattr(setting, _NAME, _ALLOWED)


def _settings() -> tuple[Any, Any]:
    """Return where products and convolutions are set."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv if _NAME == "fp32_precision" else cudnn
