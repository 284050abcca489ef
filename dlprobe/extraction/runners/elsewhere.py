"""A backbone that this machine knows, and that computes on another: for a driver without the workers' device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlprobe.extraction.embedding import run_backbone
from dlprobe.extraction.runners.worker import load_there

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.backbones.loading import Recipe
    from dlprobe.spec import ModelSpec, Pins


class Elsewhere:
    """The identity and card of a backbone as this machine loads it, and its embeddings and pins as another does.

    Parameters
    ----------
    here : Backbone
        As this machine loads it.
    recipe : Recipe
        How it is loaded there.
    pins : Pins
        How it computes there.
    call : callable
        Takes a function and its arguments, and runs it there.
    """

    automatic_batch = False

    def __init__(self, here: Backbone, recipe: Recipe, pins: Pins, call: Callable[..., Any]) -> None:
        self.spec, self.card, self.weights = here.spec, here.card, here.weights
        self.recipe = recipe
        self.pins = pins
        self._call = call

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
        """Hash of the weights."""
        return self.spec.weights_sha256

    def with_batch_size(self, batch_size: int) -> Elsewhere:
        """Return the same backbone with another batch size."""
        return Elsewhere(self, self.recipe, replace(self.pins, batch_size=batch_size), self._call)

    def __call__(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Embed windows there; each call loads the backbone, so that it is for one of them or a few."""
        tokens, _ = self._call(embed_there, self.recipe, self.spec, self.pins, np.asarray(windows), False)
        return torch.from_numpy(np.array(tokens))  # what Ray gives is read-only, which torch does not take

    def with_class_tokens(self, windows: NDArray[np.uint8] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed windows there, and return their CLS tokens, too."""
        tokens, summary = self._call(embed_there, self.recipe, self.spec, self.pins, np.asarray(windows), True)
        return torch.from_numpy(np.array(tokens)), torch.from_numpy(np.array(summary))


def embed_there(
    recipe: Recipe, spec: ModelSpec, pins: Pins, windows: NDArray[np.uint8], cls: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Load a backbone on this machine and embed some windows, with their CLS tokens if they are asked for."""
    return run_backbone(load_there(recipe, spec, pins), np.array(windows), cls=cls)
