"""`file:`, `module:` and entry points of other packages."""

import json
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dlprobe.backbones import Backbone, load_backbone
from dlprobe.errors import BackboneError

CODE = """
import numpy as np
import torch
from dlprobe.backbones import load_backbone

class Mean:
    width = 3
    patch_px = 14
    weights_sha256 = "ab" * 32

    def __call__(self, windows):
        b, side = len(windows), windows.shape[1] // 14
        return windows.float().reshape(b, side, 14, side, 14, 3).mean(dim=(2, 4))

def plain(windows):
    return np.zeros((len(windows), 5, 5, 2), np.float32) + windows.numpy().mean()
plain.width, plain.patch_px, plain.window_px = 2, 14, 70

def liar(windows):
    return torch.zeros(len(windows), 5, 5, 7)
liar.width, liar.patch_px, liar.window_px = 2, 14, 70

instance = Mean()
number = 3

def ready():
    return load_backbone("residual:srm", window_px=70, device="cpu")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "users_backbones.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_backbones"
    sys.modules.pop("users_backbones", None)


@pytest.mark.parametrize("attribute", ["Mean", "instance"])
def test_a_users_callable_is_a_backbone(attribute, module, windows):
    backbone = load_backbone(f"module:{module}.{attribute}", device="cpu", window_px=70, batch_size=2)
    batch = windows(3, 70)
    assert isinstance(backbone, Backbone)
    assert backbone.weights_sha256 == "ab" * 32
    assert backbone.spec.window_px == 70
    expected = batch.reshape(3, 5, 14, 5, 14, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(backbone(batch).numpy(), expected, rtol=1e-5)


def test_a_callable_without_fingerprint_is_accepted_and_said(module, windows):
    backbone = load_backbone(f"module:{module}.plain", device="cpu")
    assert backbone(windows(2, 70)).shape == (2, 5, 5, 2)
    assert backbone.weights_sha256 == "none"
    assert "changed weights go unnoticed" in backbone.card.notes


def test_a_function_may_return_a_backbone_that_is_one_already(module):
    assert load_backbone(f"module:{module}.ready").spec.backbone == "residual:srm"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("module:users_backbones", {}, "names no attribute; write module:package.attr"),
        ("module:users_backbones.gone", {}, "module users_backbones has no gone"),
        ("module:nowhere_to_be.found", {}, "put its folder on PYTHONPATH"),
        ("module:users_backbones.number", {}, "has to be a callable with the attributes width and patch_px"),
        ("module:users_backbones.plain", {"weights": "random:0"}, "leave --weights"),
        ("module:users_backbones.plain", {"layers": (3,)}, "leave --weights, --layers"),
        ("module:users_backbones.plain", {"window_px": 72}, "windows that work are 70 and 84 px"),
    ],
)
def test_what_is_no_backbone_is_told(name, options, words, module):
    with pytest.raises(BackboneError, match=words):
        load_backbone(name, **options)


def test_a_callable_that_returns_another_shape_is_told(module, windows):
    backbone = load_backbone(f"module:{module}.liar", device="cpu")
    with pytest.raises(BackboneError, match=r"returned shape \(1, 5, 5, 7\); it says that it returns \(1, 5, 5, 2\)"):
        backbone(windows(1, 70))


def load_from_another_package(request):
    """Stand for the source of an installed package."""
    return load_backbone("residual:srm", window_px=request.window_px, device=request.device)


def test_a_package_announces_its_source_as_an_entry_point(monkeypatch):
    entry = EntryPoint("acme", f"{__name__}:load_from_another_package", "dlprobe.backbones")
    monkeypatch.setattr(EntryPoint, "load", lambda self: load_from_another_package)
    monkeypatch.setattr("dlprobe.registry.entry_points", lambda group: [entry] if group == entry.group else [])
    assert load_backbone("acme:anything", window_px=28, device="cpu").spec.window_px == 28


def test_a_folder_of_timm_says_its_architecture(windows, tmp_path):
    donor = load_backbone("timm:vit_nano_patch14_dinov2", weights="random:0", device="cpu", window_px=70)
    save_file(donor.network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_nano_patch14_dinov2"}))
    backbone = load_backbone(f"file:{tmp_path}", device="cpu", window_px=70)
    assert torch.equal(backbone(windows(1, 70)), donor(windows(1, 70)))
    assert backbone.spec == replace(donor.spec, weights_sha256=backbone.weights_sha256)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "says not what it is"),
        ({"config.json": "{}"}, "names neither an architecture of timm nor a model_type"),
        ({"config.json": "<html>"}, "is no JSON"),
        ({"config.yaml": "model: 3"}, "says not what it is"),
    ],
)
def test_a_folder_that_does_not_say_what_it_is_is_refused(files, words, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BackboneError, match=words):
        load_backbone(f"file:{tmp_path}", device="cpu")


def test_a_folder_that_is_none_or_other_weights_beside_it_are_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"no folder .*gone; a single file is given with --weights"):
        load_backbone(f"file:{tmp_path / 'gone'}", device="cpu")
    with pytest.raises(BackboneError, match="brings its own weights"):
        load_backbone(f"file:{tmp_path}", weights="random:0", device="cpu")
