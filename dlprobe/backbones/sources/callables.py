"""``module:package.attr``: a user's own callable as a backbone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlprobe.backbones.base import Backbone, BackboneCard, default_window_px, require_divides
from dlprobe.backbones.engines.choosing import choose_execution
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.errors import BackboneError
from dlprobe.spec import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.backbones.base import LoadRequest

#: Stands in the identity of a callable that does not say what its weights are.
NO_FINGERPRINT = "none"
_REQUIRED = ("width", "patch_px")


class CallableBackbone:
    """A callable with ``width`` and ``patch_px``, and optionally ``weights_sha256`` and ``window_px``, as a backbone.

    Parameters
    ----------
    function : callable
        From uint8 windows (batch, window_px, window_px, 3) to a tensor or array (batch, rows, cols, width).
    request : LoadRequest
        What was asked for.
    """

    weights = "pretrained"

    def __init__(self, function: Any, request: LoadRequest) -> None:
        name = f"module:{request.model}"
        self.device, self.pins = choose_execution(request, name, network=False)
        patch_px = int(function.patch_px)
        window_px = request.window_px or int(getattr(function, "window_px", 0)) or default_window_px(patch_px)
        require_divides(patch_px, window_px, name)
        sha256 = str(getattr(function, "weights_sha256", "")) or NO_FINGERPRINT
        self.spec = ModelSpec(
            backbone=name,
            implementation="module",
            weights_sha256=sha256,
            layers=(),
            norm=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize_rule=RESIZE_RULE,
            window_px=window_px,
            patch_px=patch_px,
            width=int(function.width),
        )
        self.card = BackboneCard(
            name=name,
            weights=self.weights,
            licence="unknown: that of the callable",
            trained_on="unknown: that of the callable",
            notes="it says no weights_sha256, so that changed weights go unnoticed" if sha256 == NO_FINGERPRINT else "",
        )
        self._function = function

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
        """What the callable says of its weights, or ``none``."""
        return self.spec.weights_sha256

    def __call__(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Embed windows with the callable, ``pins.batch_size`` at a time.

        Raises
        ------
        BackboneError
            If it returns another shape.
        """
        batch = windows if isinstance(windows, torch.Tensor) else torch.from_numpy(np.array(windows, order="C"))
        grid = self.spec.grid
        embeddings = torch.empty((len(batch), grid, grid, self.width), dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            for start in range(0, len(batch), self.pins.batch_size):
                part = slice(start, start + self.pins.batch_size)
                found = torch.as_tensor(self._function(batch[part].to(self.device)))
                if found.shape != embeddings[part].shape:
                    got, wanted = tuple(found.shape), tuple(embeddings[part].shape)
                    msg = f"{self.spec.backbone} returned shape {got}; it says that it returns {wanted}"
                    raise BackboneError(msg)
                embeddings[part] = found
        return embeddings


def load_callable(request: LoadRequest) -> Backbone:
    """Return a user's own object as a backbone.

    It may be a backbone already (see `dlprobe.backbones.base.Backbone`), a callable with ``width`` and ``patch_px``, or
    a class or function without parameters that returns one of these.

    Raises
    ------
    BackboneError
        If it cannot be imported, is none of these, or weights or layers are asked for.
    """
    name = f"module:{request.model}"
    if request.weights != "pretrained" or request.layers != (-1,) or not request.norm:
        msg = f"{name} chooses its own weights, layers and norm; leave --weights, --layers and --no-norm out"
        raise BackboneError(msg)
    choose_execution(request, name, network=False)
    found = _import(request.model, name)
    if isinstance(found, type) or not all(hasattr(found, part) for part in _REQUIRED):
        found = found() if callable(found) else found
    if isinstance(found, Backbone):
        return found
    if callable(found) and all(hasattr(found, part) for part in _REQUIRED):
        return CallableBackbone(found, request)
    msg = f"{name} is no backbone: it has to be a callable with the attributes {' and '.join(_REQUIRED)}"
    raise BackboneError(msg)


def _import(model: str, name: str) -> Any:
    module, dot, attribute = model.rpartition(".")
    if not dot:
        msg = f"{name} names no attribute; write module:package.attr"
        raise BackboneError(msg)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        msg = f"{name} cannot be imported ({error}); put its folder on PYTHONPATH or install it"
        raise BackboneError(msg) from error
    except AttributeError as error:
        msg = f"{name}: module {module} has no {attribute}"
        raise BackboneError(msg) from error
