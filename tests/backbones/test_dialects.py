"""Tensor names of every release, against networks that are not timm's: transformers', and transcriptions in float64."""

import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.testing import assert_allclose
from safetensors.torch import save_file

from dlprobe.backbones import load_backbone
from dlprobe.backbones.weights.perturbed import build_quietly, perturb
from dlprobe.errors import BackboneError

WIDTH, DEPTH, HEADS = 48, 4, 3
TIMM = {
    "dinov2": "timm:vit_nano_patch14_dinov2",
    "dinov2_reg": "timm:vit_nano_patch14_reg4_dinov2",
    "dinov2_giant": "timm:vit_nano_patch14_reg4_swiglu_dinov2",
    "dinov3": "timm:vit_nano_patch16_dinov3_qkvb",
    "dinov3_plus": "timm:vit_nano_plus_patch16_dinov3_qkvb",
}
GRID = 5
PARITY = 1e-5


def patch_px(kind):
    return 16 if "dinov3" in kind else 14


def seeded(shapes, seed=0):
    """Return tensors of these shapes, LayerScale 1, weights small, everything else about its usual value."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator) * 0.1
        centre = 1.0 if re.search(r"(norm\d?\.weight|gamma|lambda1)$", name) else 0.0
        tensors[name] = noise + centre
    return tensors


def original_shapes(kind):
    """Names and shapes of facebookresearch/dinov2 and dinov3, read in their vision_transformer.py and layers."""
    side, w = patch_px(kind), WIDTH
    v3, gated = "dinov3" in kind, kind in {"dinov2_giant", "dinov3_plus"}
    shapes = {"cls_token": (1, 1, w), "mask_token": (1, w)}
    if v3:
        shapes |= {"storage_tokens": (1, 4, w), "rope_embed.periods": (w // HEADS // 4,)}
    else:
        shapes |= {"pos_embed": (1, 1 + GRID**2, w)} | ({} if kind == "dinov2" else {"register_tokens": (1, 4, w)})
    shapes |= {"patch_embed.proj.weight": (w, 3, side, side), "patch_embed.proj.bias": (w,)}
    hidden = 4 * w if not gated or v3 else (int(4 * w * 2 / 3) + 7) // 8 * 8
    for i in range(DEPTH):
        block = {"norm1.weight": (w,), "norm1.bias": (w,), "attn.qkv.weight": (3 * w, w), "attn.qkv.bias": (3 * w,)}
        block |= {"attn.qkv.bias_mask": (3 * w,)} if v3 else {}
        block |= {"attn.proj.weight": (w, w), "attn.proj.bias": (w,), "ls1.gamma": (w,)}
        block |= {"norm2.weight": (w,), "norm2.bias": (w,), "ls2.gamma": (w,)}
        if gated and v3:
            pairs = [("w1", (hidden, w)), ("w2", (hidden, w)), ("w3", (w, hidden))]
        elif gated:
            pairs = [("w12", (2 * hidden, w)), ("w3", (w, hidden))]
        else:
            pairs = [("fc1", (hidden, w)), ("fc2", (w, hidden))]
        for name, shape in pairs:
            block |= {f"mlp.{name}.weight": shape, f"mlp.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (w,), "norm.bias": (w,)}


def original(kind, seed=0):
    tensors = seeded(original_shapes(kind), seed)
    if "dinov3" in kind:
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        for name in tensors:
            if name.endswith("bias_mask"):
                tensors[name] = mask.clone()
        quarter = WIDTH // HEADS // 4
        tensors["rope_embed.periods"] = 100.0 ** (2 * torch.arange(quarter) / (WIDTH // HEADS // 2))
    return tensors


def rope(tensors):
    """Return sine and cosine (patches, head width) as dinov3/layers/rope_position_encoding.py computes them."""
    centres = 2 * (torch.arange(GRID).double() + 0.5) / GRID - 1
    coordinates = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)
    angles = 2 * math.pi * coordinates[:, :, None] / tensors["rope_embed.periods"].double()
    angles = angles.flatten(1).tile(2)
    return angles.sin(), angles.cos()


def rotated(x, sin, cos):
    prefix, patches = x[..., :5, :], x[..., 5:, :]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([prefix, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=-2)


def attention(x, tensors, at, turn):
    bias = tensors[f"{at}.qkv.bias"] * tensors.get(f"{at}.qkv.bias_mask", 1.0)
    joined = F.linear(x, tensors[f"{at}.qkv.weight"], bias)
    q, k, v = joined.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    if turn is not None:
        q, k = rotated(q, *turn), rotated(k, *turn)
    shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return F.linear((shares @ v).transpose(1, 2).flatten(2), tensors[f"{at}.proj.weight"], tensors[f"{at}.proj.bias"])


def mlp(x, tensors, at):
    def linear(y, name):
        return F.linear(y, tensors[f"{at}.{name}.weight"], tensors[f"{at}.{name}.bias"])

    if f"{at}.w12.weight" in tensors:
        gate, value = linear(x, "w12").chunk(2, dim=-1)
        return linear(F.silu(gate) * value, "w3")
    if f"{at}.w1.weight" in tensors:
        return linear(F.silu(linear(x, "w1")) * linear(x, "w2"), "w3")
    return linear(F.gelu(linear(x, "fc1")), "fc2")


def original_forward(kind, tensors, pixels):
    """Patch tokens after the final norm, transcribed from the two repositories in float64, at the native grid."""
    t = {name: value.double() for name, value in tensors.items()}
    eps = 1e-5 if "dinov3" in kind else 1e-6

    def norm(y, name):
        return F.layer_norm(y, (WIDTH,), t[f"{name}.weight"], t[f"{name}.bias"], eps)

    x = F.conv2d(pixels.double(), t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=patch_px(kind))
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([t["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + t.get("pos_embed", torch.zeros(1))
    registers = t.get("register_tokens", t.get("storage_tokens", torch.zeros(1, 0, WIDTH)))
    x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    turn = rope(tensors) if "dinov3" in kind else None
    for i in range(DEPTH):
        x = x + t[f"blocks.{i}.ls1.gamma"] * attention(norm(x, f"blocks.{i}.norm1"), t, f"blocks.{i}.attn", turn)
        x = x + t[f"blocks.{i}.ls2.gamma"] * mlp(norm(x, f"blocks.{i}.norm2"), t, f"blocks.{i}.mlp")
    return norm(x, "norm")[:, 1 + registers.shape[1] :]


def swapped_blocks(tensors):
    def other(name):
        return re.sub(r"(layer|blocks)\.([12])\.", lambda m: f"{m[1]}.{3 - int(m[2])}.", name)

    return {other(name): value for name, value in tensors.items()}


def without_a_norm(tensors):
    """Make the second block's first norm do nothing but normalise."""
    result = dict(tensors)
    for name in tensors:
        if re.search(r"(layer|blocks)\.1\.norm1\.", name):
            result[name] = torch.ones(WIDTH) * (1.0 if name.endswith("weight") else 0.0)
    return result


def queries_for_values(tensors):
    result = dict(tensors)
    for name, value in tensors.items():
        if name.endswith("attn.qkv.weight"):
            q, k, v = value.chunk(3)
            result[name] = torch.cat([v, k, q])
        for ours, theirs in (("query", "value"), ("value", "query"), ("q_proj", "v_proj"), ("v_proj", "q_proj")):
            if name.endswith(f"{ours}.weight"):
                result[name] = tensors[name.replace(ours, theirs)]
    return result


MUTATIONS = [swapped_blocks, without_a_norm, queries_for_values]


def embed(kind, path, windows, **options):
    backbone = load_backbone(
        TIMM[kind], **{"weights": path, "device": "cpu", "window_px": GRID * patch_px(kind), **options}
    )
    return backbone, backbone(windows).flatten(1, 2)


def saved(tensors, path):
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def normalised(windows):
    scaled = torch.from_numpy(windows).double() / 255
    return ((scaled - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", TIMM)
def test_files_of_the_original_repositories_give_their_embeddings(kind, windows, tmp_path):
    batch = windows(2, GRID * patch_px(kind))
    tensors = original(kind)
    path = saved(tensors, tmp_path / "model.pth")
    backbone, mine = embed(kind, path, batch)
    expected = original_forward(kind, tensors, normalised(batch))
    assert_allclose(mine.numpy(), expected.numpy(), atol=PARITY)
    assert "mask_token" in backbone.dropped
    assert ("rope_embed.periods" in backbone.dropped) == ("dinov3" in kind)
    assert all(name in tensors for name in backbone.dropped)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", TIMM)
def test_a_wrong_map_of_the_original_names_would_be_noticed(kind, mutation, windows, tmp_path):
    batch = windows(1, GRID * patch_px(kind))
    tensors = original(kind)
    _, wrong = embed(kind, saved(mutation(tensors), tmp_path / "model.pth"), batch)
    expected = original_forward(kind, tensors, normalised(batch))
    assert float((wrong - expected).abs().max()) > 100 * PARITY


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_reg", "dinov2_giant", "dinov3", "dinov3_plus"])
def test_names_become_those_of_timms_own_filter(kind):
    from timm.models.eva import checkpoint_filter_fn as eva_filter
    from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter

    from dlprobe.backbones.weights.dialects import to_timm

    network = build_quietly(lambda: timm.create_model(TIMM[kind].removeprefix("timm:"), num_classes=0))
    tensors = original(kind)
    filtered = (eva_filter if "dinov3" in kind else vit_filter)(dict(tensors), network)
    mine = to_timm(tensors, network.state_dict().keys(), "file").tensors
    assert mine.keys() == filtered.keys() == network.state_dict().keys()
    for name, value in mine.items():
        assert torch.equal(value, filtered[name]), name


def test_biases_that_are_not_zero_need_the_form_that_holds_them(tmp_path):
    path = saved(original("dinov3"), tmp_path / "model.pth")
    with pytest.raises(BackboneError, match=r"attn\.qkv\.bias that this backbone cannot hold; choose .* _qkvb"):
        load_backbone("timm:vit_nano_patch16_dinov3", weights=path, device="cpu", window_px=80)


def test_biases_that_are_zero_are_dropped_and_told(windows, tmp_path):
    tensors = original("dinov3")
    for name in tensors:
        if name.endswith("qkv.bias"):
            tensors[name].zero_()
    path = saved(tensors, tmp_path / "model.pth")
    plain = load_backbone("timm:vit_nano_patch16_dinov3", weights=path, device="cpu", window_px=80)
    _, expected = embed("dinov3", path, windows(1, 80))
    assert_allclose(plain(windows(1, 80)).flatten(1, 2).numpy(), expected.numpy(), atol=1e-6)
    assert "blocks.0.attn.qkv.bias" in plain.dropped


def test_a_bias_of_keys_is_refused(tmp_path):
    tensors = original("dinov3")
    tensors = {name: value for name, value in tensors.items() if not name.endswith("bias_mask")}
    path = saved(tensors, tmp_path / "model.pth")
    with pytest.raises(BackboneError, match="its keys must have none"):
        embed("dinov3", path, None)


# ---- transformers ----


def transformers_network(kind, seed=0):
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    gated = kind in {"dinov2_giant", "dinov3_plus"}
    if "dinov3" in kind:
        config = transformers.DINOv3ViTConfig(
            **common,
            intermediate_size=4 * WIDTH,
            num_register_tokens=4,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
        )
        network = build_quietly(lambda: transformers.DINOv3ViTModel(config))
    else:
        common |= {"image_size": 14 * GRID, "patch_size": 14, "use_swiglu_ffn": gated}
        if kind == "dinov2":
            network = build_quietly(lambda: transformers.Dinov2Model(transformers.Dinov2Config(**common)))
        else:
            config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=4)
            network = build_quietly(lambda: transformers.Dinov2WithRegistersModel(config))
    perturb(network, seed)
    return network.eval()


def transformers_forward(network, batch):
    prefix = 1 + getattr(network.config, "num_register_tokens", 0)
    with torch.no_grad():
        return network(pixel_values=normalised(batch).float()).last_hidden_state[:, prefix:]


RELEASE_4 = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.gate_proj\.", ".mlp.weights_in."),
    (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
)


def release_4_names(tensors):
    """Return the names that the hub's files have: those of release 4."""
    if "embeddings.position_embeddings" not in tensors:
        return {name.removeprefix("model."): value for name, value in tensors.items()}
    older = {}
    for new, value in tensors.items():
        old = new
        for pattern, replacement in RELEASE_4:
            old = re.sub(pattern, replacement, old)
        if ".mlp.gate_proj." in new:
            older[old] = torch.cat([value, tensors[new.replace("gate_proj", "up_proj")]])
        elif ".mlp.up_proj." not in new:
            older[old] = value
    return older


@pytest.mark.parametrize("names", [dict, release_4_names])
@pytest.mark.parametrize("kind", TIMM)
def test_files_of_transformers_give_its_embeddings_in_timm(kind, names, windows, tmp_path):
    batch = windows(2, GRID * patch_px(kind))
    network = transformers_network(kind)
    path = saved(names(network.state_dict()), tmp_path / "model.safetensors")
    backbone, mine = embed(kind, path, batch)
    assert_allclose(mine.numpy(), transformers_forward(network, batch).numpy(), atol=PARITY)
    assert "embeddings.mask_token" in backbone.dropped


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", TIMM)
def test_a_wrong_map_of_transformers_names_would_be_noticed(kind, mutation, windows, tmp_path):
    batch = windows(1, GRID * patch_px(kind))
    network = transformers_network(kind)
    path = saved(mutation(release_4_names(network.state_dict())), tmp_path / "model.safetensors")
    _, wrong = embed(kind, path, batch)
    assert float((wrong - transformers_forward(network, batch)).abs().max()) > 100 * PARITY


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_reg"])
def test_the_name_that_a_model_with_a_head_puts_before_is_taken_off(kind, tmp_path):
    network = transformers_network(kind)
    prefix = "dinov2." if kind == "dinov2" else "dinov2_with_registers."
    tensors = {f"{prefix}{name}": value for name, value in release_4_names(network.state_dict()).items()}
    tensors |= {"classifier.weight": torch.zeros(2, 2 * WIDTH), "classifier.bias": torch.zeros(2)}
    backbone, _ = embed(kind, saved(tensors, tmp_path / "model.safetensors"), torch.zeros(0, 70, 70, 3).byte())
    assert {"classifier.weight", "classifier.bias"} < set(backbone.dropped)
