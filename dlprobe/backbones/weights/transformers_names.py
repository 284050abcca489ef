"""Put tensors of any dialect into a network of transformers, release 4 or 5."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from dlprobe.backbones.weights.dialects import DIALECTS, Tensors, rename, to_timm
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HALVES = {"w1": 0, "w2": 1, "gate_proj": 0, "up_proj": 1}
_THIRDS = {"q": 0, "query": 0, "k": 1, "key": 1, "v": 2, "value": 2}


def to_transformers(tensors: Tensors, network: torch.nn.Module, path: object) -> tuple[Tensors, list[str]]:
    """Return tensors under the names of a Dinov2, Dinov2WithRegisters or DINOv3ViT network.

    Parameters
    ----------
    tensors : dict of str to tensor
        In any dialect, timm's included.
    network : torch.nn.Module
        Of transformers; only its names and shapes are looked at.
    path : object
        The file, for messages.

    Returns
    -------
    tuple of (dict of str to tensor, list of str)
        What the network expects, as far as it was found, with what it does not know under its own name; and the names
        that were left out.

    Raises
    ------
    BackboneError
        If biases are not zero that the network does not have.
    """
    translated = to_timm(tensors, frozenset(), path)
    source = _as_vit(translated.tensors)
    expected = network.state_dict()
    result: Tensors = {}
    used: set[str] = set()
    for name, value in expected.items():
        found = _find(source, _canonical(name, expected), value)
        if found is not None:
            result[name], origin = found
            used.add(origin)
    _require_no_lost_bias(source, used, expected, path)
    return {**result, **{name: value for name, value in source.items() if name not in used}}, translated.dropped


def _canonical(name: str, expected: Mapping[str, torch.Tensor]) -> str:
    dialect = next(d for d in DIALECTS if d.marks[0] in expected)
    return rename(name, dialect)


def _as_vit(tensors: Tensors) -> Tensors:
    """Return tensors as timm's ViT without registers in the position embedding names them; undoes what Eva does."""
    vit: Tensors = {}
    for name, value in tensors.items():
        if name.endswith((".q_bias", ".v_bias", ".k_bias")) or ".mlp.fc1_" in name:
            continue
        vit[re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", name)] = value
    for name, value in tensors.items():
        if name.endswith(".q_bias"):
            values = tensors[name.replace(".q_bias", ".v_bias")]
            vit[name.replace(".q_bias", ".qkv.bias")] = torch.cat([value, torch.zeros_like(value), values])
        elif ".mlp.fc1_g." in name:
            vit[name.replace("fc1_g", "fc1")] = torch.cat([value, tensors[name.replace("fc1_g", "fc1_x")]])
    positions = vit.get("pos_embed")
    if positions is not None and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        vit["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return vit


def _find(source: Tensors, name: str, like: torch.Tensor) -> tuple[torch.Tensor, str] | None:
    """Return the tensor that a network wants under a canonical name, and the name of what it was cut from."""
    if name == "mask_token":
        return torch.zeros_like(like), name
    if name == "register_tokens":
        name = "reg_token"
    if name in source:
        return source[name], name
    if match := re.fullmatch(r"(blocks\.\d+\.attn\.)(\w+)\.(weight|bias)", name):
        joined = f"{match[1]}qkv.{match[3]}"
        if match[2] in _THIRDS and joined in source:
            return source[joined].chunk(3)[_THIRDS[match[2]]], joined
        if match[2] in _THIRDS and match[3] == "bias" and f"{match[1]}qkv.weight" in source:
            return torch.zeros_like(like), joined
    if match := re.fullmatch(r"(blocks\.\d+\.mlp\.)(\w+)\.(weight|bias)", name):
        return _find_mlp(source, match, like)
    return None


def _find_mlp(source: Tensors, match: re.Match[str], like: torch.Tensor) -> tuple[torch.Tensor, str] | None:
    prefix, part, kind = match.groups()
    first, second = f"{prefix}fc1.{kind}", f"{prefix}fc2.{kind}"
    if part in {"w3", "down_proj"} and second in source:
        return source[second], second
    if first not in source:
        return None
    if part == "w12" or (part == "up_proj" and source[first].shape == like.shape):
        return source[first], first
    return (source[first].chunk(2)[_HALVES[part]], first) if part in _HALVES else None


def _require_no_lost_bias(source: Tensors, used: set[str], expected: Mapping[str, torch.Tensor], path: object) -> None:
    """Refuse a bias of keys, or of queries and values, that has a value and no place."""
    has_key_bias = any(re.search(r"\.(?:k_proj|key)\.bias$", name) for name in expected)
    for name in [name for name in source if name.endswith(".attn.qkv.bias")]:
        lost = source[name].chunk(3)[1] if name in used else source[name]
        if (name not in used or not has_key_bias) and bool(lost.any()):
            msg = f"{path} has a bias {name} that this backbone cannot hold; choose the timm form of this model"
            raise BackboneError(msg)
        if name not in used:
            del source[name]
