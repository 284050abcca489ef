import time

import pytest
import torch
from safetensors.torch import save_file

from dlprobe.backbones import load_backbone
from dlprobe.backbones.base import default_window_px
from dlprobe.errors import BackboneError, RegistryError
from dlprobe.spec import sha256_of_file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small", "backbone 'vit_small' has no source; write one of 'timm:vit_small'"),
        ("dinov2_s", "or the short name dinov2-s"),
        ("timm:", "has no source; write one of 'timm:timm'"),
        (":x", "has no source; write one of 'timm:x'"),
    ],
)
def test_a_name_without_source_is_refused_with_what_to_write(name, words):
    with pytest.raises(BackboneError, match=words):
        load_backbone(name)


def test_an_unknown_source_suggests_its_neighbours():
    with pytest.raises(RegistryError, match="no backbone source 'tim'; did you mean timm"):
        load_backbone("tim:vit_small_patch14_dinov2")


def test_a_short_name_and_a_name_without_tag_are_the_full_name():
    names = ("dinov2-s", "timm:vit_small_patch14_dinov2", "timm:vit_small_patch14_dinov2.lvd142m")
    specs = [load_backbone(name, weights="random:0", device="cpu", window_px=28).spec for name in names]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].backbone == names[2]


@pytest.mark.parametrize(
    ("patch_px", "window_px"), [(14, 504), (16, 512), (8, 504), (32, 512), (10, 500), (1009, 1009)]
)
def test_the_default_window_is_the_multiple_nearest_to_504(patch_px, window_px):
    assert default_window_px(patch_px) == window_px


def test_default_windows_of_both_patch_sizes():
    assert load_backbone("timm:vit_nano_patch14_dinov2", weights="random:0", device="cpu").spec.window_px == 504
    assert load_backbone("timm:vit_nano_patch16_dinov3", weights="random:0", device="cpu").spec.window_px == 512


@pytest.mark.parametrize("weights", ["random", "random:", "random:-1", "random:x", "random:1.5"])
def test_random_weights_need_a_seed(weights):
    with pytest.raises(BackboneError, match="write random:SEED, such as random:0"):
        load_backbone("dinov2-s", weights=weights)


def test_pretrained_weights_that_are_not_here_name_the_three_ways_out(no_hub):
    start = time.perf_counter()
    with pytest.raises(BackboneError) as caught:
        load_backbone("dinov2-b-reg", device="cpu")
    assert time.perf_counter() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    for way in ("--weights FILE", "HF_HOME", "random:SEED", "timm/vit_base_patch14_reg4_dinov2.lvd142m"):
        assert way in message


def test_pretrained_weights_in_the_hubs_cache_need_no_network(no_hub, put_into_hub, tmp_path, windows):
    donor = load_backbone("timm:test_vit", weights="random:0", device="cpu", window_px=160)
    head = {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    (tmp_path / "files").mkdir()
    save_file({**donor.network.state_dict(), **head}, tmp_path / "files" / "model.safetensors")
    path = put_into_hub(no_hub / "hub", "timm/test_vit.r160_in1k", tmp_path / "files") / "model.safetensors"
    backbone = load_backbone("timm:test_vit", device="cpu", window_px=160)
    assert torch.equal(backbone(windows(1, 160)), donor(windows(1, 160)))
    assert backbone.weights_sha256 == sha256_of_file(path)
    assert backbone.weights == backbone.card.weights == "pretrained"
    assert backbone.card.licence == "apache-2.0"
    assert set(backbone.dropped) == set(head)


def test_b_free_without_its_file_says_where_it_is_from_and_where_to_put_it(no_hub):
    with pytest.raises(BackboneError, match=r"on no hub \(file: BFREE_dino2reg4.*--weights.*local/bfree"):
        load_backbone("bfree", device="cpu")
