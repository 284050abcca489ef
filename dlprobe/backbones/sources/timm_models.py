"""``timm:NAME``: vision transformers of timm, the reference implementation."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import get_arch_name, get_pretrained_cfg

from dlprobe.backbones.base import BackboneCard, default_window_px, require_divides
from dlprobe.backbones.catalogue import describe_file, trained_on
from dlprobe.backbones.engines.choosing import choose_execution
from dlprobe.backbones.torch_backbone import TorchBackbone, absolute_layers
from dlprobe.backbones.weights import dinolizer
from dlprobe.backbones.weights.dialects import to_timm
from dlprobe.backbones.weights.files import find_tensors, read_checkpoint, weight_file
from dlprobe.backbones.weights.hub import FILENAMES, fetch_weights
from dlprobe.backbones.weights.perturbed import build_quietly, perturb, sha256_of_tensors
from dlprobe.backbones.weights.state import DROPPED_PATTERNS, describe_resampling, fit_state, resample_positions
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.errors import BackboneError
from dlprobe.spec import ModelSpec, sha256_of_file

if TYPE_CHECKING:
    from dlprobe.backbones.base import LoadRequest


class TimmBackbone(TorchBackbone):
    """A timm vision transformer; CLS and registers are taken off by count (``num_prefix_tokens``)."""

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """The network's blocks."""
        found: torch.nn.ModuleList = self.network.get_submodule("blocks")  # type: ignore[assignment]
        return found

    def tokens(self, pixels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the tokens of the blocks in ``spec.layers``, each under the final norm if ``spec.norm``."""
        network: Any = self.network
        with_prefix = network.num_prefix_tokens > 0
        layers = network.forward_intermediates(
            pixels,
            indices=list(self.spec.layers),
            norm=self.spec.norm,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=with_prefix,
        )
        if not with_prefix:
            return None, torch.cat(layers, dim=-1)
        patches = torch.cat([layer[0] for layer in layers], dim=-1)
        if getattr(network, "cls_token", None) is None:
            return None, patches
        return torch.cat([layer[1][:, 0] for layer in layers], dim=-1), patches


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of putting weights into a network."""

    sha256: str
    dropped: tuple[str, ...] = ()
    interpolated: str = ""


def load_timm(request: LoadRequest) -> TimmBackbone:
    """Load a timm vision transformer.

    Raises
    ------
    BackboneError
        If timm has no such model, it is no plain vision transformer, or it cannot be used as asked.
    """
    device, pins = choose_execution(request, f"timm:{request.model}")
    config = _config(request.model)
    name = f"timm:{config['architecture']}" + (f".{config['tag']}" if config["tag"] else "")
    path = _weight_path(request, config, name)
    network: Any = build_quietly(
        partial(timm.create_model, config["architecture"], pretrained=False, num_classes=0), request.seed or 0
    )
    patch_px = _patch_px(network, name)
    window_px = request.window_px or default_window_px(patch_px)
    require_divides(patch_px, window_px, name)
    if request.norm and isinstance(network.norm, torch.nn.Identity):
        msg = f"{name} has no final norm over patch tokens; say --no-norm"
        raise BackboneError(msg)
    layers = absolute_layers(request.layers, len(network.blocks), name)
    loaded = _perturb(network, request, name, window_px) if path is None else _fill(network, path, name, window_px)
    spec = ModelSpec(
        backbone=name,
        implementation="timm",
        weights_sha256=loaded.sha256,
        layers=layers,
        norm=request.norm,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_rule=RESIZE_RULE,
        window_px=window_px,
        patch_px=patch_px,
        width=network.embed_dim * len(layers),
    )
    card = _card(request, config, name, path, loaded)
    return TimmBackbone(
        network,
        spec=spec,
        pins=pins,
        card=card,
        weights=card.weights,
        device=device,
        dropped=loaded.dropped,
        interpolated=loaded.interpolated,
        automatic_batch=request.batch_size is None and device.type == "cuda",
    )


def _config(model: str) -> dict[str, Any]:
    """Return timm's configuration of a model; the default tag where none is written."""
    architecture = get_arch_name(model)
    if not timm.is_model(architecture):
        _unknown(model, timm.list_models(), architecture)
    try:
        found = get_pretrained_cfg(model)
    except RuntimeError:
        _unknown(model, timm.list_models(f"{architecture}.*", pretrained=True), model)
    defaults = {"architecture": architecture, "tag": "", "license": None, "hf_hub_id": None, "hf_hub_filename": None}
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return {**defaults, **imagenet, **({} if found is None else found.to_dict())}


def _unknown(model: str, names: list[str], wanted: str) -> None:
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'timm:{name}' for name in near)}?" if near else "see `dlprobe backbones`"
    msg = f"timm has no model {model!r}; {hint}"
    raise BackboneError(msg)


def _patch_px(network: Any, name: str) -> int:
    """Return the side of a patch, if this is a transformer that keeps one token per patch throughout."""
    parts = ("blocks", "norm", "num_prefix_tokens", "embed_dim", "patch_embed", "forward_intermediates")
    sides = set(getattr(getattr(network, "patch_embed", None), "patch_size", ()))
    scales = {info["reduction"] for info in getattr(network, "feature_info", ())}
    if any(not hasattr(network, part) for part in parts) or len(sides) != 1 or scales != sides:
        msg = f"{name} is no plain vision transformer with one token per square patch; see `dlprobe backbones`"
        raise BackboneError(msg)
    return int(sides.pop())


def _weight_path(request: LoadRequest, config: dict[str, Any], name: str) -> Path | None:
    """Return the weight file, before anything large is built; None for random weights."""
    if request.seed is not None:
        return None
    if request.weights != "pretrained":
        return weight_file(Path(request.weights))
    if not config["hf_hub_id"]:
        msg = f"{name} has no pretrained weights on the hub; give --weights FILE, or say --weights random:SEED"
        raise BackboneError(msg)
    filenames = (config["hf_hub_filename"],) if config["hf_hub_filename"] else FILENAMES
    return fetch_weights(config["hf_hub_id"], name, filenames)


def _perturb(network: Any, request: LoadRequest, name: str, window_px: int) -> Loaded:
    """Make a network of native size random, then bring it to the window."""
    before = network.patch_embed.grid_size
    perturb(network, request.seed or 0)
    sha256 = sha256_of_tensors(network.state_dict())
    _set_window(network, window_px, name)
    after = network.patch_embed.grid_size
    moved = getattr(network, "pos_embed", None) is not None and after != before
    return Loaded(sha256, interpolated=describe_resampling(before, after) if moved else "")


def _fill(network: Any, path: Path, name: str, window_px: int) -> Loaded:
    """Bring a network to the window and put a file's tensors into it, whatever their names."""
    tensors = find_tensors(read_checkpoint(path), path)
    droppable: tuple[str, ...] = DROPPED_PATTERNS
    if dinolizer.is_dinolizer(tensors):
        tensors, droppable = dinolizer.merge_updates(tensors, path), dinolizer.DROPPED_PATTERNS
    _set_window(network, window_px, name)
    translated = to_timm(tensors, network.state_dict().keys(), path)
    prefix = 0 if getattr(network, "no_embed_class", False) else network.num_prefix_tokens
    done = resample_positions(translated.tensors, network.patch_embed.grid_size, network.embed_dim, prefix)
    left = fit_state(network, translated.tensors, f"the weights of {path} and {name}", droppable)
    return Loaded(sha256_of_file(path), (*translated.dropped, *left), done)


def _card(request: LoadRequest, config: dict[str, Any], name: str, path: Path | None, loaded: Loaded) -> BackboneCard:
    known = describe_file(loaded.sha256, request, path)
    if request.weights == "pretrained":
        known = config["license"] or known[0], trained_on(config["tag"])
    return BackboneCard(
        name=request.alias or name,
        weights=request.weights if path is None or request.weights == "pretrained" else str(path),
        licence=known[0],
        trained_on=known[1],
        notes=loaded.interpolated and f"interpolated: {loaded.interpolated}",
    )


def _set_window(network: Any, window_px: int, name: str) -> None:
    if tuple(network.patch_embed.img_size) == (window_px, window_px):
        return
    if not hasattr(network, "set_input_size"):
        msg = f"{name} takes windows of {network.patch_embed.img_size[0]} px only (--window)"
        raise BackboneError(msg)
    with torch.no_grad():
        network.set_input_size(img_size=(window_px, window_px))
