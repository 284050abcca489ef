"""What extraction stores, compared with a naive recomputation from the image files."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from dlprobe.cache import open_cache
from dlprobe.data import Manifest, Provenance
from dlprobe.errors import BackboneError, CacheError, DataError, IdentityError, OutputError
from dlprobe.extraction import estimate, extract, plan

PATCH_PX, WINDOW_PX = 14, 56
SETTINGS = {"stride_px": 40, "block_windows": 4}


@pytest.fixture(scope="module")
def cache(manifest, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("extract") / "cache"
    extract(manifest, backbone, path, **SETTINGS)
    return open_cache(path)


def working_image(manifest, row):
    image = Image.open(manifest.root / row["path"]).convert("RGB")
    mask = Image.open(manifest.root / row["mask"]) if row["mask"] else None
    if min(image.size) < WINDOW_PX:
        scale = max(1016 * 56 / 504 / np.sqrt(image.width * image.height), WINDOW_PX / min(image.size))
        size = tuple(max(WINDOW_PX, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        mask = mask.resize(size, Image.Resampling.NEAREST) if mask else None
    inside, outside = {"real": (0, 0), "ae": (1, 1), "sp": (2, 0), "fr": (2, 1)}[row["variant"]]
    regions = np.full(image.size[::-1], outside, np.uint8)
    if mask:
        regions[np.asarray(mask) > 127] = inside
    return np.asarray(image), regions


def test_every_window_holds_the_embeddings_of_its_own_box(cache, manifest, backbone):
    matrix = backbone.matrix.numpy().astype(np.float64)
    block = cache.read(np.arange(len(cache)))
    for window, row in cache.windows.iterrows():
        pixels, _ = working_image(manifest, manifest.frame.iloc[row["image"]])
        crop = pixels[row["y"] : row["y"] + row["h"], row["x"] : row["x"] + row["w"]] / 127.5 - 1.0
        assert crop.shape == (WINDOW_PX, WINDOW_PX, 3)
        for r in range(4):
            for c in range(4):
                patch = crop[r * PATCH_PX : (r + 1) * PATCH_PX, c * PATCH_PX : (c + 1) * PATCH_PX]
                assert_allclose(block.embeddings[window, r, c], patch.reshape(-1) @ matrix, rtol=2e-3, atol=2e-3)


def test_regions_coverage_and_moments_are_those_of_the_masks_and_of_the_stored_values(cache, manifest):
    indices = np.arange(len(cache))
    regions, coverage, moments = cache.regions(indices), cache.coverage(), cache.moments()
    stored = cache.read(indices).embeddings
    for window, row in cache.windows.iterrows():
        _, expected = working_image(manifest, manifest.frame.iloc[row["image"]])
        assert_array_equal(regions[window], expected[row["y"] : row["y"] + 56, row["x"] : row["x"] + 56])
        values = stored[window].reshape(16, -1).astype(np.float64)
        assert_allclose(moments[window, 0], values.sum(0), rtol=1e-6)
        assert_allclose(moments[window, 1], (values**2).sum(0), rtol=1e-6)
        for r, c in np.ndindex(4, 4):
            patch = regions[window, r * 14 : r * 14 + 14, c * 14 : c * 14 + 14]
            shares = [(patch == kind).mean() * 255 for kind in (0, 1, 2, 255)]
            assert coverage[window, r, c].sum() == 255
            assert_allclose(coverage[window, r, c], shares, atol=1)
    assert {0, 1, 2} == set(np.unique(regions))


def test_one_bright_patch_lands_in_its_row_and_column(projection, tmp_path):
    pixels = np.full((112, 168, 3), 127, np.uint8)
    y, x = 56 + 2 * PATCH_PX, 112 + 1 * PATCH_PX
    pixels[y : y + PATCH_PX, x : x + PATCH_PX] = 255
    Image.fromarray(pixels).save(tmp_path / "dot.png")
    manifest = Manifest.from_records(
        [{"path": "dot.png", "variant": "real", "source_id": "dot", "width": 168, "height": 112}], tmp_path
    )
    extract(manifest, projection.Projection(), tmp_path / "cache", stride_px=56)
    cache = open_cache(tmp_path / "cache")
    energy = np.abs(cache.read(np.arange(6)).embeddings).sum(-1)
    window, row, col = np.unravel_index(energy.argmax(), energy.shape)
    found = cache.windows.iloc[window]
    assert (found["y"], found["x"], row, col) == (56, 112, 2, 1)
    assert (energy > energy.max() / 10).sum() == 1


def test_the_last_block_is_stored_full_size_and_padded_with_zeros(cache):
    n, size = len(cache), 4
    assert n % size, "the example must end in a partial block"
    for name, row_bytes in {"embeddings": 16 * 6 * 2, "coverage": 16 * 4, "moments": 2 * 6 * 4}.items():
        [last] = (cache.path / "features.zarr" / name).glob(f"c.{cache.n_blocks - 1}.*")
        data = last.read_bytes()
        assert len(data) == size * row_bytes
        assert set(data[n % size * row_bytes :]) == {0}
        assert any(data[: n % size * row_bytes])


def test_a_block_of_nothing_but_zeros_has_its_files(manifest, projection, tmp_path):
    extract(manifest, projection.Projection(scale=0.0), tmp_path / "cache", **SETTINGS)
    cache = open_cache(tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "features.zarr" / "embeddings").glob("c.*"))) == cache.n_blocks
    assert not cache.read(np.arange(len(cache))).embeddings.any()


def test_the_plan_says_what_is_stored(cache, manifest, backbone):
    planned = plan(manifest, backbone.spec, **SETTINGS)
    assert planned.cache_spec == cache.cache_spec
    assert planned.n_blocks == cache.n_blocks
    assert_array_equal(planned.windows, cache.windows[["image", "view", "y", "x", "h", "w"]])
    folders = [cache.path / "features.zarr" / name for name in ("embeddings", "coverage", "moments")]
    assert planned.bytes == sum(path.stat().st_size for folder in folders for path in folder.glob("c.*"))


def test_the_order_of_images_depends_on_the_seed_and_keeps_windows_together(manifest, backbone):
    images = plan(manifest, backbone.spec, stride_px=40).windows[:, 0]
    assert len(set(images)) == np.count_nonzero(np.diff(images)) + 1 == len(manifest)
    assert list(dict.fromkeys(images)) != sorted(set(images))
    assert list(images) == list(plan(manifest, backbone.spec, stride_px=40).windows[:, 0])
    assert list(images) != list(plan(manifest, backbone.spec, stride_px=40, seed=1).windows[:, 0])


def test_blocks_hold_128_mib_at_most_64_windows_and_no_more_than_there_are(manifest, backbone):
    assert plan(manifest, backbone.spec).cache_spec.block_windows == len(plan(manifest, backbone.spec).windows)
    assert plan(manifest, backbone.spec, stride_px=1).cache_spec.block_windows == 64
    wide = replace(backbone.spec, width=2**18)
    assert plan(manifest, wide, stride_px=9).cache_spec.block_windows == (128 << 20) // (16 * 2**18 * 2)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_change_where_embeddings_go(cache, manifest, projection, tmp_path, batch_size):
    extract(manifest, projection.Projection(batch_size=batch_size), tmp_path / "cache", **SETTINGS)
    indices = np.arange(len(cache))
    found = open_cache(tmp_path / "cache").read(indices).embeddings
    assert_allclose(found, cache.read(indices).embeddings, rtol=2e-3, atol=1e-3)


def test_two_runs_are_identical_byte_for_byte_wherever_they_lie(cache, backbone, projection, tmp_path, tree):
    elsewhere = projection.write_images(tmp_path / "other images", projection.SIZES)
    extract(elsewhere, backbone, tmp_path / "other", **SETTINGS)
    assert tree(tmp_path / "other") == tree(cache.path)


def test_float32_stores_what_the_backbone_returns(manifest, backbone, tmp_path):
    extract(manifest, backbone, tmp_path / "cache", dtype="float32", **SETTINGS)
    cache = open_cache(tmp_path / "cache")
    row = cache.windows.iloc[0]
    pixels, _ = working_image(manifest, manifest.frame.iloc[row["image"]])
    crop = pixels[row["y"] : row["y"] + 56, row["x"] : row["x"] + 56][None]
    assert_allclose(cache.read([0]).embeddings, backbone(crop).numpy(), rtol=1e-5, atol=1e-6)
    assert cache.read([0]).embeddings.dtype == np.float32


class TestBadImages:
    @pytest.fixture
    def damaged(self, projection, tmp_path):
        manifest = projection.write_images(tmp_path / "images", projection.SIZES)
        (manifest.root / "image-007.png").write_bytes(b"no image")
        (manifest.root / "mask-002.png").unlink()
        return manifest

    def test_a_run_goes_on_and_names_them(self, damaged, backbone, tmp_path):
        report = extract(damaged, backbone, tmp_path / "cache", **SETTINGS)
        cache = open_cache(tmp_path / "cache")
        assert {reject.path for reject in report.rejected} == {"image-007.png", "image-002.png"}
        assert report.rejected == cache.rejects
        for reject in report.rejected:
            assert str(tmp_path) not in reject.reason
            assert "\n" not in reject.reason
        windows = cache.windows
        assert set(windows["path"][windows["rejected"]]) == {"image-007.png", "image-002.png"}
        void = np.flatnonzero(windows["rejected"])
        assert (cache.regions(void) == Provenance.VOID).all()
        assert (cache.coverage(void) == [0, 0, 0, 255]).all()
        assert not cache.moments(void).any()
        read = np.concatenate([block.windows for block in cache.blocks()])
        assert_array_equal(read, np.flatnonzero(~windows["rejected"]))
        with pytest.raises(CacheError, match=re.escape("was rejected (image-0")):
            cache.read([0, void[0]])

    def test_the_sound_windows_are_those_of_a_sound_run(self, damaged, backbone, tmp_path, cache):
        extract(damaged, backbone, tmp_path / "cache", **SETTINGS)
        found = open_cache(tmp_path / "cache")
        sound = np.flatnonzero(~found.windows["rejected"])
        assert_allclose(found.read(sound).embeddings, cache.read(sound).embeddings, rtol=2e-3, atol=1e-3)

    def test_retry_computes_only_their_blocks_and_ends_in_the_bytes_of_a_sound_run(
        self, damaged, projection, tmp_path, cache, tree
    ):
        backbone = projection.Projection()
        extract(damaged, backbone, tmp_path / "cache", **SETTINGS)
        rejects = open_cache(tmp_path / "cache").rejects
        touched = {window // 4 for reject in rejects for window in reject.windows}
        projection.write_images(tmp_path / "images", projection.SIZES)
        unchanged = extract(damaged, backbone, tmp_path / "cache", **SETTINGS)
        assert (unchanged.done, len(unchanged.rejected)) == (0, len(rejects))
        report = extract(damaged, backbone, tmp_path / "cache", retry_rejects=True, **SETTINGS)
        assert not report.rejected
        assert report.done == sum(min(4, len(cache) - 4 * block) for block in touched) < len(cache)
        assert tree(tmp_path / "cache") == tree(cache.path)

    def test_all_bad_is_an_error_that_leaves_nothing(self, projection, backbone, tmp_path):
        manifest = projection.write_images(tmp_path / "images", projection.SIZES)
        for path in manifest.root.glob("image-*.png"):
            path.unlink()
        with pytest.raises(DataError, match=r"not one of \d+ windows could be embedded; the first: image-\d+.png: no"):
            extract(manifest, backbone, tmp_path / "deep" / "cache", **SETTINGS)
        assert not (tmp_path / "deep" / "cache").exists()

    def test_a_folder_that_was_there_is_left_empty(self, projection, backbone, tmp_path):
        manifest = projection.write_images(tmp_path / "images", [(60, 60)])
        (manifest.root / "image-000.png").unlink()
        (tmp_path / "cache").mkdir()
        with pytest.raises(DataError):
            extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_value_that_is_not_finite_rejects_its_window_alone(self, manifest, projection, tmp_path):
        class Poisoned(projection.Projection):
            calls = 0

            def __call__(self, windows):
                tokens = super().__call__(windows)
                if self.calls == 2:  # after the reference window and the first batch of four
                    tokens[1, 3, 2, 5] = np.nan
                self.calls += 1
                return tokens

        report = extract(manifest, Poisoned(), tmp_path / "cache", **SETTINGS)
        [reject] = report.rejected
        cache = open_cache(tmp_path / "cache")
        assert reject.windows == (5,)
        assert reject.path == cache.windows["path"][5]
        assert "not finite" in reject.reason
        assert (cache.regions([5]) == Provenance.VOID).all()
        assert (cache.coverage([5]) == [0, 0, 0, 255]).all()
        assert not cache.moments([5]).any()

    def test_a_value_too_large_for_float16_names_its_channel_and_leaves_nothing(self, manifest, projection, tmp_path):
        backbone = projection.Projection()
        backbone.matrix[:, 3] *= 1e6
        with pytest.raises(CacheError, match=r"channel 3 reaches .* too large for float16; .* dtype float32"):
            extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        assert not (tmp_path / "cache").exists()
        extract(manifest, backbone, tmp_path / "cache", dtype="float32", **SETTINGS)


class TestRefusals:
    def test_a_folder_or_file_that_is_something_else_is_left_alone(self, manifest, backbone, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "one.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        for name in ("photos", "file"):
            with pytest.raises(OutputError, match="exists and is no cache"):
                extract(manifest, backbone, tmp_path / name, **SETTINGS)
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "one.txt", "photos"]

    def test_a_path_that_cannot_be_made(self, manifest, backbone, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="cannot be made"):
            extract(manifest, backbone, tmp_path / "file" / "cache", **SETTINGS)

    def test_another_identity_names_the_fields_and_changes_nothing(
        self, manifest, backbone, projection, tmp_path, tree
    ):
        extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        before = tree(tmp_path / "cache")
        with pytest.raises(IdentityError, match="stride_px: 40 != 56"):
            extract(manifest, backbone, tmp_path / "cache", stride_px=56, block_windows=4)
        with pytest.raises(IdentityError, match=r"model\.weights_sha256"):
            extract(manifest, projection.Projection(scale=2.0), tmp_path / "cache", **SETTINGS)
        fewer = manifest.select(manifest.frame["variant"] == "real")
        with pytest.raises(IdentityError, match="manifest_sha256"):
            extract(fewer, backbone, tmp_path / "cache", **SETTINGS)
        assert tree(tmp_path / "cache") == before

    def test_other_pins_are_refused_unless_allowed(self, manifest, backbone, projection, tmp_path):
        extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        other = projection.Projection(batch_size=2)
        with pytest.raises(IdentityError, match=r"batch_size: 4 != 2.*--allow-mixed"):
            extract(manifest, other, tmp_path / "cache", **SETTINGS)
        report = extract(manifest, other, tmp_path / "cache", allow_mixed=True, **SETTINGS)
        assert (report.done, report.skipped) == (0, report.windows)

    def test_a_window_that_the_backbone_was_not_loaded_for(self, manifest, backbone, tmp_path):
        with pytest.raises(BackboneError, match="load it with window_px=504"):
            extract(manifest, backbone, tmp_path / "cache", window_px=504)

    def test_a_patch_that_does_not_divide_the_window(self, manifest, projection):
        with pytest.raises(BackboneError, match="56 and 70 px"):
            plan(manifest, projection.Projection(window_px=60).spec)

    def test_a_manifest_without_sizes_sends_to_scan(self, manifest, backbone):
        bare = Manifest(manifest.frame.drop(columns=["width", "height"]), manifest.root)
        with pytest.raises(DataError, match=r"no size for 10 images .*`dlprobe scan`"):
            plan(bare, backbone.spec)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"views": 2}, "give both"),
            ({"degrade": "jpeg:quality=50"}, "give both"),
            ({"views": 0}, "give both"),
            ({"views": 2, "degrade": "jpeg:quality=50@0123"}, "are not those of this release"),
            ({"dtype": "float64"}, "no storage type 'float64'"),
            ({"block_windows": 0}, "at least 1"),
            ({"stride_px": 0}, "at least 1"),
            ({"tiling": "random"}, "no tiling 'random'"),
        ],
    )
    def test_settings_out_of_range(self, manifest, backbone, settings, message):
        with pytest.raises(DataError, match=message):
            plan(manifest, backbone.spec, **settings)

    def test_a_backbone_that_returns_another_shape(self, manifest, projection, tmp_path):
        class Narrow(projection.Projection):
            def __call__(self, windows):
                return super().__call__(windows)[..., :-1]

        with pytest.raises(BackboneError, match=r"returns shape \(1, 4, 4, 5\), its identity says \(1, 4, 4, 6\)"):
            extract(manifest, Narrow(), tmp_path / "cache", **SETTINGS)
        assert not (tmp_path / "cache").exists()


def test_drift_of_the_reference_embedding_is_reported(manifest, backbone, projection, tmp_path):
    assert extract(manifest, backbone, tmp_path / "cache", **SETTINGS).drift == 0
    again = extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert (again.drift, again.drifted) == (0, False)
    other = projection.Projection()
    other.matrix *= 1.01  # same identity, other numbers
    drifted = extract(manifest, other, tmp_path / "cache", **SETTINGS)
    assert drifted.drift == pytest.approx(0.01, rel=1e-3)
    assert drifted.drifted


def test_what_rounding_explains_in_bfloat16_is_no_drift(manifest, projection, tmp_path):
    machines = [projection.Projection() for _ in range(3)]
    for machine, factor in zip(machines, (1.0, 1.01, 1.05), strict=True):
        machine.pins = replace(machine.pins, precision="bfloat16")
        machine.matrix *= factor
    reports = [extract(manifest, machine, tmp_path / "cache", **SETTINGS) for machine in machines]
    assert [report.drifted for report in reports] == [False, False, True]


def test_progress_counts_windows_up_to_all_of_them(manifest, backbone, tmp_path):
    seen = []
    report = extract(manifest, backbone, tmp_path / "cache", progress=lambda *c: seen.append(c), **SETTINGS)
    assert seen[0] == (0, report.windows)
    assert seen[-1] == (report.windows, report.windows)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_each_image_is_decoded_once_for_each_block_that_it_touches(manifest, backbone, tmp_path, monkeypatch):
    from dlprobe.extraction import decoding

    decoded, read = [], decoding.read_sample
    monkeypatch.setattr(
        decoding,
        "read_sample",
        lambda root, row, *given, **named: decoded.append(row["path"]) or read(root, row, *given, **named),
    )
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    windows = open_cache(tmp_path / "cache").windows
    assert sorted(decoded) == sorted(windows.drop_duplicates(["path", "block"])["path"])


def test_records_hold_the_hashes_of_the_image_files(cache, manifest):
    import hashlib

    found = {}
    for path in (cache.path / "records").glob("0*.json"):
        found |= json.loads(path.read_text())["images"]
    assert found == {
        path: hashlib.sha256((manifest.root / path).read_bytes()).hexdigest() for path in manifest.frame["path"]
    }


def test_an_estimate_counts_what_the_plan_says_and_times_this_machine(manifest, backbone):
    planned = plan(manifest, backbone.spec, **SETTINGS)
    found = estimate(planned, backbone)
    assert (found["images"], found["windows"], found["blocks"]) == (10, len(planned.windows), planned.n_blocks)
    assert found["bytes"] == planned.bytes
    assert found["eta_s"] == pytest.approx(found["windows"] / found["windows_per_s"], rel=0.2, abs=0.1)


@pytest.mark.parametrize("store", ["zarr", "hdf5"])
def test_an_estimate_leaves_out_other_shards_and_what_is_recorded(manifest, backbone, tmp_path, store):
    planned, path = plan(manifest, backbone.spec, **SETTINGS), tmp_path / "cache"
    before = estimate(planned, backbone, path, shard=(1, 3), store=store)
    assert not path.exists()
    extract(manifest, backbone, path, shard=(1, 3), store=store, **SETTINGS)
    cache = open_cache(path)
    recorded = [block for block in range(cache.n_blocks) if block not in cache.missing_blocks]
    assert (before["blocks"], before["windows"]) == (len(recorded), cache.windows["stored"].sum())
    lengths = [cache.record(block).chunks for block in recorded]
    counted = set(lengths[0]) - ({"regions"} if store == "zarr" else set())
    assert before["bytes"] == sum(chunks[name].length for chunks in lengths for name in counted)
    after = estimate(planned, backbone, path, shard=(1, 3))
    assert (after["recorded_blocks"], after["blocks"], after["bytes"], after["eta_s"]) == (len(recorded), 0, 0, 0.0)
    rest = estimate(planned, backbone, path)
    assert rest["windows"] == len(planned.windows) - before["windows"]
    with pytest.raises(IdentityError, match="stride_px"):
        estimate(plan(manifest, backbone.spec, block_windows=4), backbone, path)
    with pytest.raises(CacheError, match="no shard 3 of 3"):
        estimate(planned, backbone, path, shard=(3, 3))


def test_a_slower_backbone_is_estimated_to_be_slower(manifest, backbone, projection):
    class Slow(projection.Projection):
        def __call__(self, windows):
            time.sleep(0.02 * len(windows))
            return super().__call__(windows)

    assert 20 < estimate(plan(manifest, backbone.spec), Slow())["windows_per_s"] < 50
    assert estimate(plan(manifest, backbone.spec), backbone)["windows_per_s"] > 50


def test_the_report_as_a_row(manifest, backbone, tmp_path):
    report = extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    n = report.windows
    path = str(tmp_path / "cache")
    assert report.row() == {"path": path, "windows": n, "done": n, "skipped": 0, "rejected": 0, "drift": 0.0}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_device_sums_the_moments_that_a_thread_would(manifest, backbone, projection, tmp_path, dtype):
    class OnDevice(projection.Projection):
        """Says that it computes on CUDA: what follows its embeddings then follows there."""

        def __init__(self):
            super().__init__()
            self.pins = replace(self.pins, device="cuda")

        def __call__(self, windows):
            found = super().__call__(windows)
            found[windows.astype(int).sum(axis=(1, 2, 3)) % 5 == 0, 0, 0, 0] = np.nan  # some are rejected
            return found

    class OnCpu(OnDevice):
        def __init__(self):
            super().__init__()
            self.pins = backbone.pins

    found = []
    for number, kind in enumerate((OnDevice, OnCpu)):
        report = extract(manifest, kind(), tmp_path / str(number), dtype=dtype, **SETTINGS)
        assert 0 < report.row()["rejected"] < report.windows
        found.append(open_cache(tmp_path / str(number)).moments())
    assert_array_equal(*found)
    assert (found[0] != 0).any()


def test_moments_that_a_device_has_summed_are_not_summed_again(manifest, projection, tmp_path, monkeypatch):
    backbone = projection.Projection()
    backbone.pins = replace(backbone.pins, device="cuda")
    monkeypatch.delattr("dlprobe.extraction.embedding.moments")
    assert extract(manifest, backbone, tmp_path / "cache", **SETTINGS).done == len(open_cache(tmp_path / "cache"))
