"""Small vision transformers of timm's own code, registered under names of the tests."""

import shutil

import numpy as np
import pytest
import timm.models.eva as timm_eva
import timm.models.vision_transformer as timm_vit
from timm.models import register_model

NANO = {"embed_dim": 48, "depth": 4, "num_heads": 3}


@register_model
def vit_nano_patch14_dinov2(pretrained=False, **kwargs):
    return timm_vit.vit_small_patch14_dinov2(**NANO, img_size=70, **kwargs)


@register_model
def vit_nano_patch14_reg4_dinov2(pretrained=False, **kwargs):
    return timm_vit.vit_small_patch14_reg4_dinov2(**NANO, img_size=70, **kwargs)


@register_model
def vit_nano_patch16_dinov3(pretrained=False, **kwargs):
    return timm_eva.vit_small_patch16_dinov3(**NANO, **kwargs)


@register_model
def vit_nano_patch14_reg4_swiglu_dinov2(pretrained=False, **kwargs):
    return timm_vit.vit_giant_patch14_reg4_dinov2(**NANO, img_size=70, **kwargs)


@register_model
def vit_nano_patch16_dinov3_qkvb(pretrained=False, **kwargs):
    return timm_eva.vit_small_patch16_dinov3_qkvb(**NANO, **kwargs)


@register_model
def vit_nano_plus_patch16_dinov3_qkvb(pretrained=False, **kwargs):
    return timm_eva.vit_small_plus_patch16_dinov3_qkvb(**NANO, **kwargs)


@pytest.fixture
def windows():
    """Return a function that makes seeded windows of RGB bytes."""

    def make(count, side_px, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (count, side_px, side_px, 3), dtype=np.uint8)

    return make


@pytest.fixture
def put_into_hub():
    """Return a function that puts a folder into the hub's cache, as a download would."""

    def put(hub, repository, folder):
        root = hub / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / "abc")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("abc")
        return root / "snapshots" / "abc"

    return put


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """Give an empty hub cache, and forbid the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DLPROBE_WEIGHTS", str(tmp_path / "local"))
    return tmp_path
