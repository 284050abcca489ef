"""DinoLizer's published checkpoint: low-rank updates merged into the backbone, and its head with three logits.

A Lightning checkpoint of Doi et al. (arXiv 2511.20722, second version): names begin with ``net.`` or ``model.``; in
each block the layer ``attn.qkv`` is wrapped, and ``linear_b(linear_a(x))`` is added to queries and to values, times
``alpha // rank`` with alpha = 64 (the class ``LoRA_ViT_timm`` of JamesQFreeman/LoRA-ViT); ``cls_head`` maps patch
tokens after the final norm to three logits, of which the last means manipulated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dlprobe.backbones.weights.files import find_tensors, read_checkpoint, weight_file
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

ALPHA = 64
#: Left out: the head, which `read_dinolizer_head` reads, an unused empty layer of the wrapper, a weight of the loss.
DROPPED_PATTERNS = ("cls_head.*", "proj_3d.*", "head.*", "*pos_weight*")
CLASSES = ("pristine", "autoencoded", "inpainted")

_PREFIX = re.compile(r"^(?:(?:module|net|model|lora_vit)\.)+")
_LORA = re.compile(r"\.attn\.qkv\.linear_([ab])_([qv])\.weight$")


@dataclass(frozen=True, slots=True, eq=False)
class DinoLizerHead:
    """The head of DinoLizer's checkpoint, as a probe needs it.

    Parameters
    ----------
    weights : ndarray of float32, shape (3, width)
        On patch tokens after the final norm.
    bias : ndarray of float32, shape (3,)
    classes : tuple of str
        Of the three logits.
    notes : tuple of str
        Source and licence, for the probe's card.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def is_dinolizer(tensors: dict[str, Any]) -> bool:
    """Tell whether tensors have the low-rank updates of this checkpoint."""
    return any(_LORA.search(name) for name in tensors)


def merge_updates(tensors: dict[str, torch.Tensor], path: object) -> dict[str, torch.Tensor]:
    """Return tensors under timm's names with the low-rank updates added to queries and values, in float64.

    Raises
    ------
    BackboneError
        If an update is incomplete, of another shape, or its scale is unknown.
    """
    named = _unwrapped(tensors, path)
    merged = {
        name.replace(".attn.qkv.qkv.", ".attn.qkv."): tensor for name, tensor in named.items() if not _LORA.search(name)
    }
    for prefix in sorted({_LORA.sub("", name) for name in named if _LORA.search(name)}):
        weight = merged[f"{prefix}.attn.qkv.weight"].double().clone() if _whole(named, prefix) else None
        if weight is None:
            msg = f"{path} has an incomplete low-rank update in {prefix}; fetch the checkpoint again"
            raise BackboneError(msg)
        width = weight.shape[1]
        for part, rows in (("q", slice(0, width)), ("v", slice(2 * width, 3 * width))):
            weight[rows] += _update(named, prefix, part, path)
        merged[f"{prefix}.attn.qkv.weight"] = weight.float()
    return merged


def read_dinolizer_head(path: Path) -> DinoLizerHead:
    """Return the three-class head of DinoLizer's checkpoint.

    Parameters
    ----------
    path : Path
        The Lightning checkpoint, as for ``--weights``.

    Raises
    ------
    BackboneError
        If the file cannot be read, or has no linear ``cls_head``.
    """
    path = weight_file(path)
    tensors = _unwrapped(find_tensors(read_checkpoint(path), path), path)
    head = {name: value.float().numpy() for name, value in tensors.items() if name.startswith("cls_head.")}
    weights = [value for value in head.values() if value.ndim == 2]
    biases = [value for value in head.values() if value.ndim == 1]
    if len(head) != 2 or len(weights) != 1 or len(biases) != 1 or len(weights[0]) != len(biases[0]):
        found = ", ".join(f"{name} {value.shape}" for name, value in head.items()) or "nothing"
        msg = f"{path} has no linear head cls_head with weight and bias (found {found}); give DinoLizer's checkpoint"
        raise BackboneError(msg)
    if len(biases[0]) != len(CLASSES):
        msg = f"the head of {path} has {len(biases[0])} logits; DinoLizer's has {len(CLASSES)}: {', '.join(CLASSES)}"
        raise BackboneError(msg)
    notes = (
        f"head of {path.name}, DinoLizer (arXiv 2511.20722)",
        "GRIP-UNINA: informational and non-profit purposes only",
        "the last logit means manipulated; the meaning of the first two is by report only",
    )
    return DinoLizerHead(weights=weights[0], bias=biases[0], classes=CLASSES, notes=notes)


def _unwrapped(tensors: dict[str, torch.Tensor], path: object) -> dict[str, torch.Tensor]:
    """Take the names of wrappers off each name by itself; two that become one must be equal."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        short = _PREFIX.sub("", name)
        if short in named and not torch.equal(named[short], tensor):
            msg = f"{path} has two different tensors {short}; it is no DinoLizer checkpoint that dlprobe knows"
            raise BackboneError(msg)
        named[short] = tensor
    return named


def _whole(named: dict[str, torch.Tensor], prefix: str) -> bool:
    parts = [f"{prefix}.attn.qkv.linear_{ab}_{qv}.weight" for ab in "ab" for qv in "qv"]
    return all(name in named for name in (*parts, f"{prefix}.attn.qkv.qkv.weight"))


def _update(named: dict[str, torch.Tensor], prefix: str, part: str, path: object) -> torch.Tensor:
    down = named[f"{prefix}.attn.qkv.linear_a_{part}.weight"].double()
    up = named[f"{prefix}.attn.qkv.linear_b_{part}.weight"].double()
    width, rank = up.shape
    if down.shape != (rank, width):
        msg = f"{path} has a low-rank update of shapes {tuple(up.shape)} and {tuple(down.shape)} in {prefix}"
        raise BackboneError(msg)
    if rank == 0 or ALPHA % rank:
        msg = f"{path} has low-rank updates of rank {rank}; the scale is known for alpha = {ALPHA} only"
        raise BackboneError(msg)
    return (ALPHA // rank) * up @ down
