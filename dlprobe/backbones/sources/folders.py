"""``file:FOLDER``: a folder that says itself what it holds, of timm, of transformers or of B-Free."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from dlprobe.backbones.base import Backbone, LoadRequest


def load_folder(request: LoadRequest) -> Backbone:
    """Load the backbone in a folder; its path is no part of the identity.

    Raises
    ------
    BackboneError
        If there is no such folder, or it does not say what it holds.
    """
    folder = Path(request.model)
    if not folder.is_dir():
        msg = f"no folder {folder}; a single file is given with --weights beside the name of its backbone"
        raise BackboneError(msg)
    if request.weights != "pretrained":
        msg = f"file:{folder} brings its own weights; leave --weights out"
        raise BackboneError(msg)
    request = replace(request, weights=str(folder))
    described = folder / "config.json"
    if described.is_file():
        return _described(request, folder, described)
    model = _bfree_model(folder / "config.yaml")
    if model is None:
        msg = f"folder {folder} says not what it is: no config.json of timm or transformers, no config.yaml of B-Free"
        raise BackboneError(msg)
    from dlprobe.backbones.sources.timm_models import load_timm

    return load_timm(replace(request, model=model))


def _described(request: LoadRequest, folder: Path, path: Path) -> Backbone:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is no JSON ({error}); fetch it again"
        raise BackboneError(msg) from error
    if "model_type" in fields:
        from dlprobe.backbones.sources.hf_models import configuration_name, load_hf, read_folder

        return load_hf(replace(request, model=configuration_name(read_folder(folder).fields)))
    if "architecture" in fields:
        from dlprobe.backbones.sources.timm_models import load_timm

        tag = fields.get("pretrained_cfg", {}).get("tag")
        return load_timm(replace(request, model=".".join(filter(None, (fields["architecture"], tag)))))
    msg = f"{path} names neither an architecture of timm nor a model_type of transformers"
    raise BackboneError(msg)


def _bfree_model(path: Path) -> str | None:
    """Return the timm model that B-Free's ``config.yaml`` names: ``arch: timm_c5i504_MODEL``."""
    if not path.is_file():
        return None
    found = re.search(r"^arch:\s*['\"]?timm_c5i\d+_([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None
