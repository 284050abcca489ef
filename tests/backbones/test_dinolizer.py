"""B-Free's and DinoLizer's files, made by transcriptions of their published wrappers around a small network."""

from collections import OrderedDict
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from PIL import Image
from typer.testing import CliRunner

from dlprobe.backbones import load_backbone, read_dinolizer_head
from dlprobe.backbones.catalogue import CATALOGUE
from dlprobe.backbones.weights.perturbed import build_quietly, perturb
from dlprobe.errors import BackboneError
from dlprobe.localization import load_probe

NAME = "vit_nano_patch14_reg4_dinov2"
WIDTH, WINDOW_PX = 48, 504
RANK, ALPHA = 16, 64


class LowRankQkv(torch.nn.Module):
    """`_LoRA_qkv_timm` of JamesQFreeman/LoRA-ViT."""

    def __init__(self, qkv, rank):
        super().__init__()
        self.qkv = qkv
        self.linear_a_q = torch.nn.Linear(WIDTH, rank, bias=False)
        self.linear_b_q = torch.nn.Linear(rank, WIDTH, bias=False)
        self.linear_a_v = torch.nn.Linear(WIDTH, rank, bias=False)
        self.linear_b_v = torch.nn.Linear(rank, WIDTH, bias=False)
        self.scale = ALPHA // rank

    def forward(self, x):
        qkv = self.qkv(x)
        qkv[:, :, :WIDTH] += self.scale * self.linear_b_q(self.linear_a_q(x))
        qkv[:, :, -WIDTH:] += self.scale * self.linear_b_v(self.linear_a_v(x))
        return qkv


class LowRankVit(torch.nn.Module):
    """`LoRA_ViT_timm`, with the layer that it has and never uses."""

    def __init__(self, vit, rank):
        super().__init__()
        for block in vit.blocks:
            block.attn.qkv = LowRankQkv(block.attn.qkv, rank)
        self.lora_vit = vit
        self.proj_3d = torch.nn.Linear(2, 1)


class FiveCrops(torch.nn.Module):
    """`Wrapper5crops` of B-Free: the patch embedding stands beside the rest."""

    def __init__(self, vit):
        super().__init__()
        self.model = vit
        self.patch_embed = vit.patch_embed
        vit.patch_embed = torch.nn.Identity()

    def tokens(self, pixels):
        vit = getattr(self.model, "lora_vit", self.model)
        return vit.forward_features(self.patch_embed(pixels))


def make_vit(num_classes=1):
    vit = build_quietly(lambda: timm.create_model(NAME, num_classes=num_classes), 2)
    vit.set_input_size(img_size=(WINDOW_PX, WINDOW_PX))
    perturb(vit, 2)
    return vit.eval()


@pytest.fixture(scope="module")
def pixels():
    windows = np.random.default_rng(0).integers(0, 256, (1, WINDOW_PX, WINDOW_PX, 3), dtype=np.uint8)
    scaled = torch.from_numpy(windows).double() / 255
    scaled = (scaled - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))
    return windows, scaled.permute(0, 3, 1, 2).float()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Let the short names stand for a small network, and look for its weights nowhere else."""
    monkeypatch.setenv("DLPROBE_WEIGHTS", str(tmp_path))
    for alias in ("bfree", "dinolizer"):
        monkeypatch.setitem(CATALOGUE, alias, replace(CATALOGUE[alias], name=f"timm:{NAME}"))


@pytest.fixture
def bfree(tmp_path, pixels):
    wrapper = FiveCrops(make_vit())
    with torch.no_grad():
        tokens = wrapper.tokens(pixels[1])
    flat = OrderedDict((name.removeprefix("model."), value) for name, value in wrapper.state_dict().items())
    folder = tmp_path / "BFREE_dino2reg4"
    folder.mkdir()
    torch.save({"model": flat}, folder / "model_epoch_best.pth")
    lines = [f"arch: timm_c5i504_{NAME}", "model_name: BFREE_dino2reg4", "norm_type: resnet", "patch_size: null"]
    (folder / "config.yaml").write_text("\n".join([*lines, "weights_file: model_epoch_best.pth"]) + "\n")
    return folder, tokens[:, 5:].reshape(1, 36, 36, WIDTH)


@pytest.mark.parametrize("form", ["folder", "file", "source", "local"])
def test_b_free_loads_as_it_is_published(form, bfree, small, pixels, tmp_path):
    folder, expected = bfree
    if form == "local":
        folder = folder.rename(tmp_path / "bfree")
    backbone = {
        "folder": lambda: load_backbone("bfree", weights=folder, device="cpu"),
        "file": lambda: load_backbone("bfree", weights=folder / "model_epoch_best.pth", device="cpu"),
        "source": lambda: load_backbone(f"file:{folder}", device="cpu"),
        "local": lambda: load_backbone("bfree", device="cpu"),
    }[form]()
    assert_allclose(backbone(pixels[0]).numpy(), expected.numpy(), atol=2e-5)
    assert set(backbone.dropped) == {"head.weight", "head.bias"}
    assert backbone.interpolated == ""
    assert backbone.weights == str(folder / "model_epoch_best.pth")
    if form != "source":
        assert "COCO train2017" in backbone.card.trained_on
        assert backbone.card.licence.startswith("GRIP-UNINA")


def make_checkpoint(path, rank=RANK, change=None):
    """Write a Lightning checkpoint as DinoLizer's; return the network and its head."""
    torch.manual_seed(4)
    wrapper = FiveCrops(make_vit(num_classes=0))
    wrapper.model = LowRankVit(wrapper.model, rank)
    wrapper.cls_head = torch.nn.Linear(WIDTH, 3)
    state = {f"net.{name}": value for name, value in wrapper.state_dict().items()}
    state["criterion.pos_weight"] = torch.ones(3)
    if change:
        change(state)
    lightning = {"epoch": 36, "global_step": 10, "pytorch-lightning_version": "2.5.0", "loops": {}, "callbacks": {}}
    torch.save({**lightning, "state_dict": state, "optimizer_states": [{"state": {}}]}, path)
    return wrapper.eval()


@pytest.mark.parametrize("rank", [64, 16])
def test_dinolizers_updates_are_merged_and_its_head_is_read(rank, small, pixels, tmp_path):
    path = tmp_path / "epoch=36_val_loss=0.2130.ckpt"
    wrapper = make_checkpoint(path, rank)
    with torch.no_grad():
        tokens = wrapper.tokens(pixels[1])[:, 5:]
        expected = wrapper.cls_head(tokens)
    backbone, head = load_backbone("dinolizer", weights=path, device="cpu"), read_dinolizer_head(path)
    embeddings = backbone(pixels[0]).flatten(1, 2).numpy()
    assert_allclose(embeddings, tokens.numpy(), atol=2e-5)
    assert_allclose(embeddings @ head.weights.T + head.bias, expected.numpy(), atol=5e-5)
    assert head.classes == ("pristine", "autoencoded", "inpainted")
    names = {"cls_head.weight", "cls_head.bias", "criterion.pos_weight", "proj_3d.weight", "proj_3d.bias"}
    assert set(backbone.dropped) == names
    assert "COCO train2017" in backbone.card.trained_on


def exchange(a, b):
    def change(state):
        for name in [name for name in state if a in name]:
            other = name.replace(a, b)
            state[name], state[other] = state[other], state[name]

    return change


def zero(part):
    def change(state):
        for name in state:
            if part in name:
                state[name] = torch.zeros_like(state[name])

    return change


@pytest.mark.parametrize(
    "change", [exchange("_q.", "_v."), exchange(".blocks.1.", ".blocks.2."), zero("linear_b_q"), zero("linear_b_v")]
)
def test_a_wrong_merge_would_be_noticed(change, small, pixels, tmp_path):
    wrapper = make_checkpoint(tmp_path / "model.ckpt", change=change)
    with torch.no_grad():
        tokens = wrapper.tokens(pixels[1])[:, 5:]
    wrong = load_backbone("dinolizer", weights=tmp_path / "model.ckpt", device="cpu")(pixels[0]).flatten(1, 2)
    assert float((wrong - tokens).abs().max()) > 5e-3


def without(part):
    def change(state):
        del state[next(name for name in state if part in name)]

    return change


def with_more(state):
    state["net.adapter.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_more, r"unexpected adapter\.weight"),
        (without("linear_a_q"), r"incomplete low-rank update in blocks\.0;"),
        (without("blocks.1.norm1.bias"), r"missing blocks\.1\.norm1\.bias"),
        (lambda state: state.update({"patch_embed.proj.bias": torch.ones(WIDTH)}), "two different tensors patch_embed"),
    ],
)
def test_what_does_not_belong_into_the_checkpoint_is_told(change, words, small, tmp_path):
    make_checkpoint(tmp_path / "model.ckpt", change=change)
    with pytest.raises(BackboneError, match=words):
        load_backbone("dinolizer", weights=tmp_path / "model.ckpt", device="cpu")


def test_an_unknown_scale_is_refused(small, tmp_path):
    make_checkpoint(tmp_path / "model.ckpt", rank=48)
    with pytest.raises(BackboneError, match="updates of rank 48; the scale is known for alpha = 64 only"):
        load_backbone("dinolizer", weights=tmp_path / "model.ckpt", device="cpu")


def a_second_layer(state):
    state["net.cls_head.0.weight"] = torch.zeros(WIDTH, WIDTH)


def two_logits(state):
    state["net.cls_head.weight"], state["net.cls_head.bias"] = torch.zeros(2, WIDTH), torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("cls_head.weight"), "has no linear head cls_head"),
        (a_second_layer, "has no linear head cls_head"),
        (two_logits, "has 2 logits; DinoLizer's has 3"),
    ],
)
def test_a_head_that_is_not_dinolizers_is_refused(change, words, tmp_path):
    make_checkpoint(tmp_path / "model.ckpt", change=change)
    with pytest.raises(BackboneError, match=words):
        read_dinolizer_head(tmp_path / "model.ckpt")


def test_the_checkpoint_localizes_as_it_is(small, pixels, tmp_path):
    (script,) = entry_points(group="console_scripts", name="dlprobe")
    path, image = tmp_path / "epoch=36_val_loss=0.2130.ckpt", tmp_path / "photo.png"
    wrapper = make_checkpoint(path)
    Image.fromarray(pixels[0][0]).save(image)
    with torch.no_grad():
        expected = wrapper.cls_head(wrapper.tokens(pixels[1])[:, 5:]).softmax(dim=-1)[0, :, 2].reshape(36, 36)
    probe, backbone = load_probe(path, device="cpu")
    assert probe.require_model(backbone.spec)
    logits = torch.from_numpy(probe.logits(backbone(pixels[0]).numpy()))
    assert_allclose(logits.softmax(dim=-1)[0, ..., 2], expected, atol=1e-5)
    done = CliRunner().invoke(
        script.load(), ["localize", str(path), str(image), "-o", str(tmp_path / "out"), "--device", "cpu", "--json"]
    )
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert list((tmp_path / "out").rglob("*.json"))
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:1000])
    wrong = CliRunner().invoke(
        script.load(), ["localize", str(tmp_path / "cut.ckpt"), str(image), "-o", str(tmp_path / "no")]
    )
    assert wrong.exit_code == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
