"""What may move in a backbone: low-rank updates of queries and values, or every weight; and the way back to a file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch

from dlprobe.backbones.torch_backbone import TorchBackbone
from dlprobe.backbones.weights.perturbed import build_quietly
from dlprobe.errors import BackboneError
from dlprobe.extras import require
from dlprobe.publish import publish

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dlprobe.backbones.base import Backbone
    from dlprobe.finetune.settings import FinetuneSettings

#: Last parts of the names of the maps to queries and to values, in timm (fused or not) and in transformers.
_QUERIES_AND_VALUES = frozenset({"q", "v", "q_proj", "v_proj", "query", "value"})
_FUSED = "qkv"
_BIASES = ("q_bias", "k_bias", "v_bias")
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.")


class SplitQkv(torch.nn.Module):
    """timm's one map to queries, keys and values as three, so that two of them can be adapted.

    Parameters
    ----------
    fused : torch.nn.Linear
        Rows of queries, keys and values, in this order.
    apart : sequence of tensor
        Their biases, where the attention keeps them beside the map (timm's ``..._qkvb``); empty otherwise.
    """

    def __init__(self, fused: torch.nn.Linear, apart: Sequence[torch.Tensor]) -> None:
        super().__init__()
        weights = fused.weight.detach().chunk(3)
        biases = apart or ([None] * 3 if fused.bias is None else fused.bias.detach().chunk(3))
        self.apart = tuple(apart)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values side by side."""
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)

    def fused(self) -> torch.nn.Linear:
        """Return the one map again."""
        parts = (self.q, self.k, self.v)
        bias = None if self.apart or self.q.bias is None else torch.cat([part.bias for part in parts])
        return _linear(torch.cat([part.weight for part in parts]), bias)


def network_of(backbone: Backbone) -> torch.nn.Module:
    """Return the network of a backbone that can be trained.

    Raises
    ------
    BackboneError
        If it is no torch network, another engine runs it, or it is compiled.
    """
    pins = backbone.pins
    if not isinstance(backbone, TorchBackbone) or pins.engine != "torch" or pins.compiled:
        name = f"{backbone.spec.backbone} (engine {pins.engine}{', compiled' if pins.compiled else ''})"
        msg = f"{name} is no torch network that could be trained; adapt a timm or hf backbone, or say --mode head"
        raise BackboneError(msg)
    return backbone.network


def adapt(backbone: Backbone, mode: str, settings: FinetuneSettings) -> dict[str, torch.nn.Parameter]:
    """Make a backbone's network trainable in place, and return what may move by name; nothing in mode ``head``.

    Parameters
    ----------
    backbone : Backbone
        Changed, except in mode ``head``.
    mode : {'head', 'lora', 'full'}
    settings : FinetuneSettings
        Rank, alpha and seed of the updates.

    Raises
    ------
    BackboneError
        If the network cannot be trained, or has no maps to queries and values.
    ExtraError
        If PEFT is missing.
    """
    if mode == "head":
        return {}
    network = network_of(backbone)
    if mode == "lora":
        _add_updates(network, backbone.spec.backbone, settings)
    else:
        network.requires_grad_(requires_grad=True)
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def parameter_groups(parameters: dict[str, torch.nn.Parameter], rate: float, decay: float, layer_decay: float) -> Any:
    """Return the groups of an optimiser: rates that fall from block to block towards the input, decay on matrices.

    Parameters
    ----------
    parameters : dict of str to Parameter
        As `adapt` returns them.
    rate : float
        Of the last block and of what lies behind it.
    decay : float
        Weight decay of matrices; vectors, tokens and position tables have none.
    layer_decay : float
        Rate of a block by that of the next one; what lies before the first block counts as one more.
    """
    blocks = {name: int(found[1]) for name in parameters if (found := _BLOCK.search(name))}
    depth = 1 + max(blocks.values(), default=0)
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, value in parameters.items():
        behind = "norm" in name or "ln_" in name
        below = depth - 1 - blocks[name] if name in blocks else (0 if behind else depth)
        groups.setdefault((below, value.ndim >= 2 and value.shape[0] > 1), []).append(value)
    return [
        {"params": values, "peak": rate * layer_decay**below, "lr": 0.0, "weight_decay": decay if decays else 0.0}
        for (below, decays), values in groups.items()
    ]


def merge(network: torch.nn.Module) -> None:
    """Add the low-rank updates of a network to its weights, and give it back the modules that it had, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent, name, module in _children(network):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            setattr(parent, name, module.get_base_layer())
    for parent, name, module in _children(network):
        if isinstance(module, SplitQkv):
            setattr(parent, name, module.fused())
            for bias, value in zip(_BIASES, module.apart, strict=False):
                setattr(parent, bias, value)


def write_weights(backbone: Backbone, folder: Path, name: str) -> Path:
    """Write a backbone's tensors under its network's own names, whole or not at all; ``--weights`` reads them.

    Parameters
    ----------
    backbone : Backbone
        A torch network, its updates merged.
    folder : Path
        Where to write.
    name : str
        Of the result, without ending.

    Returns
    -------
    Path
        A .safetensors file; for transformers a folder with its configuration, which transformers reads too.
    """
    from safetensors.torch import save_file

    network: Any = network_of(backbone)
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if backbone.spec.implementation != "transformers":
        with publish(folder / f"{name}.safetensors") as scratch:
            save_file(tensors, scratch, metadata={"format": "pt"})
        return folder / f"{name}.safetensors"
    with publish(folder / name) as scratch:
        scratch.mkdir()
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        network.config.to_json_file(scratch / "config.json")
        pixels = {"image_mean": list(backbone.spec.mean), "image_std": list(backbone.spec.std)}
        (scratch / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder / name


def _add_updates(network: torch.nn.Module, name: str, settings: FinetuneSettings) -> None:
    require("finetune", "--mode lora", "peft")
    from peft import LoraConfig, inject_adapter_in_model

    _split(network)
    targets = [
        key
        for key, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and key.rpartition(".")[2] in _QUERIES_AND_VALUES and _BLOCK.search(key)
    ]
    if not targets:
        msg = f"{name} has no maps to queries and values that dlprobe knows; say --mode full or --mode head"
        raise BackboneError(msg)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)
    build_quietly(lambda: inject_adapter_in_model(config, network), settings.seed)
    network.eval()


def _split(network: torch.nn.Module) -> None:
    for parent, key, module in _children(network):
        if key == _FUSED and isinstance(module, torch.nn.Linear):
            apart = [value for bias in _BIASES if (value := getattr(parent, bias, None)) is not None]
            setattr(parent, key, SplitQkv(module, apart))
            for bias in _BIASES[: len(apart)]:
                setattr(parent, bias, None)  # so that the attention leaves them to the map


def _children(network: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Module]]:
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            yield parent, name, module


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made
