"""A probe with the backbone that its card names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.backbones import load_backbone
from dlprobe.errors import ProbeError
from dlprobe.probes import Probe

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
    """Load a probe and the backbone that its card names; arguments and errors as for `localize_files`."""
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
