"""What a backbone is: a callable from windows of RGB bytes to patch embeddings, with an identity and a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from dlprobe.spec import ModelSpec, Pins


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneCard:
    """What a user should know about a backbone and its weights, for `dlprobe backbones` and for probe cards."""

    name: str
    weights: str
    licence: str
    trained_on: str
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What `load_backbone` was asked for, as it reaches a source.

    Parameters
    ----------
    model : str
        What stands after the prefix of the name.
    weights : str
        ``pretrained``, a path, or ``random:SEED``.
    seed : int or None
        Of random weights.
    device, engine, precision, layers, norm, window_px, batch_size, compiled
        As in `dlprobe.backbones.load_backbone`.
    alias : str
        Short name that was written, if any.
    licence, trained_on : str
        Of a file that the catalogue knows; empty otherwise.
    """

    model: str
    weights: str = "pretrained"
    seed: int | None = None
    device: str = "auto"
    engine: str = "torch"
    precision: str = "auto"
    layers: tuple[int, ...] = (-1,)
    norm: bool = True
    window_px: int | None = None
    batch_size: int | None = None
    compiled: bool = False
    alias: str = ""
    licence: str = ""
    trained_on: str = ""


@runtime_checkable
class Backbone(Protocol):
    """Windows in, patch embeddings out.

    Attributes
    ----------
    spec : ModelSpec
        Identity of its embeddings.
    pins : Pins
        How it computes: engine, precision, device and batch size.
    card : BackboneCard
        Licence and training data.
    weights : str
        What was asked for (``pretrained``, a file, ``random:SEED``), so that it can be loaded again.
    """

    spec: ModelSpec
    pins: Pins
    card: BackboneCard
    weights: str

    @property
    def width(self) -> int:
        """Numbers per patch."""
        ...

    @property
    def patch_px(self) -> int:
        """Side of a patch, in pixels."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights."""
        ...

    def __call__(self, windows: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Embed windows.

        Parameters
        ----------
        windows : ndarray or tensor of uint8, shape (batch, window_px, window_px, 3)
            RGB.

        Returns
        -------
        tensor of float32, shape (batch, rows, cols, width)
            On the backbone's device.
        """
        ...


@runtime_checkable
class GivesClassTokens(Backbone, Protocol):
    """A backbone that has a CLS token, and gives it beside the patches."""

    def with_class_tokens(self, windows: NDArray[np.uint8] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (batch, rows, cols, width) and CLS tokens (batch, width) of windows, one forward."""
        ...


@runtime_checkable
class Startable(Backbone, Protocol):
    """A backbone that can be at work on several batches while the caller goes on."""

    def start(self, windows: torch.Tensor) -> Callable[[], tuple[torch.Tensor | None, torch.Tensor]]:
        """Begin with uint8 windows; return what gives CLS tokens (batch, width), if any, and patch tokens by rows."""
        ...


def no_class_token(name: str) -> BackboneError:
    """Return the error of a backbone that was asked for CLS tokens and has none."""
    return BackboneError(f"{name} gives no CLS token; leave --cls out, or choose a backbone that has one")


#: Windows are near the size that B-Free and DinoLizer were trained at.
TARGET_WINDOW_PX = 504


def default_window_px(patch_px: int) -> int:
    """Return the multiple of `patch_px` nearest to 504, the larger of two: 504 for 14, 512 for 16."""
    return max(1, (2 * TARGET_WINDOW_PX + patch_px) // (2 * patch_px)) * patch_px


def require_divides(patch_px: int, window_px: int, name: str) -> None:
    """Raise `BackboneError` naming the nearest windows that work if `patch_px` does not divide `window_px`."""
    if window_px < patch_px or window_px % patch_px:
        below = max(1, window_px // patch_px) * patch_px
        msg = (
            f"{name} has patches of {patch_px} px, which do not divide a window of {window_px} px; "
            f"the nearest windows that work are {below} and {below + patch_px} px (--window)"
        )
        raise BackboneError(msg)
