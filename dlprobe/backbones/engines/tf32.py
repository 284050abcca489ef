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
    """How many callers compute without TF32, and which settings were changed for the first of them, from what."""

    lock = threading.Lock()
    callers = 0
    changed: tuple[tuple[Any, Any], ...] = ()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute matrix products and convolutions with 24 bits of mantissa and not with eleven.

    The settings are the process's: all go back to what the first caller found when the last one has ended. By the new
    names, what is set at a level above reaches those below as before; only where TF32 was allowed both for CUDA and for
    all of torch, CUDA then follows the latter.
    """
    with _Without.lock:
        if not _Without.callers:
            _Without.changed = tuple(_forbid())
        _Without.callers += 1
    try:
        yield
    finally:
        with _Without.lock:
            _Without.callers -= 1
            if not _Without.callers:
                for setting, was in reversed(_Without.changed):
                    _set_back(setting, was)


def _forbid() -> Iterator[tuple[Any, Any]]:
    """Forbid what is allowed; yield each setting that is changed, and what it was.

    By the new names, convolutions are allowed TF32 by a default that no value sets again. It gives way to the level
    above, so this is set first, and what is allowed all the same was set by somebody.
    """
    backends: Any = torch.backends
    cudnn = backends.cudnn
    new = _NAME == "fp32_precision"
    settings = [backends.cuda.matmul, cudnn.conv if new else cudnn]
    if new and not backends.flags_frozen() and any(getattr(each, _NAME) == _ALLOWED for each in settings):
        settings.insert(0, cudnn)  # of all that CUDA computes
    for setting in settings:
        was = getattr(setting, _NAME)
        if was == _ALLOWED or (new and setting is cudnn and was != _FORBIDDEN):
            setattr(setting, _NAME, _FORBIDDEN)
            yield setting, was


def _set_back(setting: Any, was: Any) -> None:
    """Set back what was changed; by the new names also as it was, by a level above or here."""
    if _NAME == "fp32_precision":
        setting.fp32_precision = "none"  # what is above holds
    if getattr(setting, _NAME) != was:
        setattr(setting, _NAME, was)
