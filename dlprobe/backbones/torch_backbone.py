"""What all backbones that are torch networks share: bytes in, normalised on the device, patch tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from dlprobe.backbones.base import no_class_token
from dlprobe.backbones.engines.copying import to_device
from dlprobe.backbones.engines.threads import threads_beside
from dlprobe.backbones.engines.torch_engine import TorchEngine
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dlprobe.backbones.base import BackboneCard
    from dlprobe.backbones.engines.openvino_engine import OpenVinoEngine
    from dlprobe.backbones.engines.torch_engine import Tokens
    from dlprobe.backbones.loading import Recipe
    from dlprobe.spec import ModelSpec, Pins


def absolute_layers(layers: tuple[int, ...], depth: int, name: str) -> tuple[int, ...]:
    """Return block numbers counted from 0, ascending; negative ones count from the end.

    Raises
    ------
    BackboneError
        If there is none, one does not exist, or one is named twice.
    """
    for layer in layers:
        if not -depth <= layer < depth:
            msg = f"{name} has no block {layer}; write numbers from 0 to {depth - 1}, or from -{depth} to -1 (--layers)"
            raise BackboneError(msg)
    numbers = tuple(sorted(layer % depth for layer in layers))
    if not numbers or len(set(numbers)) != len(numbers):
        msg = f"layers {list(layers)} name no block, or one twice, of the {depth} blocks of {name} (--layers)"
        raise BackboneError(msg)
    return numbers


class TorchBackbone(ABC):
    """A torch network as a backbone (see `dlprobe.backbones.base.Backbone`).

    Parameters
    ----------
    network : torch.nn.Module
        Moved to `device`, set to evaluation, gradients off.
    spec, pins, card, weights
        As in the protocol.
    device : torch.device
        Where it runs.
    dropped : tuple of str
        Tensors of the checkpoint that embeddings do not need.
    interpolated : str
        What had to be interpolated for this window; empty if nothing.
    automatic_batch : bool
        Nobody chose the batch size (see `dlprobe.backbones.engines.batching`).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        spec: ModelSpec,
        pins: Pins,
        card: BackboneCard,
        weights: str,
        device: torch.device,
        dropped: tuple[str, ...] = (),
        interpolated: str = "",
        automatic_batch: bool = False,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(requires_grad=False)
        self.spec = spec
        self.pins = pins
        self.card = card
        self.weights = weights
        self.device = device
        self.dropped = dropped
        self.interpolated = interpolated
        self.automatic_batch = automatic_batch
        self.recipe: Recipe | None = None
        self._mean = torch.tensor(spec.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(spec.std, dtype=torch.float32, device=device)
        self.engine = self._make_engine()

    @property
    @abstractmethod
    def blocks(self) -> torch.nn.ModuleList:
        """The transformer's blocks."""

    @abstractmethod
    def tokens(self, pixels: torch.Tensor) -> Tokens:
        """Return the tokens of normalised pixels, layers side by side.

        Parameters
        ----------
        pixels : tensor of float32, shape (batch, 3, window_px, window_px)

        Returns
        -------
        tuple of (tensor or None, tensor)
            CLS, shape (batch, width), if the network has one; and the patches row by row, without CLS and registers,
            shape (batch, rows * cols, width).
        """

    @property
    def width(self) -> int:
        """Numbers per patch."""
        return self.spec.width

    @property
    def patch_px(self) -> int:
        """Side of a patch, in pixels."""
        return self.spec.patch_px

    @property
    def weights_sha256(self) -> str:
        """Hash of the weight file, or of all tensors where there is none."""
        return self.spec.weights_sha256

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same backbone, the network shared, with another batch size, chosen and no longer automatic."""
        other = copy(self)
        other.pins, other.automatic_batch = replace(self.pins, batch_size=batch_size), False
        other.engine = self.engine.with_pins(other.pins)
        return other

    def __call__(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Embed windows, ``pins.batch_size`` at a time.

        Parameters
        ----------
        windows : ndarray or tensor of uint8, shape (batch, window_px, window_px, 3)
            RGB.

        Returns
        -------
        tensor of float32, shape (batch, rows, cols, width)
            On the backbone's device.

        Raises
        ------
        BackboneError
            If shape or dtype are others.
        """
        batch = self._as_bytes(windows)
        grid = self.spec.grid
        embeddings = torch.empty((len(batch), grid, grid, self.width), dtype=torch.float32, device=self.device)
        with torch.inference_mode(), threads_beside(self.pins):
            for part, (_, patches) in self._one_ahead(batch):
                embeddings[part] = patches.reshape(embeddings[part].shape)
        return embeddings

    def class_tokens(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Return the CLS tokens of windows (see `with_class_tokens`), shape (batch, width)."""
        return self.with_class_tokens(windows)[1]

    def with_class_tokens(self, windows: NDArray[np.uint8] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed windows and return their CLS tokens, of the same layers and norm, from the same forward.

        Returns
        -------
        tuple of tensors of float32, shapes (batch, rows, cols, width) and (batch, width)
            On the backbone's device.

        Raises
        ------
        BackboneError
            If the network has no CLS token, or shape or dtype of the windows are others.
        """
        batch = self._as_bytes(windows)
        grid = self.spec.grid
        embeddings = torch.empty((len(batch), grid, grid, self.width), dtype=torch.float32, device=self.device)
        found = torch.empty((len(batch), self.width), dtype=torch.float32, device=self.device)
        with torch.inference_mode(), threads_beside(self.pins):
            for part, (token, patches) in self._one_ahead(batch):
                if token is None:
                    raise no_class_token(self.spec.backbone)
                embeddings[part], found[part] = patches.reshape(embeddings[part].shape), token
        return embeddings, found

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """Embed one batch of uint8 windows; differentiable with respect to the network, for fine-tuning.

        Raises
        ------
        BackboneError
            If the engine gives no gradients.
        """
        if self.pins.engine != "torch":
            msg = f"the engine {self.pins.engine} gives no gradients; load {self.spec.backbone} with engine torch"
            raise BackboneError(msg)
        _, patches = self.engine.compute(self._pixels(windows))
        return patches.float().reshape(len(windows), self.spec.grid, self.spec.grid, self.width)

    def start(self, windows: torch.Tensor) -> Callable[[], Tokens]:
        """Begin with one batch of uint8 windows and return what waits for its tokens: of CLS, if any, and of patches.

        Several batches may be at work; under OpenVINO, and on CUDA, the caller has its hands free meanwhile.
        """
        with torch.inference_mode():
            return self.engine.start(self._pixels(windows))

    def _one_ahead(self, windows: torch.Tensor) -> Iterator[tuple[slice, Tokens]]:
        """Give places and tokens, batch by batch, with the next batch at work already."""
        waiting: deque[tuple[slice, Callable[[], Tokens]]] = deque()
        for start in range(0, len(windows), self.pins.batch_size):
            part = slice(start, start + self.pins.batch_size)
            waiting.append((part, self.start(windows[part])))
            if len(waiting) > 1:
                done, finish = waiting.popleft()
                yield done, finish()
        for done, finish in waiting:
            yield done, finish()

    def _pixels(self, windows: torch.Tensor) -> torch.Tensor:
        return self.normalise(to_device(windows, self.device))

    def normalise(self, windows: torch.Tensor) -> torch.Tensor:
        """Return float32 pixels, channels first, of RGB bytes: ``(x / 255 - mean) / std``."""
        planes = windows.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return planes.div_(255).sub_(self._mean[:, None, None]).div_(self._std[:, None, None])

    def _make_engine(self) -> TorchEngine | OpenVinoEngine:
        if self.pins.engine == "openvino":
            from dlprobe.backbones.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(self.network, self.tokens, self.spec.window_px, self.pins)
        return TorchEngine(self.tokens, self.blocks, self.pins)

    def _as_bytes(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        side = self.spec.window_px
        if tuple(windows.shape[1:]) != (side, side, 3) or windows.ndim != 4:
            msg = (
                f"{self.spec.backbone} expects windows of shape (batch, {side}, {side}, 3), got {tuple(windows.shape)}"
            )
            raise BackboneError(msg)
        if str(windows.dtype).removeprefix("torch.") != "uint8":
            msg = f"{self.spec.backbone} expects windows of uint8 RGB, got {windows.dtype}; it normalises by itself"
            raise BackboneError(msg)
        if isinstance(windows, torch.Tensor):
            return windows
        usable = windows.flags.writeable and windows.flags.c_contiguous
        return torch.from_numpy(windows if usable else np.array(windows, order="C"))
