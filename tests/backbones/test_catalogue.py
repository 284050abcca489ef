import subprocess
import sys

import pytest
import timm
import torch

from dlprobe.backbones import list_backbones, load_backbone
from dlprobe.backbones.base import default_window_px
from dlprobe.backbones.catalogue import CATALOGUE

TIMM = {entry.name: entry for entry in CATALOGUE.values() if entry.name.startswith("timm:")}


@pytest.mark.parametrize("name", TIMM)
def test_the_catalogue_says_what_timm_says(name):
    entry, model = TIMM[name], name.removeprefix("timm:")
    with torch.device("meta"):
        network = timm.create_model(model, num_classes=0)
    assert (entry.patch_px, entry.width, entry.depth) == (
        network.patch_embed.patch_size[0],
        network.embed_dim,
        len(network.blocks),
    )
    assert entry.registers == network.num_prefix_tokens - 1
    assert entry.window_px == default_window_px(entry.patch_px)
    config = timm.models.get_pretrained_cfg(model)
    assert entry.local_folder or (entry.licence, entry.repository) == (config.license, config.hf_hub_id)


def test_the_residual_backbone_is_as_the_catalogue_says():
    entry, backbone = CATALOGUE["srm"], load_backbone("srm", device="cpu")
    assert backbone.spec == load_backbone("residual:srm", device="cpu").spec
    assert (entry.width, entry.patch_px, entry.window_px) == (backbone.width, backbone.patch_px, 504)
    assert (entry.licence, entry.trained_on) == (backbone.card.licence, backbone.card.trained_on)


def test_listing_tells_which_weights_are_here(no_hub, put_into_hub, tmp_path):
    assert {row.alias for row in list_backbones() if row.present} == {"srm"}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"x")
    put_into_hub(no_hub / "hub", "timm/vit_small_patch14_dinov2.lvd142m", tmp_path / "files")
    (no_hub / "local" / "bfree").mkdir(parents=True)
    (no_hub / "local" / "bfree" / "model_epoch_best.pth").write_bytes(b"x")
    assert {row.alias for row in list_backbones() if row.present} == {"srm", "dinov2-s", "bfree"}


def test_listing_says_what_was_trained_on_coco_and_what_is_gated():
    rows = {row.alias: row for row in list_backbones()}
    assert "COCO train2017" in rows["bfree"].trained_on
    assert "COCO" not in rows["dinov2-b-reg"].trained_on
    assert "accept the DINOv3 licence" in rows["dinov3-b"].notes
    assert "without qkv biases" in rows["dinov3-b"].notes


def test_listing_loads_no_torch():
    code = (
        "import sys; from dlprobe.backbones import list_backbones; list_backbones(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
