"""Weight files that are right, wrong in every way, or not files at all."""

import argparse
import pickle
from collections import OrderedDict

import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file

from dlprobe.backbones import load_backbone
from dlprobe.errors import BackboneError
from dlprobe.spec import sha256_of_file

NANO = "timm:vit_nano_patch14_reg4_dinov2"


def load(weights, **options):
    return load_backbone(NANO, **{"weights": weights, "device": "cpu", "window_px": 70, **options})


@pytest.fixture(scope="module")
def donor():
    return load("random:5")


@pytest.fixture
def tensors(donor):
    return {name: value.clone() for name, value in donor.network.state_dict().items()}


WRAPPINGS = {
    "bare": lambda t: t,
    "state_dict": lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda t: {"model": OrderedDict(t)},
    "model in state_dict": lambda t: {"state_dict": {"model": t}},
    "module": lambda t: {f"module.{name}": value for name, value in t.items()},
    "compiled in lightning": lambda t: {"state_dict": {f"net._orig_mod.{n}": v for n, v in t.items()}},
    "with arguments": lambda t: {"model": t, "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_however_it_is_wrapped(wrapping, zipped, tensors, donor, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(WRAPPINGS[wrapping](tensors), path, _use_new_zipfile_serialization=zipped)
    backbone = load(path)
    window = torch.arange(70 * 70 * 3).reshape(1, 70, 70, 3).to(torch.uint8)
    assert torch.equal(backbone(window), donor(window))
    assert backbone.weights_sha256 == sha256_of_file(path)
    assert backbone.weights == str(path)
    assert backbone.dropped == ()


def test_safetensors_and_half_precision_load(tensors, donor, windows, tmp_path):
    save_file({name: value.half() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    batch = windows(1, 70)
    assert_allclose(load(tmp_path / "model.safetensors")(batch).numpy(), donor(batch).numpy(), atol=2e-2)
    assert torch.equal(load(tmp_path)(batch), load(tmp_path / "model.safetensors")(batch))


def test_what_is_on_the_list_is_dropped_and_told(tensors, tmp_path):
    extra = {"head.weight": torch.zeros(1, 48), "head.bias": torch.zeros(1), "pos_weight": torch.ones(1)}
    torch.save({**tensors, **extra}, tmp_path / "model.pth")
    assert set(load(tmp_path / "model.pth").dropped) == set(extra)


def renamed(t):
    t["blocks.2.attn.qkw.weight"] = t.pop("blocks.2.attn.qkv.weight")


def removed(t):
    del t["norm.bias"]


def reshaped(t):
    t["blocks.0.mlp.fc1.weight"] = t["blocks.0.mlp.fc1.weight"][:, :40]


def added(t):
    t["adapter.weight"] = torch.zeros(3)


def positions_of_no_square(t):
    t["pos_embed"] = t["pos_embed"][:, :24]


def patches_of_another_size(t):
    t["patch_embed.proj.weight"] = torch.zeros(48, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, r"missing blocks\.2\.attn\.qkv\.weight; unexpected blocks\.2\.attn\.qkw\.weight"),
        (removed, r"missing norm\.bias; give"),
        (reshaped, r"wrong shape blocks\.0\.mlp\.fc1\.weight \(192, 40\) for \(192, 48\)"),
        (added, r"unexpected adapter\.weight"),
        (positions_of_no_square, r"wrong shape pos_embed \(1, 24, 48\) for \(1, 25, 48\)"),
        (patches_of_another_size, r"wrong shape patch_embed\.proj\.weight \(48, 3, 16, 16\) for \(48, 3, 14, 14\)"),
    ],
)
def test_every_tensor_is_accounted_for(change, words, tensors, tmp_path):
    change(tensors)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(BackboneError, match=words) as caught:
        load(tmp_path / "model.pth")
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('this must not run')",))


def code(path, tensors):
    """Save code that raises if it runs."""
    torch.save({"model": tensors, "surprise": Evil()}, path)


def code_in_a_plain_pickle(path, tensors):
    path.write_bytes(pickle.dumps(Evil()))


def page(path, tensors):
    path.write_bytes(b"\n<!DOCTYPE html><html><body>Sign in</body></html>" * 50)


def truncated(path, tensors):
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-5000])


def truncated_before_zip(path, tensors):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])


def truncated_safetensors(path, tensors):
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-5000])


def nothing(path, tensors):
    path.touch()


def text(path, tensors):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


def numbers(path, tensors):
    torch.save({"epoch": 3}, path)


def one_tensor(path, tensors):
    torch.save(tensors["norm.bias"], path)


def not_only_tensors(path, tensors):
    torch.save({**tensors, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (code, "model.pth", "holds more than tensors: it would run .*exec, which dlprobe refuses"),
        (code_in_a_plain_pickle, "model.pth", "holds more than tensors, which dlprobe refuses; save its state dict"),
        (page, "model.pth", "is a web page, not weights"),
        (page, "model.safetensors", "is a web page, not weights"),
        (truncated, "model.pth", "cut short or something else"),
        (truncated_before_zip, "model.pth", "cut short or something else"),
        (truncated_safetensors, "model.safetensors", "is no safetensors file .*cut short"),
        (nothing, "model.pth", "is empty; download it again"),
        (text, "model.pth", "model.pth is no weight file of torch"),
        (text, "model.safetensors", "is no safetensors file"),
        (numbers, "model.pth", r"holds no tensors by name \(keys epoch\)"),
        (one_tensor, "model.pth", "holds no tensors by name"),
        (not_only_tensors, "model.pth", r"entries that are no tensors \(epoch\)"),
    ],
)
def test_what_is_no_weight_file_is_told_in_one_line(make, name, words, tensors, tmp_path):
    make(tmp_path / name, tensors)
    with pytest.raises(BackboneError, match=words) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_an_empty_folder_is_told_before_anything_is_built(tmp_path):
    with pytest.raises(BackboneError, match=r"no weight file .*gone\.pth; give an existing file"):
        load_backbone("dinov2-g", weights=tmp_path / "gone.pth", device="cpu")
    with pytest.raises(BackboneError, match=r"holds no weights; expected one of model\.safetensors"):
        load_backbone("dinov2-g", weights=tmp_path, device="cpu")


def test_positions_are_resampled_once_by_timms_own_function(tensors, tmp_path):
    from timm.layers import resample_abs_pos_embed

    torch.save(tensors, tmp_path / "model.pth")
    backbone = load(tmp_path / "model.pth", window_px=98)
    expected = resample_abs_pos_embed(tensors["pos_embed"], new_size=[7, 7], num_prefix_tokens=0)
    assert torch.equal(backbone.network.pos_embed, expected)
    assert backbone.interpolated == "position embedding from 5x5 to 7x7 (timm: bicubic, antialiased)"
    assert "interpolated" in backbone.card.notes


def test_positions_with_cls_keep_that_of_cls(tmp_path):
    from timm.layers import resample_abs_pos_embed

    name = "timm:vit_nano_patch14_dinov2"
    tensors = load_backbone(name, weights="random:0", device="cpu", window_px=70).network.state_dict()
    torch.save(tensors, tmp_path / "model.pth")
    backbone = load_backbone(name, weights=tmp_path / "model.pth", device="cpu", window_px=98)
    expected = resample_abs_pos_embed(tensors["pos_embed"], new_size=[7, 7], num_prefix_tokens=1)
    assert torch.equal(backbone.network.pos_embed, expected)
    assert torch.equal(expected[:, 0], tensors["pos_embed"][:, 0])


def test_the_licence_of_a_file_is_not_made_up(tensors, tmp_path):
    torch.save(tensors, tmp_path / "model.pth")
    card = load(tmp_path / "model.pth").card
    assert card.licence == "unknown: that of the file"
    assert card.trained_on == "unknown: that of the file model.pth"
