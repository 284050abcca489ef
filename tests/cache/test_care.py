"""Converting, merging, comparing and exporting caches."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dlprobe.cache import convert, diff, export, merge, open_cache, parity, verify
from dlprobe.data import Manifest
from dlprobe.errors import CacheError, IdentityError, OutputError
from dlprobe.extraction import extract

SETTINGS = {"stride_px": 40, "block_windows": 4}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


class TestConvert:
    def test_there_and_back_gives_the_same_bytes(self, whole, tmp_path, tree):
        there = convert(whole, tmp_path / "hdf5", store="hdf5")
        assert there.store.packed == frozenset()
        assert verify(tmp_path / "hdf5") == []
        convert(tmp_path / "hdf5", tmp_path / "back", store="zarr")
        assert tree(tmp_path / "back") == tree(whole)

    def test_compressed_and_back(self, whole, tmp_path, tree):
        packed = convert(whole, tmp_path / "packed", store="zarr", compress=True)
        assert "embeddings" in packed.store.packed
        expected = open_cache(whole).read([3, 9, 1])
        assert_array_equal(packed.read([3, 9, 1]).embeddings, expected.embeddings)
        convert(tmp_path / "packed", tmp_path / "back", store="zarr")
        assert tree(tmp_path / "back") == tree(whole)

    def test_a_converted_cache_is_what_extraction_in_that_back_end_writes(
        self, whole, manifest, backbone, tmp_path, tree
    ):
        convert(whole, tmp_path / "converted", store="hdf5")
        extract(manifest, backbone, tmp_path / "extracted", store="hdf5", **SETTINGS)
        assert tree(tmp_path / "converted") == tree(tmp_path / "extracted")

    def test_an_incomplete_cache_goes_on_in_the_new_back_end(self, copy, manifest, backbone, tmp_path):
        (copy / "records" / "000002.json").unlink()
        found = convert(copy, tmp_path / "hdf5", store="hdf5")
        assert found.missing_blocks == [2]
        report = extract(manifest, backbone, tmp_path / "hdf5", **SETTINGS)
        assert report.done == 4
        assert verify(tmp_path / "hdf5") == []

    def test_damage_is_not_passed_on(self, copy, tmp_path):
        [path] = (copy / "features.zarr" / "coverage").glob("c.3.*")
        flip(path, 5)
        with pytest.raises(CacheError, match=r"coverage/c\.3\..* is damaged .*repair"):
            convert(copy, tmp_path / "hdf5", store="hdf5")

    def test_the_target_is_something_else(self, whole, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(OutputError):
            convert(whole, tmp_path, store="hdf5")


class TestMerge:
    @pytest.fixture
    def halves(self, manifest, backbone, tmp_path):
        paths = []
        for number in (0, 1):
            half = manifest.select(manifest.frame.index % 2 == number)
            paths.append(tmp_path / f"half-{number}")
            extract(half, backbone, paths[-1], **SETTINGS)
        return paths

    def test_two_halves_are_the_whole(self, halves, whole, tmp_path, tree):
        found = merge(halves, tmp_path / "merged")
        expected = open_cache(whole)
        assert found.cache_spec == expected.cache_spec
        assert found.windows.equals(expected.windows)
        assert verify(tmp_path / "merged") == []
        everything = np.arange(len(found))
        assert_allclose(found.read(everything).embeddings, expected.read(everything).embeddings, rtol=2e-3, atol=1e-3)
        assert_array_equal(found.regions(everything), expected.regions(everything))
        assert_array_equal(found.coverage(), expected.coverage())
        for block in range(found.n_blocks):
            assert found.record(block).images == expected.record(block).images

    def test_extraction_takes_a_merged_cache_for_its_own(self, halves, manifest, backbone, tmp_path):
        merge(halves, tmp_path / "merged")
        assert extract(manifest, backbone, tmp_path / "merged", **SETTINGS).done == 0

    def test_blocks_of_the_usual_size_which_follows_the_number_of_windows(self, manifest, backbone, tmp_path):
        for number, variants in enumerate((["real", "ae", "sp"], ["fr"])):
            part = manifest.select(manifest.frame["variant"].isin(variants))
            extract(part, backbone, tmp_path / str(number), stride_px=40)
        sizes = {open_cache(tmp_path / str(number)).cache_spec.block_windows for number in (0, 1)}
        found = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
        assert found.cache_spec.block_windows not in sizes
        assert verify(tmp_path / "merged") == []
        assert extract(manifest, backbone, tmp_path / "merged", stride_px=40).done == 0

    def test_blocks_of_two_sizes_that_were_asked_for(self, manifest, backbone, tmp_path):
        for number in (0, 1):
            half = manifest.select(manifest.frame.index % 2 == number)
            extract(half, backbone, tmp_path / str(number), stride_px=40, block_windows=3 + number)
        found = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
        assert found.cache_spec.block_windows == 4
        assert verify(tmp_path / "merged") == []
        assert extract(manifest, backbone, tmp_path / "merged", **SETTINGS).done == 0

    def test_every_window_keeps_its_numbers(self, halves, tmp_path):
        found = merge(halves, tmp_path / "merged")
        keys = ["path", "y", "x"]
        table = found.windows.reset_index().set_index(keys)["index"]
        for half in map(open_cache, halves):
            places = table.loc[list(half.windows[keys].itertuples(index=False, name=None))].to_numpy()
            everything = np.arange(len(half))
            assert_array_equal(found.read(places).embeddings, half.read(everything).embeddings)
            assert_array_equal(found.moments(places), half.moments())

    def test_prefixes_tell_images_of_one_name_apart(self, whole, manifest, tmp_path):
        found = merge([whole, whole], tmp_path / "merged", prefixes=["a/", "b/"])
        assert len(found) == 2 * len(open_cache(whole))
        expected = sorted([f"{p}{path}" for p in ("a/", "b/") for path in manifest.frame["path"]])
        assert list(found.manifest.frame["path"]) == expected
        masks = found.manifest.frame["mask"]
        assert set(masks[masks != ""].str[:2]) == {"a/", "b/"}
        assert verify(tmp_path / "merged") == []

    def test_one_image_in_two_caches_is_refused(self, whole, tmp_path):
        with pytest.raises(CacheError, match=r"image-000\.png stands in two .* prefixes"):
            merge([whole, whole], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_rejects_stay_rejects(self, projection, backbone, whole, tmp_path):
        other = projection.write_images(tmp_path / "images", [(60, 60), (112, 112)])
        (other.root / "image-001.png").write_bytes(b"no image")
        extract(other, backbone, tmp_path / "other", **SETTINGS)
        found = merge([whole, tmp_path / "other"], tmp_path / "merged", prefixes=["", "other/"])
        table = found.windows
        assert set(table["path"][table["rejected"]]) == {"other/image-001.png"}
        assert table["rejected"].sum() == open_cache(tmp_path / "other").windows["rejected"].sum()

    def test_int8(self, manifest, backbone, tmp_path):
        for number in (0, 1):
            half = manifest.select(manifest.frame.index % 2 == number)
            extract(half, backbone, tmp_path / str(number), dtype="int8", **SETTINGS)
        found = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged", store="hdf5")
        extract(manifest, backbone, tmp_path / "whole", dtype="int8", **SETTINGS)
        assert parity(tmp_path / "merged", tmp_path / "whole").rms < 1e-2
        assert found.windows.equals(open_cache(tmp_path / "whole").windows)

    def test_caches_that_differ_in_more_than_images(self, whole, projection, tmp_path, manifest):
        extract(manifest, projection.Projection(scale=2.0), tmp_path / "other", **SETTINGS)
        with pytest.raises(IdentityError, match=r"differ in model\.weights_sha256"):
            merge([whole, tmp_path / "other"], tmp_path / "merged")
        extract(manifest, projection.Projection(batch_size=2), tmp_path / "pins", **SETTINGS)
        with pytest.raises(IdentityError, match="batch_size: 4 != 2"):
            merge([whole, tmp_path / "pins"], tmp_path / "merged", prefixes=["a/", "b/"])

    def test_incomplete_and_damaged_caches(self, halves, tmp_path):
        [path] = (halves[1] / "features.zarr" / "embeddings").glob("c.0.*")
        flip(path, 3)
        with pytest.raises(CacheError, match="is damaged"):
            merge(halves, tmp_path / "merged")
        (halves[0] / "records" / "000000.json").unlink()
        with pytest.raises(CacheError, match="is incomplete"):
            merge(halves, tmp_path / "merged")

    @pytest.mark.parametrize(("count", "prefixes"), [(0, None), (2, ["a/"])])
    def test_sources_and_prefixes_that_do_not_fit(self, whole, tmp_path, count, prefixes):
        with pytest.raises(CacheError, match="one prefix for each"):
            merge([whole] * count, tmp_path / "merged", prefixes=prefixes)


class TestDiff:
    def test_nothing_differs(self, whole, copy):
        assert diff(whole, copy) == []

    def test_fields_that_differ_are_named_by_part(self, whole, manifest, projection, tmp_path):
        extract(manifest, projection.Projection(scale=2.0, batch_size=3), tmp_path / "b", stride_px=56, dtype="float32")
        found = {(item.part, item.detail.split(":")[0]) for item in diff(whole, tmp_path / "b")}
        expected = {("model", "weights_sha256"), ("pins", "batch_size")}
        expected |= {("cache", name) for name in ("dtype", "stride_px", "block_windows")}
        assert found == expected


class TestParity:
    def test_a_cache_with_itself(self, whole):
        found = parity(whole, whole)
        assert (found.max_abs, found.rms, found.cosine_min) == (0.0, 0.0, 1.0)
        assert found.windows == len(open_cache(whole))

    def test_storage_types_against_numpy(self, manifest, backbone, tmp_path):
        for dtype in ("float32", "float16", "int8"):
            extract(manifest, backbone, tmp_path / dtype, dtype=dtype, **SETTINGS)
        exact = open_cache(tmp_path / "float32")
        truth = exact.read(np.arange(len(exact))).embeddings.astype(np.float64)
        for dtype in ("float16", "int8"):
            found = parity(tmp_path / "float32", tmp_path / dtype)
            other = open_cache(tmp_path / dtype).read(np.arange(len(exact))).embeddings.astype(np.float64)
            error = truth - other
            cosine = (truth * other).sum(-1) / np.linalg.norm(truth, axis=-1) / np.linalg.norm(other, axis=-1)
            assert found.max_abs == pytest.approx(np.abs(error).max())
            assert found.worst_feature == np.unravel_index(np.abs(error).argmax(), error.shape)[-1]
            assert found.rms == pytest.approx(np.sqrt((error**2).sum() / (truth**2).sum()))
            assert found.cosine_mean == pytest.approx(cosine.mean())
            assert found.cosine_min == pytest.approx(cosine.min())
        assert 1e-4 < parity(tmp_path / "float32", tmp_path / "int8").rms < 1e-2
        assert parity(tmp_path / "float32", tmp_path / "float16").rms < 1e-3

    def test_windows_are_matched_by_image_and_box(self, whole, manifest, backbone, tmp_path):
        some = manifest.select(manifest.frame["variant"].isin(["sp", "fr"]))
        extract(some, backbone, tmp_path / "some", stride_px=40, seed=3)
        found = parity(tmp_path / "some", whole)
        assert found.windows == len(open_cache(tmp_path / "some"))
        assert found.rms < 1e-3

    def test_nothing_in_common(self, whole, manifest, backbone, tmp_path):
        renamed = Manifest(manifest.frame.assign(path="sub/" + manifest.frame["path"]), manifest.root)
        merge([whole], tmp_path / "renamed", prefixes=["sub/"])
        assert len(open_cache(tmp_path / "renamed").manifest) == len(renamed)
        with pytest.raises(CacheError, match="no window in common"):
            parity(whole, tmp_path / "renamed")

    def test_other_widths(self, whole, manifest, projection, tmp_path):
        extract(manifest, projection.Projection(width=3), tmp_path / "narrow", **SETTINGS)
        with pytest.raises(CacheError, match="compare caches of one backbone"):
            parity(whole, tmp_path / "narrow")

    def test_the_result_is_plain_numbers(self, whole):
        assert all(type(value) in {int, float} for value in dataclasses.asdict(parity(whole, whole)).values())


class TestExport:
    def test_numpy(self, whole, tmp_path):
        cache = open_cache(whole)
        count = export(whole, tmp_path / "out", split="train")
        table = pd.read_parquet(tmp_path / "out" / "windows.parquet")
        assert count == len(table) == (cache.windows["split"] == "train").sum()
        expected = cache.read(table["window"])
        assert_array_equal(np.load(tmp_path / "out" / "embeddings.npy"), expected.embeddings)
        assert_array_equal(np.load(tmp_path / "out" / "coverage.npy"), expected.coverage)
        assert list(table["path"]) == list(cache.windows["path"].iloc[table["window"]])

    def test_parquet_has_one_row_a_patch(self, whole, tmp_path):
        cache = open_cache(whole)
        assert export(whole, tmp_path / "out", format="parquet", windows=[7, 2, 11]) == 3
        table = pq.read_table(tmp_path / "out" / "patches.parquet").to_pandas()
        assert len(table) == 3 * 16
        for window in (2, 7, 11):
            block = cache.read([window])
            for row in range(4):
                for col in range(4):
                    [found] = table[(table.window == window) & (table.row == row) & (table.col == col)].itertuples()
                    assert_array_equal(found.embedding, block.embeddings[0, row, col].astype(np.float32))
                    assert [found.pristine, found.autoencoded, found.inpainted, found.void] == list(
                        block.coverage[0, row, col]
                    )

    def test_by_what_the_manifest_says_of_images(self, whole, tmp_path):
        cache = open_cache(whole)
        where = {"variant": ["sp", "fr"], "source_id": ["photo:0", "photo:2"]}
        count = export(whole, tmp_path / "out", where=where, windows=np.arange(len(cache) - 3))
        table = pd.read_parquet(tmp_path / "out" / "windows.parquet")
        mine = cache.windows[: len(cache) - 3]
        chosen = mine["variant"].isin(where["variant"]) & mine["source_id"].isin(where["source_id"])
        assert list(table["window"]) == list(np.flatnonzero(chosen))
        assert count == chosen.sum() > 0

    def test_a_choice_that_leaves_nothing(self, whole, tmp_path):
        with pytest.raises(CacheError, match=r"no windows of variant 'splice'; there are 'ae', 'fr', 'real', 'sp'"):
            export(whole, tmp_path / "out", where={"variant": ["splice"]})
        with pytest.raises(CacheError, match="windows are not chosen by 'colour'; write one of path, variant"):
            export(whole, tmp_path / "out", where={"colour": ["red"]})
        first = open_cache(whole).windows.query("split == 'train'").index[:1]
        with pytest.raises(CacheError, match="no windows of variant real and split test to read"):
            export(whole, tmp_path / "out", split="test", where={"variant": ["real"]}, windows=first)
        with pytest.raises(OutputError, match="s3://bucket/out is no folder"):
            export(whole, "s3://bucket/out")

    def test_what_exists_is_left_alone(self, whole, tmp_path):
        with pytest.raises(OutputError, match="exists"):
            export(whole, tmp_path)

    def test_failure_leaves_nothing(self, copy, tmp_path):
        [path] = (copy / "features.zarr" / "embeddings").glob("c.3.*")
        path.unlink()
        with pytest.raises(CacheError):
            export(copy, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]

    def test_formats_that_there_are_none_of(self, whole, tmp_path):
        with pytest.raises(CacheError, match="no export format 'csv'; write one of npy, parquet"):
            export(whole, tmp_path / "out", format="csv")
