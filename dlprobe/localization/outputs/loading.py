"""A probe with the backbone that its card names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.backbones import load_backbone, read_dinolizer_head
from dlprobe.data.labels import CLASSES
from dlprobe.errors import ProbeError
from dlprobe.probes import Probe, make_card
from dlprobe.probes.heads import THREE_CLASS

if TYPE_CHECKING:
    from dlprobe.backbones import Backbone


def load_probe(
    probe: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str = "auto",
    engine: str = "torch",
    precision: str = "auto",
    batch_size: int | None = None,
) -> tuple[Probe, Backbone]:
    """Load a probe and the backbone that its card names; arguments and errors as for `localize_files`.

    DinoLizer's published checkpoint (``.ckpt``) is both: its head becomes a three-class probe.
    """
    if Path(probe).is_dir():
        found = sorted(Path(probe).glob("**/*.safetensors"), key=lambda path: (len(path.parts), path))
        named = f"one of its probes, such as {found[0]}" if found else "a file written by `dlprobe fit`"
        msg = f"{probe} is a folder; give {named}"
        raise ProbeError(msg)
    if Path(probe).suffix == ".ckpt":
        backbone = load_backbone(
            "dinolizer",
            weights=weights or Path(probe),
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
        )
        return _published(Path(probe), backbone), backbone
    head = Probe.load(Path(probe))
    spec = head.model_spec
    if spec is None:
        msg = f"{probe} does not name its backbone; use dlprobe.localization.localize with a backbone of your own"
        raise ProbeError(msg)
    if spec.backbone.startswith("module:"):
        msg = f"{probe} names {spec.backbone}, which would run code; load it yourself for dlprobe.localization.localize"
        raise ProbeError(msg)
    where = weights or str(head.card.get("weights", "pretrained"))
    if weights is None and (os.sep in where or where.endswith((".pth", ".safetensors"))) and not Path(where).exists():
        msg = (
            f"{probe} was fitted on weights from {where}, which is not here; "
            f"give them with --weights (sha256 {spec.weights_sha256[:16]}...)"
        )
        raise ProbeError(msg)
    backbone = load_backbone(
        spec.backbone,
        weights=where,
        device=device,
        engine=engine,
        precision=precision,
        layers=spec.layers or (-1,),
        norm=spec.norm,
        window_px=spec.window_px,
        batch_size=batch_size,
    )
    head.require_model(backbone.spec, f"{probe} and the backbone that was loaded")
    return head, backbone


def _published(path: Path, backbone: Backbone) -> Probe:
    """Return the head of DinoLizer's checkpoint as a probe; the last class means manipulated."""
    head = read_dinolizer_head(path)
    card = make_card(
        model=backbone.spec,
        scheme=THREE_CLASS,
        objective="as published",
        classes=[kind.name for kind in CLASSES],
        threshold=0.5,
        threshold_policy="0.5, not calibrated",
        notes=head.notes,
        weights=str(path),
    )
    return Probe(head.weights, head.bias, card)
