"""Repair restores the recorded bytes and touches nothing else; rechecking finds what no checksum can."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.cache import convert, open_cache, verify
from dlprobe.errors import CacheError, IdentityError
from dlprobe.extraction import extract, recheck, repair
from dlprobe.spec import canonical_json, fingerprint

SETTINGS = {"stride_px": 40, "block_windows": 4}
KINDS = {
    "zarr": {},
    "compressed": {"compress": True},
    "hdf5": {"store": "hdf5"},
    "int8": {"dtype": "int8"},
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, manifest, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "whole"
    extract(manifest, backbone, path, **SETTINGS, **KINDS[request.param])
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def is_whole(copy, whole, tree):
    """Return a function that tells whether the copy is again what it was copied from, byte for byte."""
    return lambda: tree(copy) == tree(whole)


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        [value] = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << position % 8]))


def flip_chunk(cache, name, block, seed=0):
    extent, length = cache.store.extent(name, block), cache.record(block).chunks[name].length
    flip(cache.path / extent.name, extent.offset + int(np.random.default_rng(seed).integers(length)))


def test_a_sound_cache_is_left_alone(whole, manifest, backbone, tree):
    before = tree(whole)
    report = repair(manifest, backbone, whole)
    assert (report.restored, report.recomputed, report.different, report.set_apart) == ((), (), (), ())
    assert tree(whole) == before


def test_what_is_put_back_is_told_from_what_is_set_apart(copy, manifest, backbone, tree):
    before = tree(copy)
    flip(copy / "records" / "root.json", 33)
    flip_chunk(open_cache(copy), "embeddings", 2)
    (copy / "records" / "notes.txt").write_text("somebody's")
    report = repair(manifest, backbone, copy)
    assert (report.restored, report.recomputed, report.set_apart) == (
        ("records/root.json",),
        (2,),
        ("records/notes.txt",),
    )
    assert report.row() | {"path": ""} == {"path": "", "restored": 1, "recomputed": 1, "different": 0, "set_apart": 1}
    parts = [("records/root.json", "restored"), ("block 2", "recomputed"), ("records/notes.txt", "set apart")]
    assert list(report.frame()[["part", "what"]].itertuples(index=False, name=None)) == parts
    assert tree(copy) == before | {"strays/records/notes.txt": b"somebody's"}


@pytest.mark.parametrize("name", ["embeddings", "coverage", "regions", "moments"])
def test_a_flipped_byte_of_a_block(copy, manifest, backbone, is_whole, name):
    flip_chunk(open_cache(copy), name, 2)
    report = repair(manifest, backbone, copy)
    assert (report.restored, report.recomputed, report.different) == ((), (2,), ())
    assert is_whole()


def test_only_damaged_blocks_are_computed(copy, manifest, backbone, projection):
    flip_chunk(open_cache(copy), "embeddings", 1)
    flip_chunk(open_cache(copy), "moments", 3)
    seen = []

    class Counting(projection.Projection):
        def __call__(self, windows):
            seen.append(len(windows))
            return super().__call__(windows)

    assert repair(manifest, Counting(), copy).recomputed == (1, 3)
    assert sum(seen) == 1 + 2 * 4  # the reference window, and two blocks of four


def test_damage_of_every_other_kind_at_once(copy, whole, manifest, backbone, is_whole):
    flip(copy / "records" / "000002.json", 40)
    (copy / "records" / "000004.json").unlink()
    for name in open_cache(copy).store.fixed_names():
        file, _, part = name.partition("#")
        flip(copy / file, (int(part.split("-")[0]) if part else 0) + 1)
    report = repair(manifest, backbone, copy, **SETTINGS, dtype=open_cache(whole).cache_spec.dtype)
    assert report.recomputed == (2, 4)
    assert len(report.restored) == len(open_cache(whole).store.fixed_names())
    assert is_whole()


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_byte_anywhere_is_found_and_comes_back(copy, manifest, backbone, is_whole, seed):
    """In any file, as likely a small one as a large one, and at any of its bytes, padding included."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.parent.name != "locks")
    for path in rng.choice(np.array(files, dtype=object), 6):
        flip(path, int(rng.integers(path.stat().st_size)))
        damages = verify(copy)
        assert path.relative_to(copy).as_posix() in {damage.file.partition("#")[0] for damage in damages}
        report = repair(manifest, backbone, copy)
        assert report.different == ()
        assert report.restored or report.recomputed
        assert is_whole()


@pytest.mark.parametrize("change", ["flipped", "gone"])
def test_the_root_record(copy, manifest, backbone, is_whole, change):
    path = copy / "records" / "root.json"
    if change == "gone":
        path.unlink()
    else:
        flip(path, 33)
    report = repair(manifest, backbone, copy)
    assert report.restored == ("records/root.json",)
    assert is_whole()


def test_the_root_record_on_another_machine(copy, manifest, projection, is_whole, monkeypatch):
    import pyarrow.parquet as pq

    flip(copy / "records" / "root.json", 33)
    other = projection.Projection()
    other.matrix *= 1.0001  # rounds otherwise
    written = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *args, **named: written(*args, **{**named, "compression": "gzip"}))
    assert repair(manifest, other, copy).restored == ("records/root.json",)
    assert is_whole()


def test_extraction_does_not_begin_anew_over_recorded_blocks(copy, manifest, backbone):
    (copy / "records" / "root.json").unlink()
    with pytest.raises(CacheError, match=r"has blocks and no records/root\.json; run `dlprobe cache repair`"):
        extract(manifest, backbone, copy, **SETTINGS)
    assert open_cache(copy).complete


def test_an_image_that_changed_since_is_said(whole, projection, backbone, tmp_path):
    manifest = projection.write_images(tmp_path / "images", projection.SIZES)
    cache = open_cache(whole)
    copy = shutil.copytree(whole, tmp_path / "copy")
    path = cache.images_of_block(1)[0]
    pixels = np.asarray(Image.open(manifest.root / path)).copy()
    pixels[:14, :14] ^= 255
    Image.fromarray(pixels).save(manifest.root / path)
    flip_chunk(open_cache(copy), "embeddings", 1)
    report = repair(manifest, backbone, copy)
    assert (report.recomputed, report.different) == ((1,), (1,))
    assert verify(copy) == []


@pytest.mark.parametrize("where", ["metadata", "records/root.json"])
def test_versions_that_began_a_cache_stay_in_its_metadata(copy, manifest, backbone, is_whole, where):
    flip(copy / (open_cache(copy).store.fixed_names()[0].partition("#")[0] if where == "metadata" else where), 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlprobe.extraction.running._software", lambda: {"dlprobe": "another"})
        assert len(repair(manifest, backbone, copy).restored) == 1
    assert is_whole()


def test_metadata_that_do_not_come_out_again_are_not_guessed(copy, manifest, backbone, projection, tree):
    name = open_cache(copy).store.fixed_names()[0].partition("#")[0]
    flip(copy / name, 300)
    body = json.loads((copy / "records" / "root.json").read_text())
    body["attributes"]["software"] = {"dlprobe": "another"}
    del body["checksum"]
    (copy / "records" / "root.json").write_text(canonical_json({**body, "checksum": fingerprint(body)}))
    before = tree(copy)
    with pytest.raises(CacheError, match="cannot be made again as it was"):
        repair(manifest, backbone, copy, **SETTINGS)
    assert tree(copy) == before


def test_a_cache_whose_root_record_has_no_spare_copy(copy, manifest, backbone, tree):
    body = json.loads((copy / "records" / "root.json").read_text())
    for name in ("attributes", "counts", "offsets", "checksum"):
        del body[name]
    (copy / "records" / "root.json").write_text(canonical_json({**body, "checksum": fingerprint(body)}))
    before, cache = tree(copy), open_cache(copy)
    flip_chunk(cache, "coverage", 1)
    flip(copy / cache.store.fixed_names()[0].partition("#")[0], 3)
    repair(manifest, backbone, copy, **SETTINGS, dtype=cache.cache_spec.dtype)
    assert tree(copy) == before


def test_another_manifest_or_backbone(copy, manifest, backbone, projection):
    flip_chunk(open_cache(copy), "coverage", 0)
    with pytest.raises(IdentityError, match="weights_sha256"):
        repair(manifest, projection.Projection(scale=2.0), copy)
    with pytest.raises(IdentityError, match="manifest_sha256"):
        repair(manifest.select(manifest.frame["variant"] == "sp"), backbone, copy)
    assert [damage.block for damage in verify(copy)] == [0]


def test_another_manifest_where_metadata_are_damaged(copy, manifest, backbone, tree):
    flip(copy / open_cache(copy).store.fixed_names()[0].partition("#")[0], 300)
    before = tree(copy)
    with pytest.raises(IdentityError, match="manifest_sha256"):
        repair(manifest.select(manifest.frame["variant"] == "sp"), backbone, copy)
    assert tree(copy) == before


class TestRecheck:
    def test_a_cache_agrees_with_its_images(self, whole, manifest, backbone):
        assert recheck(manifest, backbone, whole, 1000) == []

    def test_wrong_numbers_with_right_checksums(self, whole, manifest, backbone, projection, tmp_path):
        class Swapped(projection.Projection):
            def __call__(self, windows):
                return super().__call__(windows).flip(1)

        extract(manifest, Swapped(), tmp_path / "wrong", **SETTINGS)
        assert verify(tmp_path / "wrong") == []
        found = recheck(manifest, backbone, tmp_path / "wrong", 5)
        assert len(found) == 5
        assert all("differs by" in damage.reason for damage in found)

    def test_windows_are_embedded_in_batches_as_long_as_before(self, manifest, projection, tmp_path):
        class ByLength(projection.Projection):
            def __call__(self, windows):
                return super().__call__(windows) * len(windows)

        extract(manifest, ByLength(batch_size=3), tmp_path / "cache", **SETTINGS)
        for count in (1, 2, 1000):
            assert recheck(manifest, ByLength(batch_size=3), tmp_path / "cache", count) == []

    def test_rounding_in_bfloat16_is_no_damage(self, manifest, projection, tmp_path):
        machines = {factor: projection.Projection() for factor in (1.0, 1.01, 1.05)}
        for factor, machine in machines.items():
            machine.pins = dataclasses.replace(machine.pins, precision="bfloat16")
            machine.matrix *= factor
        extract(manifest, machines[1.0], tmp_path / "cache", **SETTINGS)
        assert recheck(manifest, machines[1.01], tmp_path / "cache", 5) == []
        assert len(recheck(manifest, machines[1.05], tmp_path / "cache", 5)) == 5

    def test_a_vision_transformer_in_bfloat16(self, manifest, tmp_path):
        name, settings = "timm:vit_small_patch14_dinov2.lvd142m", {"window_px": 56, "batch_size": 4}
        vit = load_backbone(name, weights="random:0", precision="bfloat16", device="cpu", **settings)
        some = manifest.select(manifest.frame.index < 3)
        extract(some, vit, tmp_path / "cache", stride_px=56)
        assert recheck(some, vit, tmp_path / "cache", 4) == []
        assert recheck(some, vit.with_batch_size(1), tmp_path / "cache", 4) == []

    def test_an_image_that_changed_or_vanished(self, whole, projection, backbone, tmp_path):
        manifest = projection.write_images(tmp_path / "images", projection.SIZES)
        Image.new("RGB", (112, 112)).save(manifest.root / "image-001.png")
        (manifest.root / "image-007.png").unlink()
        found = {damage.file: damage.reason for damage in recheck(manifest, backbone, whole, 1000)}
        assert found.keys() == {"image-001.png", "image-007.png"}
        assert "not the one that was embedded" in found["image-001.png"]

    def test_the_draw_follows_the_seed(self, whole, manifest, projection):
        class Noisy(projection.Projection):
            def __call__(self, windows):
                return super().__call__(windows) + 1

        def drawn(seed):
            return [damage.reason for damage in recheck(manifest, Noisy(), whole, 4, seed=seed)]

        assert drawn(0) == drawn(0) != drawn(1)

    def test_another_backbone_or_manifest(self, whole, manifest, backbone, projection):
        with pytest.raises(IdentityError, match="load the same backbone"):
            recheck(manifest, projection.Projection(scale=2.0), whole, 1)
        with pytest.raises(CacheError, match="is not in the manifest"):
            recheck(manifest.select(manifest.frame.index == 0), backbone, whole, 1000)


def test_a_converted_cache_is_repaired_like_any_other(manifest, backbone, tmp_path, tree):
    extract(manifest, backbone, tmp_path / "zarr", **SETTINGS)
    cache = convert(tmp_path / "zarr", tmp_path / "hdf5", store="hdf5")
    before = tree(tmp_path / "hdf5")
    flip_chunk(cache, "embeddings", 1)
    repair(manifest, backbone, tmp_path / "hdf5")
    assert tree(tmp_path / "hdf5") == before


def test_the_limit_of_pixels_is_that_of_the_extraction(manifest, backbone, tmp_path, tree):
    limit = 15_000
    assert (manifest.frame["width"] * manifest.frame["height"] > limit).sum() == 1
    large = int((manifest.frame["width"] * manifest.frame["height"]).argmax())
    extract(manifest, backbone, tmp_path / "cache", max_pixels=limit, **SETTINGS)
    cache = open_cache(tmp_path / "cache")
    block = int(np.flatnonzero(cache.windows["image"] == large)[0]) // SETTINGS["block_windows"]
    before = tree(tmp_path / "cache")
    flip_chunk(cache, "coverage", block)
    assert repair(manifest, backbone, tmp_path / "cache", max_pixels=limit).different == ()
    assert tree(tmp_path / "cache") == before
    flip_chunk(cache, "coverage", block)
    assert repair(manifest, backbone, tmp_path / "cache").different == (block,)


def test_rechecking_reads_as_large_images_as_it_is_told(manifest, backbone, tmp_path):
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    count = len(open_cache(tmp_path / "cache").windows)
    assert recheck(manifest, backbone, tmp_path / "cache", count) == []
    [damage] = recheck(manifest, backbone, tmp_path / "cache", count, max_pixels=15_000)
    assert "more than 15,000" in damage.reason
