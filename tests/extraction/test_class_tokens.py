"""CLS tokens stored beside the patches: in every back end and type, through all that a cache goes through."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.cache import convert, describe, export, merge, open_cache, verify
from dlprobe.errors import BackboneError, CacheError, IdentityError
from dlprobe.extraction import extract, plan, recheck, repair

SETTINGS = {"stride_px": 64, "block_windows": 4, "cls": True}
KINDS = {
    "zarr-float16": {},
    "zarr-float32": {"dtype": "float32"},
    "zarr-int8": {"dtype": "int8"},
    "zarr-compressed": {"compress": True},
    "hdf5-float16": {"store": "hdf5"},
    "hdf5-int8": {"store": "hdf5", "dtype": "int8"},
}
ERROR = {"float16": 2**-10, "float32": 1e-5}


@pytest.fixture(scope="module")
def vit():
    """Return a small vision transformer with CLS and registers, and two layers side by side."""
    name = "timm:vit_small_patch14_reg4_dinov2.lvd142m"
    return load_backbone(name, weights="random:3", window_px=56, layers=(0, 2), batch_size=3)


@pytest.fixture(scope="module", params=KINDS)
def stored(request, manifest, vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("cls") / "cache"
    extract(manifest, vit, path, **SETTINGS, **KINDS[request.param])
    return path


@pytest.fixture(scope="module")
def plain(manifest, vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("cls") / "plain"
    extract(manifest, vit, path, **SETTINGS)
    return path


@pytest.fixture(scope="module")
def expected(manifest, vit):
    """Return a function that gives the CLS token of a window by timm's network alone."""

    def embed(row):
        image = Image.open(manifest.root / row["path"]).convert("RGB")
        box = (row["x"], row["y"], row["x"] + row["w"], row["y"] + row["h"])
        pixels = np.asarray(image.crop(box)).astype(np.float64) / 255
        pixels = (pixels - np.array(vit.spec.mean)) / np.array(vit.spec.std)
        with torch.no_grad():
            tokens = vit.network.patch_embed(torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None])
            tokens, found = vit.network._pos_embed(tokens), []
            for number, block in enumerate(vit.network.blocks[:3]):
                tokens = block(tokens)
                found += [vit.network.norm(tokens)[0, 0]] if number in {0, 2} else []
        return torch.cat(found).numpy()

    return embed


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_each_window_has_the_class_token_of_its_own_pixels(stored, expected, manifest):
    cache = open_cache(stored)
    found = cache.read(np.arange(len(cache)))
    dtype = "float16" if cache.cache_spec.dtype == "float16" else "float32"
    assert found.cls.dtype == dtype
    assert found.cls.shape == (len(cache), 2 * 384)
    whole = np.minimum(*manifest.frame[["height", "width"]].to_numpy().T)[cache.windows["image"]] >= 56
    assert 4 < whole.sum() < len(cache)
    for window in np.flatnonzero(whole):
        wanted = expected(cache.windows.iloc[window])
        assert np.linalg.norm(found.cls[window] - wanted) < ERROR[dtype] * np.linalg.norm(wanted)


def test_they_go_with_their_windows_in_any_order(stored):
    cache = open_cache(stored)
    everything = cache.read(np.arange(len(cache))).cls
    for block in (*cache.blocks(seed=5), *cache.blocks(), cache.read([3, 1, 3])):
        assert_array_equal(block.cls, everything[block.windows])


def test_patches_are_what_they_are_without(stored, manifest, vit, tmp_path):
    cache = open_cache(stored)
    settings = {"dtype": cache.cache_spec.dtype, "stride_px": 64, "block_windows": 4}
    extract(manifest, vit, tmp_path / "without", **settings)
    without = open_cache(tmp_path / "without")
    everything = np.arange(len(cache))
    assert_array_equal(without.read(everything).embeddings, cache.read(everything).embeddings)
    assert without.read(everything).cls is None
    assert next(iter(without.blocks())).cls is None
    assert describe(tmp_path / "without")["cls"] is False
    assert describe(stored)["cls"] is True


def test_a_flipped_byte_is_found_and_repaired(stored, manifest, vit, tmp_path, tree):
    copy = shutil.copytree(stored, tmp_path / "copy")
    cache = open_cache(copy)
    place = cache.store.extent("cls", 1)
    flip(copy / place.name, place.offset + 10)
    [damage] = verify(copy)
    assert damage.block == 1
    assert repair(manifest, vit, copy).recomputed == (1,)
    assert tree(copy) == tree(stored)


def test_there_and_back_gives_the_same_bytes(plain, tmp_path, tree):
    convert(plain, tmp_path / "hdf5", store="hdf5")
    convert(tmp_path / "hdf5", tmp_path / "back", store="zarr")
    assert tree(tmp_path / "back") == tree(plain)


def test_two_halves_are_the_whole(plain, manifest, vit, tmp_path):
    halves = []
    for number in (0, 1):
        halves.append(tmp_path / f"half-{number}")
        extract(manifest.select(manifest.frame.index % 2 == number), vit, halves[-1], **SETTINGS)
    found, whole = merge(halves, tmp_path / "merged"), open_cache(plain)
    assert found.cache_spec == whole.cache_spec
    everything = np.arange(len(whole))
    np.testing.assert_allclose(found.read(everything).cls, whole.read(everything).cls, rtol=2e-3, atol=2e-3)


def test_export_hands_them_over(plain, tmp_path):
    expected = open_cache(plain).read(np.arange(len(open_cache(plain)))).cls
    export(plain, tmp_path / "npy")
    assert_array_equal(np.load(tmp_path / "npy" / "cls.npy"), expected)
    export(plain, tmp_path / "table", format="parquet")
    table = pd.read_parquet(tmp_path / "table" / "windows.parquet")
    assert_array_equal(np.stack(table["cls"]), expected.astype(np.float32))


def test_the_plan_counts_their_bytes_and_they_are_part_of_the_identity(plain, manifest, vit):
    settings = {**SETTINGS, "cls": False}
    more = plan(manifest, vit.spec, **SETTINGS).bytes - plan(manifest, vit.spec, **settings).bytes
    assert more == open_cache(plain).n_blocks * 4 * 2 * 384 * 2
    with pytest.raises(IdentityError, match="cls: True != False"):
        extract(manifest, vit, plain, **settings)
    assert extract(manifest, vit, plain, **SETTINGS).done == 0


class Altered:
    """A backbone with the same identity and patches, and class tokens that were changed."""

    def __init__(self, inner, change):
        self._inner, self._change = inner, change
        self.spec, self.pins, self.card, self.weights = inner.spec, inner.pins, inner.card, inner.weights
        self.width, self.patch_px, self.weights_sha256 = inner.width, inner.patch_px, inner.weights_sha256

    def __call__(self, windows):
        return self._inner(windows)

    def with_class_tokens(self, windows):
        patches, cls = self._inner.with_class_tokens(windows)
        return patches, self._change(cls)


def test_a_deep_check_compares_them(plain, manifest, vit):
    assert recheck(manifest, vit, plain, 4) == []
    found = recheck(manifest, Altered(vit, lambda cls: cls.flip(-1)), plain, 4)
    assert len(found) == 4
    assert "relative" in found[0].reason


def test_values_that_no_type_holds_are_refused(manifest, vit, tmp_path):
    def spoil(cls):
        return torch.where(torch.arange(len(cls))[:, None] == 0, torch.nan, cls)

    report = extract(manifest, Altered(vit, spoil), tmp_path / "nan", **SETTINGS)
    rejected = [window for reject in report.rejected for window in reject.windows]
    cache = open_cache(tmp_path / "nan")
    assert rejected
    assert not cache.stored("cls", rejected).any()
    assert not cache.stored("embeddings", rejected).any()
    with pytest.raises(CacheError, match=r"channel 7 reaches 1e\+06 .* too large for float16"):
        extract(manifest, Altered(vit, lambda cls: cls.index_fill(1, torch.tensor(7), 1e6)), tmp_path / "x", **SETTINGS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("residual:srm", {}),
        ("timm:vit_medium_patch16_reg4_gap_256", {"weights": "random:0", "norm": False}),
    ],
)
def test_a_backbone_without_class_token_is_refused_before_anything_is_made(manifest, tmp_path, name, options):
    backbone = load_backbone(name, window_px=112, **options)
    with pytest.raises(BackboneError, match=r"gives no CLS token; leave --cls out, or choose") as caught:
        extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "cache").exists()
