"""Copies between the host and a device that do not wait for the device's work, nor it for them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; on CUDA from pinned memory, on a stream of its own, while earlier work goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    with torch.cuda.stream(_copies(device, "in")):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(_copies(device, "in"))
    moved.record_stream(current)
    return moved


def to_host(tensors: Sequence[torch.Tensor | None]) -> Callable[[], list[torch.Tensor | None]]:
    """Begin to copy tensors to the host; return what waits for the copies.

    On CUDA they go into pinned memory, on a stream of their own that waits for the work that makes them.
    """
    device = next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
    if device.type != "cuda":
        return lambda: [None if tensor is None else tensor.cpu() for tensor in tensors]
    stream = _copies(device, "out")
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        copied = [None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in tensors]
        done = stream.record_event()
    for tensor in tensors:
        if tensor is not None:
            tensor.record_stream(stream)

    def wait() -> list[torch.Tensor | None]:
        done.synchronize()
        return copied

    return wait


@cache
def _copies(device: torch.device, _direction: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
