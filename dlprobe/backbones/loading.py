"""`load_backbone`: names say where they load from, and weights never fall back to random ones."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dlprobe.backbones.base import Backbone, LoadRequest
from dlprobe.backbones.catalogue import CATALOGUE, local_weights
from dlprobe.errors import BackboneError
from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dlprobe.backbones.catalogue import CatalogueEntry
    from dlprobe.backbones.weights.dinolizer import DinoLizerHead
    from dlprobe.spec import Pins

#: What loads the backbones of a source; other packages announce theirs as entry points, named by the prefix.
SOURCES: Registry[Callable[[LoadRequest], Backbone]] = Registry("backbone source", "dlprobe.backbones")

#: What ``weights`` may be beside a path and random ones.
_NO_PATHS = {"pretrained", "none"}


def load_backbone(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str = "auto",
    engine: str = "torch",
    precision: str = "auto",
    layers: Sequence[int] = (-1,),
    norm: bool = True,
    window_px: int | None = None,
    batch_size: int | None = None,
    compiled: bool = False,
) -> Backbone:
    """Load a backbone.

    Parameters
    ----------
    name : str
        A full name such as ``timm:vit_base_patch14_reg4_dinov2.lvd142m`` or ``residual:srm``, or a short one of
        `list_backbones`.
    weights : str or Path
        ``pretrained`` (the hub's cache first, then the network), a file or folder, or ``random:SEED``.
    device : str
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``.
    engine : {"torch", "openvino"}
        What computes the network; no part of the identity.
    precision : str
        ``auto`` (bfloat16 on a GPU that has it, and under OpenVINO on a CPU that has it; else float32), ``float32``,
        ``bfloat16`` or ``float16``.
    layers : sequence of int
        Blocks, from 0, or from the end with -1; their tokens are concatenated on the feature axis in ascending order.
    norm : bool
        Apply the final LayerNorm to the tokens of each layer.
    window_px : int, optional
        Side of a window; by default the multiple of the patch nearest to 504 (504 for 14, 512 for 16).
    batch_size : int, optional
        Windows at a time; changes no embedding.
    compiled : bool
        Compile the blocks of a network (`torch.compile`); takes a minute once, and pays on CUDA.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If the name or an option is wrong, or weights or device are not here.
    ExtraError
        If an optional dependency is not installed.
    RegistryError
        If nothing is registered under the name's source.
    """
    entry = CATALOGUE.get(name)
    source, model = _split(entry.name if entry else name)
    chosen, seed = _weights(str(weights), entry)
    request = LoadRequest(
        model=model,
        weights=chosen,
        seed=seed,
        device=device,
        engine=engine,
        precision=precision,
        layers=tuple(layers),
        norm=norm,
        window_px=window_px,
        batch_size=batch_size,
        compiled=compiled,
        alias=entry.alias if entry else "",
        licence=entry.licence if entry and entry.local_folder else "",
        trained_on=entry.trained_on if entry and entry.local_folder else "",
    )
    loaded = SOURCES[source](request)
    if isinstance(loaded, _Reloadable):
        loaded.recipe = Recipe(source, request)
    return loaded


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a backbone was loaded by name: all that another process needs to load it again.

    Parameters
    ----------
    source : str
        Prefix of the name.
    request : LoadRequest
        What was asked for.
    """

    source: str
    request: LoadRequest

    def load(self, pins: Pins) -> Backbone:
        """Load the backbone on this machine, to compute under these pins."""
        return SOURCES[self.source](
            replace(
                self.request,
                engine=pins.engine,
                precision=pins.precision,
                device=pins.device,
                batch_size=pins.batch_size,
                compiled=pins.compiled,
            )
        )

    def pins_on(self, device: str) -> Pins:
        """Load the backbone on a device of this machine, as it was asked for but for that, and return its pins."""
        return SOURCES[self.source](replace(self.request, device=device)).pins

    def absolute(self) -> Recipe:
        """Return the same recipe for processes in other folders."""
        request = self.request
        if self.source == "file":
            request = replace(request, model=str(Path(request.model).absolute()))
        if request.seed is None and request.weights not in _NO_PATHS:
            request = replace(request, weights=str(Path(request.weights).absolute()))
        return Recipe(self.source, request)


@runtime_checkable
class _Reloadable(Backbone, Protocol):
    """A backbone of this package, which keeps how it was loaded."""

    recipe: Recipe | None


def recipe_of(backbone: Backbone) -> Recipe | None:
    """Return how a backbone was loaded, for processes in other folders; None for an object of the user's own."""
    found = backbone.recipe if isinstance(backbone, _Reloadable) else None
    return None if found is None else found.absolute()


def read_dinolizer_head(path: str | Path) -> DinoLizerHead:
    """Return the three-class head of DinoLizer's published checkpoint.

    Parameters
    ----------
    path : str or Path
        The Lightning checkpoint; the same file is the backbone's ``--weights``.

    Returns
    -------
    DinoLizerHead
        ``.weights`` float32 (3, width), ``.bias`` float32 (3,), ``.classes``, ``.notes``: the parts of a probe, for the
        softmax of which class 2 means manipulated.

    Raises
    ------
    BackboneError
        If the file cannot be read, or has no linear head with three logits.
    """
    from dlprobe.backbones.weights.dinolizer import read_dinolizer_head as read

    return read(Path(path))


@SOURCES.register("timm")
def _load_timm(request: LoadRequest) -> Backbone:
    from dlprobe.backbones.sources.timm_models import load_timm

    return load_timm(request)


@SOURCES.register("residual")
def _load_residual(request: LoadRequest) -> Backbone:
    from dlprobe.backbones.residual import load_residual

    return load_residual(request)


@SOURCES.register("hf")
def _load_hf(request: LoadRequest) -> Backbone:
    from dlprobe.backbones.sources.hf_models import load_hf

    return load_hf(request)


@SOURCES.register("module")
def _load_callable(request: LoadRequest) -> Backbone:
    from dlprobe.backbones.sources.callables import load_callable

    return load_callable(request)


@SOURCES.register("file")
def _load_folder(request: LoadRequest) -> Backbone:
    from dlprobe.backbones.sources.folders import load_folder

    return load_folder(request)


def _split(name: str) -> tuple[str, str]:
    source, colon, model = name.partition(":")
    if colon and source and model:
        return source, model
    near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.6)
    short = f" or the short name {' or '.join(near)}" if near else ", or a short name of `dlprobe backbones`"
    examples = ", ".join(f"'{source}:{name.strip(':')}'" for source in ("timm", "hf", "file", "module"))
    msg = f"backbone {name!r} has no source; write one of {examples}{short}"
    raise BackboneError(msg)


def _weights(weights: str, entry: CatalogueEntry | None) -> tuple[str, int | None]:
    """Return the weights to load, with the file of an entry that no hub has, and the seed if they are random."""
    if weights.startswith("random"):
        if not re.fullmatch(r"random:\d{1,18}", weights):
            msg = f"weights {weights!r} have no seed; write random:SEED, such as random:0 (--weights)"
            raise BackboneError(msg)
        return weights, int(weights.partition(":")[2])
    if weights == "pretrained" and entry is not None and entry.local_folder:
        folder = local_weights() / entry.local_folder
        found = next((folder / name for name in entry.local_files if (folder / name).is_file()), None)
        if found is None:
            msg = (
                f"the weights of {entry.alias} are on no hub ({entry.weight_source}); give the file or its folder with "
                f"--weights, or put the file into {folder}, or say --weights random:SEED"
            )
            raise BackboneError(msg)
        return str(found), None
    return weights, None
