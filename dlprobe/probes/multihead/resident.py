"""Embeddings that stay on the device: what fits is copied there once and never read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dlprobe.probes.multihead.batches import as_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.probes.multihead.batches import HeadBatch

#: Share of a device's free memory that embeddings may take by default.
DEVICE_SHARE = 0.7


class ResidentWindows:
    """Windows by their global numbers, in the dtype they came in, up to a number of bytes.

    Parameters
    ----------
    device : torch.device
    capacity_bytes : int or None
        What the windows may take; None means a share of a CUDA device's free memory, and nothing on a CPU, where the
        caller's own cache does as well.
    """

    def __init__(self, device: torch.device, capacity_bytes: int | None) -> None:
        self._device = device
        if capacity_bytes is None:
            capacity_bytes = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
        self._capacity_bytes = capacity_bytes
        self._slots: dict[int, tuple[int, int]] = {}
        self._chunks: list[torch.Tensor] = []
        self._used_bytes = 0

    def embeddings(self, batch: HeadBatch) -> torch.Tensor:
        """Return the embeddings of a batch, (n, patches, width), reading them unless all are here."""
        numbers = batch.windows.tolist()
        if numbers and all(number in self._slots for number in numbers):
            return self._gather(numbers)
        read = as_tensor(batch.read())
        if not self._capacity_bytes:
            return read
        moved = read.to(self._device)
        self._keep(batch.windows, moved)
        return moved

    def _gather(self, numbers: list[int]) -> torch.Tensor:
        places = np.array([self._slots[number] for number in numbers])
        first = self._chunks[places[0, 0]]
        result = torch.empty((len(numbers), *first.shape[1:]), dtype=first.dtype, device=self._device)
        for chunk in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == chunk)
            rows = torch.from_numpy(places[here, 1]).to(self._device)
            result[torch.from_numpy(here).to(self._device)] = self._chunks[chunk][rows]
        return result

    def _keep(self, windows: NDArray[np.int64], moved: torch.Tensor) -> None:
        """Keep those windows of a batch that are new, as long as there is room."""
        new = [i for i, number in enumerate(windows.tolist()) if number not in self._slots]
        size = moved[:1].numel() * moved.element_size()
        new = new[: max(0, (self._capacity_bytes - self._used_bytes) // max(size, 1))]
        if not new:
            return
        self._used_bytes += len(new) * size
        self._slots.update({int(windows[i]): (len(self._chunks), row) for row, i in enumerate(new)})
        self._chunks.append(moved[torch.tensor(new, device=self._device)])
