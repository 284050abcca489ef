"""Low-rank updates sit on queries and values and on nothing else, and go into the weights without a trace."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file

from dlprobe.backbones import load_backbone
from dlprobe.backbones.weights.dinolizer import ALPHA, merge_updates
from dlprobe.backbones.weights.perturbed import perturb
from dlprobe.errors import BackboneError, ExtraError
from dlprobe.finetune.adapting import adapt, merge, network_of, parameter_groups, write_weights

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
NAMES = ["timm:test_vit", "timm:vit_small_patch16_dinov3", "timm:vit_small_patch16_dinov3_qkvb", "hf"]


@pytest.fixture(params=NAMES)
def kind(request, tmp_path):
    if request.param != "hf":
        return request.param
    config = transformers.Dinov2WithRegistersConfig(**SIZES, image_size=64, patch_size=16, num_register_tokens=2)
    network = transformers.AutoModel.from_config(config)
    perturb(network, 5)
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    config.to_json_file(folder / "config.json")
    return f"file:{tmp_path / 'hf'}"


@pytest.fixture
def backbone(kind, vit):
    return vit(kind, weights="pretrained" if kind.startswith("file:") else "random:5")


@pytest.fixture
def windows():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def disturb(parameters, scale=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in parameters.values():
            value.copy_(torch.randn(value.shape, generator=generator) * scale)


def thirds(tensors):
    """Return queries, keys and values of each block, whatever form they are kept in."""
    found = {}
    for name, value in tensors.items():
        if name.endswith("attn.qkv.weight"):
            found |= {f"{name}.{part}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            found[f"{name}.{name.split('.')[-2][0]}"] = value
    return found


def test_updates_begin_at_nothing_and_merge_into_what_they_computed(backbone, brief, windows):
    plain = backbone(windows)
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    moving = adapt(backbone, "lora", brief())
    assert_allclose(backbone(windows), plain, atol=1e-5)
    assert all("lora_" in name for name in moving)
    disturb(moving)
    adapted = backbone(windows)
    assert (adapted - plain).abs().max() > 1e-2
    merge(backbone.network)
    after = backbone.network.state_dict()
    assert after.keys() == before.keys()
    assert [type(module).__name__ for module in backbone.network.modules() if "lora" in str(type(module)).lower()] == []
    assert_allclose(backbone(windows), adapted, atol=1e-4)
    old, new = thirds(before), thirds(after)
    assert len(old) == 3 * len({name.rpartition(".")[0] for name in old if name.endswith(".k")})
    for name in old:
        rank = torch.linalg.matrix_rank((new[name] - old[name]).double(), atol=1e-4)
        assert rank == (0 if name.endswith(".k") else 2), name
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert {name.split(".")[-2] for name in before.keys() - set(same)} <= {"qkv", "q_proj", "v_proj"}


def test_a_merged_file_is_read_as_weights(backbone, brief, windows, tmp_path):
    disturb(adapt(backbone, "lora", brief()))
    adapted = backbone(windows)
    merge(backbone.network)
    path = write_weights(backbone, tmp_path, "merged")
    again = load_backbone(backbone.spec.backbone, weights=path, window_px=64, device="cpu")
    assert_allclose(again(windows), adapted, atol=1e-4)
    assert again.spec.fingerprint != backbone.spec.fingerprint
    assert set(again.dropped) <= {"embeddings.mask_token"}


def test_merging_is_what_reading_dinolizers_checkpoint_does(vit, brief):
    backbone = vit()
    published = {f"net.lora_vit.{name}": value.clone() for name, value in backbone.network.state_dict().items()}
    rank = 16
    moving = adapt(backbone, "lora", brief(rank=rank, alpha=float(ALPHA)))
    disturb(moving, 0.05)
    for name in [name for name in published if name.endswith("attn.qkv.weight")]:
        prefix = name.removesuffix(".weight")
        published |= {f"{prefix}.qkv.{end}": published.pop(f"{prefix}.{end}") for end in ("weight", "bias")}
        ours = prefix.removeprefix("net.lora_vit.")
        for part in "qv":
            for letter in "ab":
                tensor = moving[f"{ours}.{part}.lora_{letter.upper()}.default.weight"].detach()
                published[f"{prefix}.linear_{letter}_{part}.weight"] = tensor.clone()
    merge(backbone.network)
    found = merge_updates(published, "made here")
    ours = backbone.network.state_dict()
    assert found.keys() == ours.keys()
    for name, value in ours.items():
        assert_allclose(found[name], value, atol=1e-6)


def test_all_of_a_network_may_move(vit, brief):
    backbone = vit()
    moving = adapt(backbone, "full", brief())
    assert set(moving) == {name for name, _ in backbone.network.named_parameters()}
    assert adapt(vit(), "head", brief()) == {}


def test_rates_fall_towards_the_input_and_vectors_do_not_decay(vit, brief):
    backbone = vit()
    moving = adapt(backbone, "full", brief())
    names = {id(value): name for name, value in moving.items()}
    found = {
        names[id(value)]: (group["peak"], group["weight_decay"])
        for group in parameter_groups(moving, 1e-3, 0.05, 0.5)
        for value in group["params"]
    }
    assert set(found) == set(moving)
    assert found["blocks.5.attn.qkv.weight"] == (1e-3, 0.05)
    assert found["blocks.4.attn.qkv.bias"] == (5e-4, 0.0)
    assert found["blocks.0.mlp.fc1.weight"] == (1e-3 * 0.5**5, 0.05)
    assert found["patch_embed.proj.weight"] == (1e-3 * 0.5**6, 0.05)
    assert found["pos_embed"] == (1e-3 * 0.5**6, 0.0)
    assert found["norm.weight"] == (1e-3, 0.0)


def test_what_cannot_be_trained_says_so(brief, vit):
    backbone = load_backbone("residual:srm", window_px=112)
    for mode in ("lora", "full"):
        with pytest.raises(BackboneError, match=r"residual:srm .* no torch network .* say --mode head"):
            adapt(backbone, mode, brief())
    with pytest.raises(BackboneError):
        network_of(backbone)
    strange = vit()
    strange.network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(BackboneError, match=r"no maps to queries and values .* --mode full"):
        adapt(strange, "lora", brief())


def test_the_extra_is_named_where_it_is_missing(brief, vit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ExtraError, match=r"dlprobe\[finetune\]"):
        adapt(vit(), "lora", brief())
