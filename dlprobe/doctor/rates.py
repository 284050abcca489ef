"""How fast this machine multiplies matrices, writes and reads."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.doctor.findings import Finding, measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

DISK_BYTES = 256 << 20
_PIECE_BYTES = 8 << 20
_SIDES = {"cpu": 1536, "cuda": 8192}
_REPEATS = 3
#: A window of ViT-B at 504 px in float16 is 2 MB, and a CPU gives a few a second: slower disks are what one waits for.
_SLOW_DISK_GB_PER_S = 0.05


def gemm_rates() -> dict[tuple[str, str], float]:
    """Return the best rate of a square matrix product, in FLOP/s, by device and precision."""
    import torch

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {(str(device), name): _gemm(device, dtype) for device in devices for name, dtype in dtypes.items()}


def disk_rates(folder: Path) -> Iterator[Finding]:
    """Write a file below a folder durably, read it again past the page cache, and take it away."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".dlprobe-doctor-") as file:
            yield _told("disk write", DISK_BYTES / _write(file.fileno()))
            yield _told("disk read", DISK_BYTES / _read(Path(file.name)))
    except OSError as error:
        advice = "name a folder that can be written, with room for 256 MB (--folder)"
        yield Finding(topic="disk", found=f"{folder}: {error.strerror}", advice=advice)


def _told(topic: str, rate: float) -> Finding:
    slow = rate / 1e9 < _SLOW_DISK_GB_PER_S
    return measured(topic, rate / 1e9, "GB/s", advice="slow: keep caches on another disk" if slow else "")


def _write(descriptor: int) -> float:
    piece = np.random.default_rng(0).bytes(_PIECE_BYTES)
    start = time.perf_counter()
    for _ in range(DISK_BYTES // _PIECE_BYTES):
        os.write(descriptor, piece)
    os.fsync(descriptor)
    return time.perf_counter() - start


def _read(path: Path) -> float:
    buffer = bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.readinto(buffer):
            pass
        return time.perf_counter() - start


def _gemm(device: torch.device, dtype: torch.dtype) -> float:
    import torch

    side = _SIDES[device.type]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(1 + _REPEATS):  # the first warms up, and never is the best
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
