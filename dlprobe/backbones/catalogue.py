"""Short names of backbones and what is known of them, without loading torch or asking the network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlprobe.backbones.base import LoadRequest

LVD_142M = "LVD-142M: web images, retrieved as neighbours of ImageNet-22k, Google Landmarks v2 and fine-grained sets"
LVD_1689M = "LVD-1689M: curated web images"
SAT_493M = "SAT-493M: satellite images"
B_FREE = f"{LVD_142M}; then B-Free: COCO train2017 and its re-generations by Stable Diffusion 2.1"
DINOLIZER = f"{B_FREE}; then adapted to localization by DinoLizer's authors (arXiv 2511.20722)"
DINOV3_GATE = (
    "Meta's own repositories ask to accept the DINOv3 licence and to log in; "
    "a file fetched there is given with --weights FILE"
)

GRIP = "GRIP-UNINA: informational and non-profit purposes only"

#: Licence and training data of published files that no hub has, by sha256.
KNOWN_FILES = {
    "5948ca78f4d94e820c250d24cdf155035b4a85960443800bfe6bb7f06bffe947": (GRIP, B_FREE),
    "96cb26f2536919d67b75a5aff195b683a1d8590fe596e6f1260ab7950883e2a2": (GRIP, DINOLIZER),
}

#: What a timm tag was trained on.
_TAGS = {"lvd142m": LVD_142M, "lvd1689m": LVD_1689M, "sat493m": SAT_493M}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A short name and what is known of it.

    Parameters
    ----------
    alias, name : str
        Short and full name.
    patch_px, width, depth, registers, window_px : int
        Patch side, numbers per token, blocks, register tokens, default window.
    licence, trained_on : str
        Of the weights.
    weight_source : str
        Where ``pretrained`` weights come from: a hub repository, or what file to give.
    repository : str or None
        The hub repository.
    local_folder : str or None
        Folder under `local_weights` in which weights that no hub has are looked for.
    local_files : tuple of str
        Files of which that folder must hold one.
    notes : str
        What else to know.
    """

    alias: str
    name: str
    patch_px: int
    width: int
    depth: int
    registers: int
    window_px: int
    licence: str
    trained_on: str
    weight_source: str
    repository: str | None = None
    local_folder: str | None = None
    local_files: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneListing:
    """One row of `list_backbones`: an entry of the catalogue, and whether its weights are on this machine."""

    alias: str
    name: str
    patch_px: int
    width: int
    depth: int
    registers: int
    window_px: int
    licence: str
    weight_source: str
    trained_on: str
    present: bool
    notes: str


def local_weights() -> Path:
    """Return the folder for weights that no hub has: ``$DLPROBE_WEIGHTS``, or ``~/.cache/dlprobe/weights``."""
    if chosen := os.environ.get("DLPROBE_WEIGHTS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlprobe" / "weights"


def trained_on(tag: str) -> str:
    """Return what the weights of a timm tag were trained on."""
    return _TAGS.get(tag, f"timm's tag {tag!r}" if tag else "unknown")


def describe_file(sha256: str, request: LoadRequest, path: Path | None) -> tuple[str, str]:
    """Return licence and training data of weights that are not ``pretrained`` by name.

    Parameters
    ----------
    sha256 : str
        Of the file.
    request : LoadRequest
        A short name may tell what its file is.
    path : Path or None
        The file; None for random weights.
    """
    if path is None:
        return "none: random weights", f"nothing: random weights, seed {request.seed}"
    if sha256 in KNOWN_FILES:
        return KNOWN_FILES[sha256]
    return (
        request.licence or "unknown: that of the file",
        request.trained_on or f"unknown: that of the file {path.name}",
    )


def list_backbones() -> list[BackboneListing]:
    """Return what `dlprobe backbones` shows: every short name, from memory and from a look at the disk."""
    return [
        BackboneListing(
            alias=entry.alias,
            name=entry.name,
            patch_px=entry.patch_px,
            width=entry.width,
            depth=entry.depth,
            registers=entry.registers,
            window_px=entry.window_px,
            licence=entry.licence,
            weight_source=entry.weight_source,
            trained_on=entry.trained_on,
            present=_present(entry),
            notes=entry.notes,
        )
        for entry in CATALOGUE.values()
    ]


def _present(entry: CatalogueEntry) -> bool:
    if entry.local_folder:
        return any((local_weights() / entry.local_folder / name).is_file() for name in entry.local_files)
    if entry.repository is None:
        return True
    from dlprobe.backbones.weights.hub import cached_weights

    return cached_weights(entry.repository) is not None


def _timm(alias: str, model: str, size: tuple[int, int], registers: int, *, patch_px: int) -> CatalogueEntry:
    dinov3 = patch_px == 16
    return CatalogueEntry(
        alias=alias,
        name=f"timm:{model}",
        patch_px=patch_px,
        width=size[0],
        depth=size[1],
        registers=registers,
        window_px=512 if dinov3 else 504,
        licence="dinov3-license" if dinov3 else "apache-2.0",
        trained_on=trained_on(model.partition(".")[2]),
        weight_source=f"hub: timm/{model}",
        repository=f"timm/{model}",
        notes=f"timm's form without qkv biases, which are zero in Meta's files. {DINOV3_GATE}" if dinov3 else "",
    )


_SMALL, _BASE, _LARGE, _GIANT = (384, 12), (768, 12), (1024, 24), (1536, 40)
_DINOV2 = (("s", "small", _SMALL), ("b", "base", _BASE), ("l", "large", _LARGE), ("g", "giant", _GIANT))
_DINOV3 = (
    ("s", "small", _SMALL),
    ("s-plus", "small_plus", _SMALL),
    ("b", "base", _BASE),
    ("l", "large", _LARGE),
    ("h-plus", "huge_plus", (1280, 32)),
    ("7b", "7b", (4096, 40)),
)

_ENTRIES = (
    CatalogueEntry(
        alias="srm",
        name="residual:srm",
        patch_px=14,
        width=720,
        depth=0,
        registers=0,
        window_px=504,
        licence="Apache-2.0",
        trained_on="nothing: fixed high-pass filters",
        weight_source="none needed",
        notes="residual statistics (Fridrich and Kodovsky 2012): the floor that a learned backbone has to beat",
    ),
    *(_timm(f"dinov2-{a}", f"vit_{b}_patch14_dinov2.lvd142m", size, 0, patch_px=14) for a, b, size in _DINOV2),
    *(_timm(f"dinov2-{a}-reg", f"vit_{b}_patch14_reg4_dinov2.lvd142m", size, 4, patch_px=14) for a, b, size in _DINOV2),
    *(_timm(f"dinov3-{a}", f"vit_{b}_patch16_dinov3.lvd1689m", size, 4, patch_px=16) for a, b, size in _DINOV3),
    _timm("dinov3-l-sat", "vit_large_patch16_dinov3.sat493m", _LARGE, 4, patch_px=16),
    CatalogueEntry(
        alias="bfree",
        name="timm:vit_base_patch14_reg4_dinov2.lvd142m",
        patch_px=14,
        width=768,
        depth=12,
        registers=4,
        window_px=504,
        licence=GRIP,
        trained_on=B_FREE,
        weight_source="file: BFREE_dino2reg4/model_epoch_best.pth of www.grip.unina.it/download/prog/B-Free",
        local_folder="bfree",
        local_files=("model_epoch_best.pth",),
        notes="DINOv2-B with registers, further trained by Guillaro et al. (arXiv 2412.17671); DinoLizer's backbone",
    ),
    CatalogueEntry(
        alias="dinolizer",
        name="timm:vit_base_patch14_reg4_dinov2.lvd142m",
        patch_px=14,
        width=768,
        depth=12,
        registers=4,
        window_px=504,
        licence=GRIP,
        trained_on=DINOLIZER,
        weight_source="file: epoch=36_val_loss=0.2130.ckpt of DinoLizer's authors",
        local_folder="dinolizer",
        local_files=("epoch=36_val_loss=0.2130.ckpt",),
        notes="B-Free's backbone, low-rank updates of queries and values merged; its head has three logits",
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.alias: entry for entry in _ENTRIES}
