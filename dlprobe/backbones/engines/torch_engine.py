"""The engine ``torch``: the network as it is, under autocast, its blocks compiled if asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any

import torch

from dlprobe.backbones.engines.batching import is_out_of_memory
from dlprobe.backbones.engines.choosing import PRECISIONS
from dlprobe.backbones.engines.tf32 import without_tf32
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dlprobe.spec import Pins

#: CLS tokens (batch, width) where there are any, and patch tokens (batch, rows * cols, width).
Tokens = tuple[torch.Tensor | None, torch.Tensor]


class TorchEngine:
    """Computes at once on the CPU; on CUDA the device works on while the caller goes on.

    Parameters
    ----------
    tokens : callable
        From normalised pixels to tokens.
    blocks : iterable of Module
        Of the network; ``pins.compiled`` has each compiled by itself, which takes one compilation for all, and a batch
        that is not full filled up, so that there is one shape and one set of kernels.
    pins : Pins
        Precision, device, batch size.
    """

    def __init__(self, tokens: Callable[[torch.Tensor], Tokens], blocks: Iterable[torch.nn.Module], pins: Pins) -> None:
        self._tokens = tokens
        self._pins = pins
        if pins.compiled:
            for block in blocks:
                block.forward = torch.compile(block.forward, dynamic=False)

    def with_pins(self, pins: Pins) -> TorchEngine:
        """Return the same engine for another batch size."""
        other = copy(self)
        other._pins = pins
        return other

    def start(self, pixels: torch.Tensor) -> Callable[[], Tokens]:
        """Begin with a batch of normalised pixels (batch, 3, window_px, window_px); return what gives its tokens."""
        found = self.compute(pixels)
        return lambda: found

    def compute(self, pixels: torch.Tensor) -> Tokens:
        """Return the tokens of a batch; differentiable with respect to the network.

        Raises
        ------
        BackboneError
            If the blocks are to be compiled and this machine cannot.
        """
        count = len(pixels)
        if self._pins.compiled and count < self._pins.batch_size:
            pixels = torch.cat([pixels, pixels[-1:].expand(self._pins.batch_size - count, -1, -1, -1)])
        with self._precision():
            summary, patches = self._compiled(pixels) if self._pins.compiled else self._tokens(pixels)
        return None if summary is None else summary[:count], patches[:count]

    def _compiled(self, pixels: torch.Tensor) -> Tokens:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._tokens(pixels)
        except TorchDynamoException as error:
            if is_out_of_memory(error):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            needs = "Triton" if self._pins.device == "cuda" else "a C++ compiler"
            msg = (
                f"torch.compile fails on this machine ({reason}); it needs {needs}: install it, or leave --compile out"
            )
            raise BackboneError(msg) from error

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self._pins.precision]
        if dtype is not torch.float32:
            return torch.autocast(self._pins.device, dtype=dtype)
        return without_tf32() if self._pins.device == "cuda" else nullcontext()
