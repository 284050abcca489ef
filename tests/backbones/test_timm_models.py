import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose, assert_array_equal

from dlprobe.backbones import Backbone, load_backbone
from dlprobe.errors import BackboneError

NANOS = {
    "timm:vit_nano_patch14_dinov2": (14, 1),
    "timm:vit_nano_patch14_reg4_dinov2": (14, 5),
    "timm:vit_nano_patch16_dinov3": (16, 5),
}
NANO = "timm:vit_nano_patch14_reg4_dinov2"


def load(name=NANO, grid=5, **options):
    window_px = grid * (16 if "patch16" in name else 14)
    return load_backbone(name, **{"weights": "random:0", "device": "cpu", "window_px": window_px, **options})


def reference_pixels(windows, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    scaled = (windows.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("name", [*NANOS, "timm:vit_small_patch14_dinov2", "timm:vit_small_patch16_dinov3"])
def test_embeddings_are_timms_own_patch_tokens(name, windows):
    backbone = load(name, grid=4)
    prefix = NANOS.get(name, (0, 5 if "dinov3" in name else 1))[1]
    batch = windows(2, backbone.spec.window_px)
    with torch.no_grad():
        tokens = backbone.network.forward_features(reference_pixels(batch))
    assert tokens.shape[1] == 16 + prefix
    expected = tokens[:, prefix:].reshape(2, 4, 4, backbone.width)
    assert isinstance(backbone, Backbone)
    assert_allclose(backbone(batch).numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (4, 2)])
def test_a_bright_patch_changes_the_token_at_its_row_and_column_most(name, place):
    backbone = load(name)
    side, patch = backbone.spec.window_px, backbone.patch_px
    dark = np.full((1, side, side, 3), 40, dtype=np.uint8)
    bright = dark.copy()
    row, col = place
    bright[:, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] = 255
    change = (backbone(bright) - backbone(dark)).norm(dim=-1)[0]
    assert divmod(int(change.argmax()), 5) == place


def test_layers_are_absolute_ascending_and_side_by_side(windows):
    batch = windows(2, 70)
    both = load(layers=(-1, 1))
    assert both.spec.layers == (1, 3)
    assert both.width == 96
    parts = [load(layers=(layer,))(batch) for layer in (1, 3)]
    assert_allclose(both(batch).numpy(), torch.cat(parts, dim=-1).numpy(), atol=1e-6)
    assert load(layers=(3, -3)).spec == both.spec


def test_norm_applies_the_final_layer_norm(windows):
    batch = windows(1, 70)
    normed, raw = load(layers=(1, 3)), load(layers=(1, 3), norm=False)
    expected = torch.cat([raw.network.norm(part) for part in raw(batch).split(48, dim=-1)], dim=-1)
    assert_allclose(normed(batch).numpy(), expected.detach().numpy(), atol=1e-5)
    assert not torch.allclose(normed(batch), raw(batch), atol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": (2,)},
        {"norm": False},
        {"window_px": 84},
        {"weights": "random:1"},
        {"name": "timm:vit_nano_patch14_dinov2"},
    ],
)
def test_whatever_changes_the_identity_changes_the_embeddings(options, windows):
    one, other = load(), load(**options)
    assert one.spec.fingerprint != other.spec.fingerprint
    left = one(windows(1, one.spec.window_px))[0, :4, :4]
    right = other(windows(1, other.spec.window_px))[0, :4, :4]
    assert float((left - right).abs().mean()) > 0.02


def test_mean_and_std_change_identity_and_embeddings(windows):
    imagenet = load("timm:vit_small_patch14_dinov2", grid=2)
    other = load("timm:test_vit", window_px=160)
    assert imagenet.spec.mean == (0.485, 0.456, 0.406)
    assert other.spec.mean == (0.5, 0.5, 0.5)
    batch = windows(1, 160)
    with torch.no_grad():
        right = other.network.forward_features(reference_pixels(batch, (0.5,) * 3, (0.5,) * 3))[:, 1:]
        wrong = other.network.forward_features(reference_pixels(batch))[:, 1:]
    mine = other(batch).reshape(1, 100, 64)
    assert_allclose(mine.numpy(), right.numpy(), atol=1e-5)
    assert float((mine - wrong).abs().mean()) > 0.05


def test_batching_and_neighbours_change_nothing(windows):
    batch = windows(5, 70)
    whole = load()(batch)
    split = load(batch_size=2)
    assert split.spec == load().spec
    assert_allclose(split(batch).numpy(), whole.numpy(), atol=1e-5)
    assert_allclose(split(batch[3:4]).numpy(), whole[3:4].numpy(), atol=1e-5)
    assert split(batch[:0]).shape == (0, 5, 5, 48)


def test_two_blocks_swapped_change_the_embeddings_noticeably(windows):
    batch = windows(2, 112)
    backbone = load("timm:vit_small_patch14_dinov2", grid=8)
    before = backbone(batch)
    blocks = backbone.network.blocks
    blocks[3], blocks[8] = blocks[8], blocks[3]
    change = (backbone(batch) - before).norm() / before.norm()
    assert float(change) > 0.05


def test_random_weights_are_reproducible_and_leave_the_global_generator_alone(windows):
    batch = windows(1, 70)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load()
    assert_array_equal(torch.rand(3).numpy(), expected.numpy())
    second, third = load(), load(weights="random:1")
    assert first.weights_sha256 == second.weights_sha256 != third.weights_sha256
    assert_array_equal(first(batch).numpy(), second(batch).numpy())
    assert first.weights == "random:0"
    assert "random" in first.card.trained_on


def test_random_weights_have_layer_scale_one_and_nothing_at_its_initial_value():
    state = load(window_px=70).network.state_dict()
    untouched = timm.create_model("vit_nano_patch14_reg4_dinov2").state_dict()
    for name, tensor in state.items():
        if name.endswith(".gamma"):
            assert bool((tensor == 1).all())
        elif name.endswith(".bias"):
            assert 0.01 < float(tensor.std()) < 0.03
            assert not torch.equal(tensor, untouched[name])


def test_random_weights_hash_is_that_of_the_network_before_it_is_brought_to_the_window():
    assert load(grid=5).weights_sha256 == load(grid=8).weights_sha256
    assert load(grid=8).interpolated == "position embedding from 5x5 to 8x8 (timm: bicubic, antialiased)"
    assert load(grid=5).interpolated == ""
    assert load("timm:vit_nano_patch16_dinov3", grid=3).interpolated == ""


def test_bfloat16_on_the_cpu_is_near_float32_and_comes_out_as_float32(windows):
    batch = windows(2, 70)
    exact, rough = load(), load(precision="bfloat16")
    assert exact.pins.precision == "float32"
    assert rough.pins.precision == "bfloat16"
    assert rough.spec == exact.spec
    assert rough(batch).dtype == torch.float32
    error = float((rough(batch) - exact(batch)).norm() / exact(batch).norm())
    assert 1e-4 < error < 5e-2


def test_windows_may_be_tensors_or_read_only_or_strided_arrays(windows):
    backbone, batch = load(), windows(2, 70)
    expected = backbone(batch).numpy()
    frozen = batch.copy()
    frozen.setflags(write=False)
    for same in (torch.from_numpy(batch), frozen, np.asfortranarray(batch), batch[:, ::-1][:, ::-1]):
        assert_array_equal(backbone(same).numpy(), expected)


@pytest.mark.parametrize("name", NANOS)
def test_the_class_token_can_be_had_beside_the_patches(name, windows):
    backbone = load(name, layers=(1, -1), batch_size=2)
    batch = windows(3, backbone.spec.window_px)
    found = backbone.class_tokens(batch)
    assert found.shape == (3, 96)
    with torch.no_grad():
        last = backbone.network.forward_features(reference_pixels(batch))[:, 0]
    assert_allclose(found[:, 48:].numpy(), last.numpy(), atol=1e-5)
    assert_allclose(found[:, :48].numpy(), load(name, layers=(1,)).class_tokens(batch).numpy(), atol=1e-5)


def test_a_network_without_class_token_says_so(windows):
    backbone = load("timm:test_vit2", norm=False, window_px=160)
    with pytest.raises(BackboneError, match="gives no CLS token"):
        backbone.class_tokens(windows(1, 160))


def test_embeddings_carry_no_gradient_but_embed_can():
    backbone = load()
    batch = torch.zeros((1, 70, 70, 3), dtype=torch.uint8)
    assert not backbone(batch).requires_grad
    backbone.network.requires_grad_(True)
    backbone.embed(batch).sum().backward()
    assert backbone.network.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((1, 56, 56, 3), np.uint8), r"windows of shape \(batch, 70, 70, 3\), got \(1, 56, 56, 3\)"),
        (np.zeros((70, 70, 3), np.uint8), "got \\(70, 70, 3\\)"),
        (np.zeros((1, 70, 70, 3), np.float32), "uint8 RGB, got float32"),
        (torch.zeros((1, 70, 70, 3)), "uint8 RGB, got torch.float32"),
    ],
)
def test_windows_of_another_shape_or_dtype_are_refused(batch, words):
    with pytest.raises(BackboneError, match=words):
        load()(batch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_px": 72}, "windows that work are 70 and 84 px"),
        ({"layers": (4,)}, "no block 4; write numbers from 0 to 3"),
        ({"layers": (-5,)}, "no block -5"),
        ({"layers": (-1, 3)}, "or one twice"),
        ({"layers": ()}, "name no block"),
        ({"engine": "onnx"}, "no engine 'onnx'"),
        ({"precision": "int8"}, "no precision 'int8'"),
        ({"precision": "float16"}, "float16 is not for the CPU"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "quantum"}, "device 'quantum' is not on this machine"),
        ({"device": "cuda:64"}, "device 'cuda:64' is not on this machine"),
        ({"device": "meta"}, "device 'meta' cannot compute"),
        ({"name": "timm:resnet18"}, "is no plain vision transformer"),
        ({"name": "timm:swin_tiny_patch4_window7_224"}, "is no plain vision transformer"),
        ({"name": "timm:test_vit2", "window_px": 160}, "no final norm over patch tokens; say --no-norm"),
        ({"name": "timm:vit_smal_patch14_dinov2"}, "did you mean timm:vit_small_patch14_dinov2"),
        ({"name": "timm:vit_small_patch14_dinov2.lvd143m"}, r"did you mean timm:vit_small_patch14_dinov2\.lvd142m"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, words):
    with pytest.raises(BackboneError, match=words) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_a_model_without_final_norm_loads_without_it(windows):
    backbone = load("timm:test_vit2", norm=False, window_px=160)
    assert backbone(windows(1, 160)).shape == (1, 10, 10, 64)
