"""``hf:NAME``: Dinov2, Dinov2WithRegisters and DINOv3ViT of transformers (extra ``hf``)."""

from __future__ import annotations

import difflib
import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dlprobe.backbones.base import BackboneCard, default_window_px, require_divides
from dlprobe.backbones.catalogue import describe_file
from dlprobe.backbones.engines.choosing import choose_execution
from dlprobe.backbones.sources.hf_configurations import ESSENTIAL_FIELDS, MODEL_TYPES, HfModel, known_models
from dlprobe.backbones.torch_backbone import TorchBackbone, absolute_layers
from dlprobe.backbones.weights import dinolizer
from dlprobe.backbones.weights.files import find_tensors, read_checkpoint, weight_file
from dlprobe.backbones.weights.hub import fetch_weights
from dlprobe.backbones.weights.perturbed import build_quietly, perturb, sha256_of_tensors
from dlprobe.backbones.weights.state import DROPPED_PATTERNS, fit_state
from dlprobe.backbones.weights.transformers_names import to_transformers
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.errors import BackboneError
from dlprobe.extras import require
from dlprobe.spec import ModelSpec, fingerprint, sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlprobe.backbones.base import LoadRequest
    from dlprobe.backbones.weights.dialects import Tensors


class HfBackbone(TorchBackbone):
    """A vision transformer of transformers; CLS and registers are taken off by count."""

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """The network's blocks."""
        return _blocks(self.network)

    def tokens(self, pixels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the tokens of the blocks in ``spec.layers``, each under the final norm if ``spec.norm``.

        The outputs of blocks are caught where they come out: what ``hidden_states`` holds last, before or after the
        norm, has changed between releases of transformers.
        """
        network: Any = self.network
        caught: list[torch.Tensor] = []
        hooks = [self.blocks[number].register_forward_hook(partial(_catch, caught)) for number in self.spec.layers]
        try:
            network(pixel_values=pixels)
        finally:
            for hook in hooks:
                hook.remove()
        norm = (network.layernorm if hasattr(network, "layernorm") else network.norm) if self.spec.norm else None
        prefix = 1 + getattr(network.config, "num_register_tokens", 0)
        joined = torch.cat([tokens if norm is None else norm(tokens) for tokens in caught], dim=-1)
        return joined[:, 0], joined[:, prefix:]


def load_hf(request: LoadRequest) -> HfBackbone:
    """Load a vision transformer of transformers.

    Raises
    ------
    BackboneError
        If transformers is not installed, the model is unknown or of another kind, or it cannot be used as asked.
    """
    device, pins = choose_execution(request, f"hf:{request.model}")
    model = _model(request)
    name = f"hf:{request.model}"
    require("hf", name, "transformers")  # before weights are looked for, or even fetched
    path = _weight_path(request, name)
    tensors = None if path is None else _tensors(path)
    network: Any = build_quietly(partial(_build, model.fields, tensors), request.seed or 0)
    patch_px = int(network.config.patch_size)
    window_px = request.window_px or default_window_px(patch_px)
    require_divides(patch_px, window_px, name)
    layers = absolute_layers(request.layers, network.config.num_hidden_layers, name)
    dropped: tuple[str, ...] = ()
    if path is None or tensors is None:
        perturb(network, request.seed or 0)
        sha256 = sha256_of_tensors(network.state_dict())
    else:
        dropped = _fill(network, tensors, path, name)
        sha256 = sha256_of_file(path)
    known = describe_file(sha256, request, path)
    pretrained = request.weights == "pretrained"
    interpolated = _interpolation(network, window_px // patch_px)
    card = BackboneCard(
        name=name,
        weights=request.weights,
        licence=(model.licence or "unknown; see the model's page") if pretrained else known[0],
        trained_on=(model.trained_on or "unknown; see the model's page") if pretrained else known[1],
        notes=interpolated and f"interpolated: {interpolated}",
    )
    spec = ModelSpec(
        backbone=name,
        implementation="transformers",
        weights_sha256=sha256,
        layers=layers,
        norm=request.norm,
        mean=model.mean,
        std=model.std,
        resize_rule=RESIZE_RULE,
        window_px=window_px,
        patch_px=patch_px,
        width=network.config.hidden_size * len(layers),
    )
    return HfBackbone(
        network,
        spec=spec,
        pins=pins,
        card=card,
        weights=request.weights,
        device=device,
        dropped=dropped,
        interpolated=interpolated,
        automatic_batch=request.batch_size is None and device.type == "cuda",
    )


def configuration_name(fields: dict[str, Any]) -> str:
    """Return a name for a configuration that has none: its kind, and a hash of what changes an embedding."""
    essential = {key: fields[key] for key in ESSENTIAL_FIELDS if key in fields}
    return f"{fields['model_type']}#{fingerprint(essential)[:12]}"


def read_folder(folder: Path) -> HfModel:
    """Return the model that a folder of transformers describes in ``config.json`` and ``preprocessor_config.json``.

    Raises
    ------
    BackboneError
        If a file is no JSON, or describes a model of another kind.
    """
    fields = _read_json(folder / "config.json")
    if fields.get("model_type") not in MODEL_TYPES:
        msg = f"{folder} holds a transformers model of kind {fields.get('model_type')!r}; {_kinds()}"
        raise BackboneError(msg)
    chosen = {key: fields[key] for key in ESSENTIAL_FIELDS if key in fields}
    processor = folder / "preprocessor_config.json"
    if not processor.is_file():
        return HfModel(fields=chosen)
    found = _read_json(processor)
    mean, std = tuple(found.get("image_mean", ())), tuple(found.get("image_std", ()))
    if len(mean) != 3 or len(std) != 3:
        msg = f"{processor} has no image_mean and image_std of three numbers; mend it or take it away"
        raise BackboneError(msg)
    return HfModel(fields=chosen, mean=mean, std=std)


def _model(request: LoadRequest) -> HfModel:
    """Return what is known of a model: from its folder, from memory, or from the hub."""
    folder = Path(request.weights)
    if request.seed is None and request.weights != "pretrained" and (folder / "config.json").is_file():
        return read_folder(folder)
    models = known_models()
    if request.model in models:
        return models[request.model]
    near = difflib.get_close_matches(request.model, models, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'hf:{name}' for name in near)}?" if near else _kinds()
    msg = f"hf:{request.model} is not known here; {hint} A folder with its config.json is given with --weights FOLDER"
    if "/" not in request.model:
        raise BackboneError(msg)
    try:
        for filename in ("preprocessor_config.json", "config.json"):
            path = fetch_weights(request.model, f"hf:{request.model}", (filename,))
    except BackboneError as error:
        raise BackboneError(msg) from error
    return read_folder(path.parent)


def _kinds() -> str:
    return f"dlprobe runs {', '.join(MODEL_TYPES)} of transformers; take another kind as timm:NAME or module:NAME."


def _weight_path(request: LoadRequest, name: str) -> Path | None:
    if request.seed is not None:
        return None
    return fetch_weights(request.model, name) if request.weights == "pretrained" else weight_file(Path(request.weights))


def _tensors(path: Path) -> Tensors:
    tensors = find_tensors(read_checkpoint(path), path)
    return dinolizer.merge_updates(tensors, path) if dinolizer.is_dinolizer(tensors) else tensors


def _build(fields: dict[str, Any], tensors: Tensors | None) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel

    fields = dict(fields)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    side = _position_side(tensors or {})
    if side:
        config.image_size = side * config.patch_size
    network: torch.nn.Module = AutoModel.from_config(config)
    return network


def _position_side(tensors: Tensors) -> int:
    """Return the side of the grid for which a file has positions; 0 if it has none."""
    positions = tensors.get("embeddings.position_embeddings", tensors.get("pos_embed"))
    return 0 if positions is None or positions.ndim != 3 else math.isqrt(positions.shape[1])


def _fill(network: torch.nn.Module, tensors: Tensors, path: Path, name: str) -> tuple[str, ...]:
    named, dropped = to_transformers(tensors, network, path)
    droppable = (*DROPPED_PATTERNS, *dinolizer.DROPPED_PATTERNS)
    return (*dropped, *fit_state(network, named, f"the weights of {path} and {name}", droppable))


def _interpolation(network: Any, grid: int) -> str:
    config = network.config
    if config.model_type == "dinov3_vit":
        return ""
    before = config.image_size // config.patch_size
    how = "bicubic, antialiased" if config.model_type == "dinov2_with_registers" else "bicubic"
    return "" if before == grid else f"position embedding from {before}x{before} to {grid}x{grid} (transformers: {how})"


def _blocks(network: torch.nn.Module) -> torch.nn.ModuleList:
    candidates: Iterator[tuple[str, torch.nn.Module]] = network.named_modules()
    for name, module in candidates:
        if isinstance(module, torch.nn.ModuleList) and name.rpartition(".")[2] == "layer":
            return module
    msg = f"{type(network).__name__} of this release of transformers keeps its blocks elsewhere; take the timm: form"
    raise BackboneError(msg)


def _catch(caught: list[torch.Tensor], _block: torch.nn.Module, _inputs: Any, output: Any) -> None:
    caught.append(output[0] if isinstance(output, tuple) else output)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} is no readable JSON ({error}); fetch it again"
        raise BackboneError(msg) from error
    if not isinstance(found, dict):
        msg = f"{path} is no JSON object; fetch it again"
        raise BackboneError(msg)
    return found
