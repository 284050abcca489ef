"""`hf:` against transformers itself, and against the same tensors in timm."""

import json
import sys

import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file

from dlprobe.backbones import Backbone, load_backbone
from dlprobe.backbones.sources.hf_configurations import known_models
from dlprobe.backbones.weights.perturbed import build_quietly, perturb
from dlprobe.errors import BackboneError, ExtraError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
DINOV2 = {**SIZES, "image_size": 70, "patch_size": 14}
DINOV3 = {**SIZES, "intermediate_size": 192, "num_register_tokens": 4}
CONFIGS = {
    "dinov2": transformers.Dinov2Config(**DINOV2),
    "dinov2_reg": transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4),
    "dinov2_giant": transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4, use_swiglu_ffn=True),
    "dinov3": transformers.DINOv3ViTConfig(**DINOV3),
    "dinov3_plus": transformers.DINOv3ViTConfig(**DINOV3, use_gated_mlp=True, hidden_act="silu"),
}
TIMM = {
    "dinov2": "timm:vit_nano_patch14_dinov2",
    "dinov2_reg": "timm:vit_nano_patch14_reg4_dinov2",
    "dinov2_giant": "timm:vit_nano_patch14_reg4_swiglu_dinov2",
    "dinov3": "timm:vit_nano_patch16_dinov3_qkvb",
    "dinov3_plus": "timm:vit_nano_plus_patch16_dinov3_qkvb",
}
PARITY = 1e-5


def native_px(kind):
    return 80 if "dinov3" in kind else 70


@pytest.fixture
def folder(tmp_path):
    """Return a function that saves a perturbed network as transformers does."""

    def make(kind, seed=0):
        network = build_quietly(lambda: transformers.AutoModel.from_config(CONFIGS[kind])).eval()
        perturb(network, seed)
        network.save_pretrained(tmp_path / kind)
        return tmp_path / kind, network

    return make


def pixels(windows):
    scaled = torch.from_numpy(windows).double() / 255
    result = (scaled - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))
    return result.permute(0, 3, 1, 2).float()


def load(path, **options):
    return load_backbone(f"file:{path}", **{"device": "cpu", "window_px": native_px(path.name), **options})


@pytest.mark.parametrize("kind", CONFIGS)
def test_embeddings_are_those_of_transformers(kind, folder, windows):
    path, network = folder(kind)
    backbone, batch = load(path), windows(2, native_px(kind))
    with torch.no_grad():
        tokens = network(pixel_values=pixels(batch)).last_hidden_state
    prefix = 1 + getattr(network.config, "num_register_tokens", 0)
    assert isinstance(backbone, Backbone)
    assert backbone.spec.implementation == "transformers"
    assert_allclose(backbone(batch).flatten(1, 2).numpy(), tokens[:, prefix:].numpy(), atol=PARITY)
    assert_allclose(backbone.class_tokens(batch).numpy(), tokens[:, 0].numpy(), atol=PARITY)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_same_tensors_give_the_same_embeddings_in_timm(kind, folder, windows):
    path, _ = folder(kind)
    batch = windows(2, native_px(kind))
    mine = load(path)
    timms = load_backbone(TIMM[kind], weights=path, device="cpu", window_px=native_px(kind))
    assert_allclose(mine(batch).numpy(), timms(batch).numpy(), atol=PARITY)
    assert mine.weights_sha256 == timms.weights_sha256
    assert mine.spec.fingerprint != timms.spec.fingerprint


@pytest.mark.parametrize("kind", CONFIGS)
def test_tensors_under_timms_names_load_into_transformers(kind, folder, windows, tmp_path):
    path, _ = folder(kind)
    timms = load_backbone(TIMM[kind], weights="random:3", device="cpu", window_px=native_px(kind))
    save_file({k: v.contiguous() for k, v in timms.network.state_dict().items()}, path / "model.safetensors")
    batch = windows(2, native_px(kind))
    assert_allclose(load(path)(batch).numpy(), timms(batch).numpy(), atol=PARITY)


def swap_blocks(network, blocks):
    blocks[1], blocks[2] = blocks[2], blocks[1]


def leave_out_norm(network, blocks):
    blocks[1].norm1 = torch.nn.Identity()


def exchange_queries_and_values(network, blocks):
    attention = blocks[1].attention
    attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj


@pytest.mark.parametrize("mutation", [swap_blocks, leave_out_norm, exchange_queries_and_values])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_put_together_wrongly_would_be_noticed(kind, mutation, folder, windows):
    path, _ = folder(kind)
    batch = windows(1, native_px(kind))
    backbone = load(path)
    before = backbone(batch)
    encoder = backbone.network.model if "dinov3" in kind else backbone.network.encoder
    mutation(backbone.network, encoder.layer)
    assert float((backbone(batch) - before).abs().max()) > 100 * PARITY


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_layers_and_norm_mean_what_they_mean_in_timm(kind, folder, windows):
    path, _ = folder(kind)
    batch = windows(1, native_px(kind))
    for options in ({"layers": (0, -1)}, {"layers": (-1,), "norm": False}, {"layers": (1, 2), "norm": False}):
        timms = load_backbone(TIMM[kind], weights=path, device="cpu", window_px=native_px(kind), **options)
        mine = load(path, **options)
        assert mine.spec.layers == timms.spec.layers
        assert_allclose(mine(batch).numpy(), timms(batch).numpy(), atol=PARITY)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (4, 2)])
def test_a_bright_patch_changes_the_token_at_its_row_and_column_most(kind, place, folder):
    path, _ = folder(kind)
    backbone = load(path)
    side, patch = backbone.spec.window_px, backbone.patch_px
    dark = torch.full((1, side, side, 3), 40, dtype=torch.uint8)
    bright = dark.clone()
    row, col = place
    bright[:, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] = 255
    change = (backbone(bright) - backbone(dark)).norm(dim=-1)[0]
    assert divmod(int(change.argmax()), 5) == place


@pytest.mark.parametrize(
    ("kind", "largest", "words"),
    [
        ("dinov2", (1e-4, 0.5), "transformers: bicubic)"),
        ("dinov2_reg", (0, PARITY), "transformers: bicubic, antialiased)"),
        ("dinov3", (0, PARITY), ""),
    ],
)
def test_away_from_the_native_grid_the_implementations_differ_as_documented(kind, largest, words, folder, windows):
    path, _ = folder(kind)
    window_px = native_px(kind) * 4 // 5
    batch = windows(2, window_px)
    mine = load(path, window_px=window_px)
    timms = load_backbone(TIMM[kind], weights=path, device="cpu", window_px=window_px)
    difference = float((mine(batch) - timms(batch)).abs().max())
    assert largest[0] <= difference <= largest[1]
    assert words in mine.interpolated
    assert bool(mine.interpolated) == bool(timms.interpolated) == bool(words)


def test_a_folder_is_told_apart_by_its_configuration_and_not_by_its_path(folder, tmp_path):
    path, _ = folder("dinov3")
    spec = load(path).spec
    moved = path.rename(tmp_path / "moved")
    assert load(moved, window_px=80).spec == spec
    assert str(tmp_path) not in str(spec)
    config = json.loads((moved / "config.json").read_text())
    config["rope_theta"] = 10000.0
    (moved / "config.json").write_text(json.dumps(config))
    other = load(moved, window_px=80)
    assert other.weights_sha256 == spec.weights_sha256
    assert other.spec.backbone != spec.backbone


def test_the_name_of_a_folder_loads_it_again_with_its_weights(folder, windows):
    path, _ = folder("dinov2")
    first = load(path)
    again = load_backbone(first.spec.backbone, weights=first.weights, device="cpu", window_px=70)
    assert again.spec == first.spec


def test_mean_and_std_come_from_the_folder(folder, windows):
    path, _ = folder("dinov2")
    before = load(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    after = load(path)
    assert after.spec.mean == after.spec.std == (0.5, 0.5, 0.5)
    assert after.spec.fingerprint != before.spec.fingerprint
    assert float((after(windows(1, 70)) - before(windows(1, 70))).abs().mean()) > 0.01


@pytest.mark.parametrize("name", known_models())
def test_metas_configurations_have_the_size_of_their_timm_form(name):
    import timm

    size = name.removeprefix("facebook/").replace("-with-registers", "")
    fields = dict(known_models()[name].fields)
    if "dinov2" in name:
        reg = "_reg4" if "registers" in name else ""
        model = f"vit_{size.removeprefix('dinov2-')}_patch14{reg}_dinov2.lvd142m"
    else:
        long = {"s": "small", "b": "base", "l": "large", "h": "huge", "7b": "7b"}[size.split("-")[1][3:].split("16")[0]]
        plus = "_plus" if "plus" in name else ""
        qkvb = "" if long == "7b" else "_qkvb"
        model = f"vit_{long}{plus}_patch16_dinov3{qkvb}.{size.rpartition('-')[2]}"
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        theirs = transformers.AutoModel.from_config(config)
        timms = timm.create_model(model, num_classes=0)
    unused = sum(p.numel() for n, p in theirs.named_parameters() if n.endswith("mask_token"))
    counted = sum(p.numel() for p in theirs.parameters()) - unused
    merged = config.hidden_size if "with-registers" in name else 0  # timm adds the position of CLS to CLS
    assert counted - merged == sum(p.numel() for p in timms.parameters())
    found = timm.models.get_pretrained_cfg(model)
    assert (found.license, found.mean, found.std) == (
        known_models()[name].licence,
        known_models()[name].mean,
        known_models()[name].std,
    )


def test_random_weights_are_reproducible(windows, monkeypatch):
    small = {**known_models()["facebook/dinov2-small"].fields, "num_hidden_layers": 1}
    model = known_models()["facebook/dinov2-small"]
    changed = type(model)(fields=small)
    monkeypatch.setattr("dlprobe.backbones.sources.hf_models.known_models", lambda: {"facebook/dinov2-small": changed})
    options = {"device": "cpu", "window_px": 28}
    first = load_backbone("hf:facebook/dinov2-small", weights="random:0", **options)
    torch.rand(5)
    second = load_backbone("hf:facebook/dinov2-small", weights="random:0", **options)
    other = load_backbone("hf:facebook/dinov2-small", weights="random:1", **options)
    assert first.spec == second.spec
    assert first.weights_sha256 != other.weights_sha256
    assert torch.equal(first(windows(1, 28)), second(windows(1, 28)))


def test_a_model_in_the_hubs_cache_needs_no_network(folder, windows, no_hub, put_into_hub):
    path, _ = folder("dinov2_reg")
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    put_into_hub(no_hub / "hub", "someone/nano", path)
    backbone = load_backbone("hf:someone/nano", device="cpu", window_px=70)
    assert backbone.spec.mean == (0.4, 0.4, 0.4)
    assert backbone.weights == "pretrained"
    assert backbone.card.licence == "unknown; see the model's page"
    assert torch.equal(backbone(windows(1, 70)), load(path)(windows(1, 70)))


def test_a_folder_called_pretrained_is_not_taken_for_the_word(no_hub, tmp_path, monkeypatch):
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match="cannot be fetched"):
        load_backbone("hf:facebook/dinov2-small", device="cpu")


def test_weights_that_are_not_here_name_the_three_ways_out(no_hub):
    with pytest.raises(BackboneError, match=r"hf:facebook/dinov2-base.*--weights FILE.*HF_HOME.*random:SEED"):
        load_backbone("hf:facebook/dinov2-base", device="cpu")


def test_an_unknown_model_suggests_its_neighbours(no_hub):
    with pytest.raises(BackboneError, match="did you mean hf:facebook/dinov2-base"):
        load_backbone("hf:facebook/dinov2-bse", device="cpu")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackboneError, match="a transformers model of kind 'bert'"):
        load_backbone(f"file:{tmp_path}", device="cpu")


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    path, _ = folder("dinov2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtraError, match=r"pip install 'dlprobe\[hf\]'"):
        load(path)
