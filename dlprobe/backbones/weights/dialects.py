"""Translate the tensor names of the DINOv2 and DINOv3 repositories and of transformers into timm's.

Names were read in facebookresearch/dinov2 and facebookresearch/dinov3 (``models/vision_transformer.py``, ``layers``),
in transformers 4.x and 5.x (``models/dinov2``, ``dinov2_with_registers``, ``dinov3_vit``) and in timm 1.0
(``vision_transformer.py``, ``eva.py``, each with its ``checkpoint_filter_fn``). Values are moved, cut and joined, never
interpolated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of naming the tensors of a vision transformer.

    Parameters
    ----------
    name : str
        For people.
    marks : tuple of str
        A file is of this dialect if it has one of these tensors.
    droppable : tuple of str
        Patterns of names that embeddings of patches do not need.
    renamings : tuple of (str, str)
        Regular expressions and what they become in timm, applied one after another.
    """

    name: str
    marks: tuple[str, ...]
    droppable: tuple[str, ...]
    renamings: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Translation:
    """Tensors under timm's names, and what was left out on the way."""

    dialect: str
    tensors: Tensors
    dropped: list[str] = field(default_factory=list)


_TRANSFORMERS_BLOCKS = (
    (r"^(?:model\.|encoder\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)

DIALECTS = (
    Dialect(
        "transformers DINOv2",
        ("embeddings.position_embeddings",),
        ("embeddings.mask_token", "classifier.*"),
        (
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.", ""),
            (r"^layernorm\.", "norm."),
            *_TRANSFORMERS_BLOCKS,
            (r"\.mlp\.weights_in\.", ".mlp.w12."),
            (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.w3."),
            (r"\.mlp\.gate_proj\.", ".mlp.w1."),
            (r"\.mlp\.up_proj\.", ".mlp.w2."),
        ),
    ),
    Dialect(
        "transformers DINOv3",
        ("embeddings.patch_embeddings.weight",),
        ("embeddings.mask_token",),
        (
            (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
            (r"^embeddings\.", ""),
            *_TRANSFORMERS_BLOCKS,
            (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        ),
    ),
    Dialect(
        "DINOv3 repository",
        ("storage_tokens", "rope_embed.periods"),
        # positions are computed, keys have no bias, and these norms never see a patch
        ("mask_token", "*.periods", "*.bias_mask", "cls_norm.*", "local_cls_norm.*"),
        ((r"^storage_tokens$", "register_tokens"),),
    ),
    Dialect("DINOv2 repository", ("mask_token", "register_tokens"), ("mask_token",), ()),
)
TIMM = "timm"


def to_timm(tensors: Tensors, expected: Collection[str], path: object) -> Translation:
    """Return tensors under the names that a timm network expects.

    Parameters
    ----------
    tensors : dict of str to tensor
        In any of `DIALECTS`, or in timm's own names, which pass unchanged.
    expected : collection of str
        Names of the network's tensors.
    path : object
        The file, for messages.

    Returns
    -------
    Translation

    Raises
    ------
    BackboneError
        If biases of queries and values are not zero and the network has none.
    """
    tensors = _strip_model_prefix(tensors)
    dialect = next((d for d in DIALECTS if any(mark in tensors for mark in d.marks)), None)
    if dialect is None or "reg_token" in tensors:
        return Translation(TIMM, tensors)
    result = Translation(dialect.name, {})
    masks = {name: value for name, value in tensors.items() if name.endswith(".bias_mask")}
    for name, value in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in dialect.droppable):
            result.dropped.append(name)
        else:
            mask = masks.get(f"{name}_mask")
            result.tensors[rename(name, dialect)] = value if mask is None else value * mask.to(value.dtype)
    _join_attention(result.tensors)
    _join_gates(result.tensors, expected)
    _settle_prefix(result.tensors, expected)
    if any(name.endswith(".gamma_1") for name in expected):
        _settle_eva(result, expected, path)
    return result


def _strip_model_prefix(tensors: Tensors) -> Tensors:
    """Take off the name that transformers' models with a head put before the backbone."""
    found = re.compile(r"^dinov2(?:_with_registers)?\.")
    return {found.sub("", name): value for name, value in tensors.items()}


def rename(name: str, dialect: Dialect) -> str:
    """Return the name that a dialect's tensor has in timm, before tensors are joined or cut."""
    for pattern, replacement in dialect.renamings:
        name = re.sub(pattern, replacement, name)
    return name


def _join_attention(tensors: Tensors) -> None:
    """Join queries, keys and values; a missing bias among them is zero."""
    for prefix in sorted({m[1] for name in tensors if (m := re.match(r"(blocks\.\d+\.attn\.)(?:q|query)\.", name))}):
        for kind in ("weight", "bias"):
            parts = [_pop(tensors, f"{prefix}{short}.{kind}", f"{prefix}{long}.{kind}") for short, long in _QKV]
            present = [part for part in parts if part is not None]
            if present and (kind == "bias" or len(present) == len(parts)):
                shaped = [torch.zeros_like(present[0]) if part is None else part for part in parts]
                tensors[f"{prefix}qkv.{kind}"] = torch.cat(shaped)


_QKV = (("q", "query"), ("k", "key"), ("v", "value"))


def _pop(tensors: Tensors, *names: str) -> torch.Tensor | None:
    return next((tensors.pop(name) for name in names if name in tensors), None)


def _join_gates(tensors: Tensors, expected: Collection[str]) -> None:
    """Name the gated MLP as the network does: gate and value packed in one tensor (timm's ViT), or apart (Eva)."""
    packed = not any(".mlp.fc1_g." in name for name in expected)
    for name in sorted(tensors):
        if match := re.fullmatch(r"(blocks\.\d+\.mlp\.)w1\.(weight|bias)", name):
            prefix, kind = match.groups()
            gate, value = tensors.pop(name), _pop(tensors, f"{prefix}w2.{kind}", f"{prefix}up_proj.{kind}")
            if value is None:
                tensors[name] = gate  # stays, and is told as unexpected
            elif packed:
                tensors[f"{prefix}fc1.{kind}"] = torch.cat([gate, value])
            else:
                tensors[f"{prefix}fc1_g.{kind}"], tensors[f"{prefix}fc1_x.{kind}"] = gate, value
    renamings: tuple[tuple[str, Callable[[str], str]], ...] = (
        (".mlp.w12.", lambda name: name.replace(".w12.", ".fc1.")),
        (".mlp.w3.", lambda name: name.replace(".w3.", ".fc2.")),
        (".mlp.up_proj.", lambda name: name.replace(".up_proj.", ".fc1.")),
        (".mlp.down_proj.", lambda name: name.replace(".down_proj.", ".fc2.")),
    )
    for mark, rename in renamings:
        for name in [name for name in tensors if mark in name]:
            tensors[rename(name)] = tensors.pop(name)


def _settle_prefix(tensors: Tensors, expected: Collection[str]) -> None:
    """Name registers as timm does; where they are, the position of CLS belongs to CLS itself."""
    if "register_tokens" not in tensors:
        return
    tensors["reg_token"] = tensors.pop("register_tokens")
    positions = tensors.get("pos_embed")
    if positions is not None and "pos_embed" in expected and "cls_token" in tensors:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]


def _settle_eva(result: Translation, expected: Collection[str], path: object) -> None:
    """Name what timm's Eva, which runs DINOv3, names otherwise: LayerScale, and biases without that of keys."""
    tensors = result.tensors
    for name in list(tensors):
        if match := re.fullmatch(r"(blocks\.\d+\.)ls(\d)\.gamma", name):
            tensors[f"{match[1]}gamma_{match[2]}"] = tensors.pop(name)
        elif name.endswith(".attn.qkv.bias") and name not in expected:
            _split_bias(result, name, expected, path)


def _split_bias(result: Translation, name: str, expected: Collection[str], path: object) -> None:
    queries, keys, values = result.tensors.pop(name).chunk(3)
    prefix = name.removesuffix("qkv.bias")
    wanted = f"{prefix}q_bias" in expected
    if bool(keys.any()) or (not wanted and bool(queries.any() or values.any())):
        advice = "its keys must have none" if bool(keys.any()) else "choose the form of the name with _qkvb"
        msg = f"{path} has a bias {name} that this backbone cannot hold; {advice}"
        raise BackboneError(msg)
    if wanted:
        result.tensors[f"{prefix}q_bias"], result.tensors[f"{prefix}v_bias"] = queries, values
    else:
        result.dropped.append(name)
