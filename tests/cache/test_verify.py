"""Verification finds every changed, lost or cut byte, and names the block and its images."""

import json

import numpy as np
import pytest

from dlprobe.cache import open_cache, verify
from dlprobe.errors import CacheError


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << position % 8
    path.write_bytes(bytes(data))


def test_nothing_there(tmp_path):
    with pytest.raises(CacheError, match="no cache at"):
        verify(tmp_path / "nothing")


def test_a_sound_cache_has_no_damage(whole):
    assert open_cache(whole).verify() == []


@pytest.mark.parametrize("name", ["embeddings", "coverage", "regions", "moments"])
def test_a_flipped_byte_in_a_chunk(copy, name):
    cache = open_cache(copy)
    rng = np.random.default_rng(0)
    for block in range(cache.n_blocks):
        [path] = (copy / "features.zarr" / name).glob(f"c.{block}.*")
        before = path.read_bytes()
        flip(path, int(rng.integers(0, len(before))))
        [damage] = cache.verify()
        assert (damage.file, damage.block) == (str(path.relative_to(copy)), block)
        assert set(damage.images) == set(cache.windows["path"][cache.windows["block"] == block])
        assert "checksum" in damage.reason
        path.write_bytes(before)


def test_a_flipped_byte_of_padding(copy):
    cache = open_cache(copy)
    [path] = (copy / "features.zarr" / "embeddings").glob(f"c.{cache.n_blocks - 1}.*")
    flip(path, path.stat().st_size - 1)
    [damage] = cache.verify()
    assert damage.block == cache.n_blocks - 1


def test_bytes_all_over_a_record(copy):
    path = copy / "records" / "000002.json"
    before = path.read_bytes()
    for position in range(0, len(before), 29):
        flip(path, position)
        [damage] = verify(copy)
        assert (damage.file, damage.block) == ("records/000002.json", 2)
        assert damage.images
        path.write_bytes(before)


def test_a_record_rewritten_with_other_spacing(copy):
    path = copy / "records" / "000002.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    [damage] = verify(copy)
    assert damage.block == 2


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "embeddings/zarr.json",
        "regions/zarr.json",
        "manifest/zarr.json",
        "windows/c.0.0",
        "manifest/c.0",
        "reference/c.0.0.0",
    ],
)
def test_flipped_bytes_outside_of_blocks(copy, name):
    path = copy / "features.zarr" / name
    before = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(before), 10).tolist():
        flip(path, position)
        assert f"features.zarr/{name}" in [damage.file for damage in verify(copy)]
        path.write_bytes(before)
    assert verify(copy) == []


def test_the_root_record(copy):
    flip(copy / "records" / "root.json", 100)
    [damage] = verify(copy)
    assert damage.file == "records/root.json"
    (copy / "records" / "root.json").unlink()
    [damage] = verify(copy)
    assert damage.file == "records/root.json"


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_a_chunk_file_that_is_gone_or_of_another_length(copy, change):
    [path] = (copy / "features.zarr" / "coverage").glob("c.0.*")
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "shorter" else path.read_bytes() + b"\0")
    [damage] = verify(copy)
    assert damage.block == 0
    assert damage.file.startswith("features.zarr/coverage/c.0.")


def test_a_record_that_is_gone_and_one_of_another_block(copy):
    (copy / "records" / "000001.json").unlink()
    (copy / "records" / "000003.json").write_bytes((copy / "records" / "000002.json").read_bytes())
    damages = verify(copy)
    assert [(damage.block, damage.file) for damage in damages] == [
        (1, "records/000001.json"),
        (3, "records/000003.json"),
    ]
    assert "missing" in damages[0].reason
    assert "another block or cache" in damages[1].reason


def test_several_at_once(copy):
    for name, block in (("embeddings", 0), ("embeddings", 3), ("regions", 3)):
        [path] = (copy / "features.zarr" / name).glob(f"c.{block}.*")
        flip(path, 11)
    assert [(damage.block, damage.file.split("/")[1]) for damage in verify(copy)] == [
        (0, "embeddings"),
        (3, "embeddings"),
        (3, "regions"),
    ]


def test_a_damaged_region_chunk_is_never_decoded_into_something_else(copy):
    [path] = (copy / "features.zarr" / "regions").glob("c.0.*")
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(CacheError, match="is damaged"):
        open_cache(copy).regions([0])


def test_numbers_of_images_that_there_are_none_of(copy):
    path = copy / "features.zarr" / "windows" / "c.0.0"
    path.write_bytes(path.read_bytes()[:3] + b"\x40" + path.read_bytes()[4:])
    with pytest.raises(CacheError, match=r"the windows table in .* is damaged"):
        _ = open_cache(copy).windows


def test_blocks_are_found_though_the_metadata_cannot_be_read(copy):
    images = open_cache(copy).images_of_block(2)
    for name in ("zarr.json", "embeddings/zarr.json", "manifest/c.0"):
        (copy / "features.zarr" / name).write_bytes(b"{")
    [path] = (copy / "features.zarr" / "moments").glob("c.2.*")
    flip(path, 9)
    [*_, damage] = verify(copy)
    assert (damage.file, damage.block) == (str(path.relative_to(copy)), 2)
    assert set(damage.images) == set(images)


def test_an_identity_that_is_not_its_fingerprint_s(copy):
    path = copy / "features.zarr" / "zarr.json"
    path.write_text(path.read_text().replace('"block_windows": 4', '"block_windows": 0'))
    with pytest.raises(CacheError, match=r"is damaged .*cache_fingerprint"):
        open_cache(copy)
