"""What localize writes, and what it does with images that it cannot read."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.backbones.residual import ResidualBackbone
from dlprobe.errors import DataError, IdentityError, OutputError, ProbeError
from dlprobe.localization import (
    PostProcessing,
    localize,
    localize_files,
    overlay,
    planes,
    postprocess,
    score_map,
)
from dlprobe.localization.outputs import pictures
from dlprobe.localization.outputs.pictures import centred
from dlprobe.localization.outputs.summary import percentile
from dlprobe.probes import Probe, make_card
from dlprobe.spec import sha256_of_file


@pytest.fixture(scope="module")
def backbone():
    return ResidualBackbone(window_px=112)


@pytest.fixture(scope="module")
def probe(backbone):
    rng = np.random.default_rng(3)
    card = make_card(
        model=backbone.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=["INPAINTED"],
        threshold=0.6,
        threshold_policy="best F1 on validation",
        weights="none",
    )
    return Probe(rng.normal(0, 0.05, (1, backbone.spec.width)), np.zeros(1), card)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)).save(path)
    return path


def test_writes_everything_and_says_what_it_is(tmp_path, backbone, probe, image):
    (result,) = localize([image], backbone, probe, tmp_path / "out", stride_px=56)
    found = score_map(np.asarray(Image.open(image)), backbone, probe, stride_px=56)
    scores = np.load(result.folder / "score.npy", allow_pickle=False)
    np.testing.assert_array_equal(scores, found.scores)
    mask = np.asarray(Image.open(result.folder / "mask.png"))
    np.testing.assert_array_equal(mask, np.where(scores >= 0.6, 255, 0))
    sixteen = np.asarray(Image.open(result.folder / "score.png"))
    np.testing.assert_allclose(sixteen / 65535, scores, atol=1e-5)
    assert np.asarray(Image.open(result.folder / "overlay.png")).shape == (130, 170, 3)
    record = json.loads((result.folder / "result.json").read_text())
    assert record["threshold"] == 0.6
    assert record["threshold_policy"] == "best F1 on validation"
    assert record["model_fingerprint"] == backbone.spec.fingerprint
    assert record["probe_sha256"] == probe.sha256
    assert result.image_score == pytest.approx(np.percentile(found.working_scores, 99))
    assert result.area == pytest.approx((scores >= 0.6).mean())


def test_one_bad_image_among_many_is_rejected_and_the_rest_goes_on(tmp_path, backbone, probe, image):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:200])
    good, rejected, missing = localize(
        [image, bad, tmp_path / "none.png"], backbone, probe, tmp_path / "out", stride_px=56
    )
    assert good.folder is not None
    assert rejected.folder is None
    assert "bad.png" in rejected.reason
    assert "none.png" in missing.reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo", "results.csv", "results.parquet"]


def test_nothing_is_written_when_no_image_can_be_read(tmp_path, backbone, probe):
    with pytest.raises(DataError, match=r"none\.png"):
        localize([tmp_path / "none.png"], backbone, probe, tmp_path / "out", stride_px=56)
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_do_not_overwrite_each_other_in_whatever_order_they_come(tmp_path, backbone, probe, image):
    other = tmp_path / "other" / "photo.png"
    other.parent.mkdir()
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(other)
    out = tmp_path / "out"
    (first,) = localize([image], backbone, probe, out, stride_px=56)
    mine = (first.folder / "result.json").read_bytes()
    for images in ([other], [other, image], [image, other]):
        results = {r.image: r.folder.name for r in localize(images, backbone, probe, out, stride_px=56)}
        assert results[str(other)] == f"photo-{sha256_of_file(other)[:8]}"
        assert results.get(str(image), "photo") == "photo"
    assert (first.folder / "result.json").read_bytes() == mine
    table = pd.read_csv(out / "results.csv")
    assert sorted(table["image"]) == sorted([str(image), str(other)])
    assert set(table["folder"]) == {"photo", f"photo-{sha256_of_file(other)[:8]}"}


def test_files_of_the_same_bytes_share_a_result(tmp_path, backbone, probe, image):
    copy = tmp_path / "copy" / "photo.png"
    copy.parent.mkdir()
    copy.write_bytes(image.read_bytes())
    one, two = localize([image, copy], backbone, probe, tmp_path / "out", stride_px=56)
    assert one.folder == two.folder
    assert two.image == str(copy)
    assert (one.skipped, two.skipped) == (False, True)


def test_a_second_run_looks_only_at_what_changed(tmp_path, probe, image, kit):
    backbone = kit.Backbone(window_px=112)
    probe = kit.probe(backbone, 1)
    second = tmp_path / "second.png"
    Image.open(image).rotate(90).save(second)
    out = tmp_path / "out"

    def looked(*images, **options):
        backbone.batches.clear()
        results = localize(images, backbone, probe, out, **{"stride_px": 56, **options})
        return sum(backbone.batches), [result.skipped for result in results]

    windows, _ = looked(image)
    assert windows > 0
    assert looked(image) == (0, [True])
    assert looked(image, second)[1] == [True, False]
    assert looked(image, overwrite=True) == (windows, [False])
    assert looked(image, threshold=0.3) == (windows, [False])
    assert looked(image, threshold=0.3) == (0, [True])
    assert looked(image, stride_px=28, threshold=0.3)[1] == [False]
    assert looked(image, postprocessing=PostProcessing(fill_holes=True))[1] == [False]
    probe = kit.probe(backbone, 1, seed=5)
    assert looked(image, postprocessing=PostProcessing(fill_holes=True))[1] == [False]
    (out / "photo" / "result.json").write_text("{torn")
    assert looked(image)[1] == [False]
    assert (out / "photo" / "result.json").read_text() == "{torn"
    assert (out / f"photo-{sha256_of_file(image)[:8]}" / "result.json").is_file()


def test_folders_stream_and_a_table_lists_all(tmp_path, kit):
    backbone = kit.Backbone(window_px=112)
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(kit.photograph(112, 120 + i, seed=i)).save(data / f"{i}.png")
    Image.fromarray(kit.photograph(112, 112, seed=9)).save(data / "deep" / "9.jpg")
    (data / "notes.txt").write_text("no image")
    (data / "bad.png").write_bytes(b"no image")
    told = []
    options = {"progress": lambda done, total: told.append((done, total)), "stride_px": 56}
    results = localize([data], backbone, kit.probe(backbone, 1), tmp_path / "out", **options)
    assert [Path(result.image).name for result in results] == [*(f"{i}.png" for i in range(5)), "bad.png"]
    assert told == [(i, 6) for i in range(1, 7)]
    results = localize([data], backbone, kit.probe(backbone, 1), tmp_path / "out", recursive=True, **options)
    assert [result.skipped for result in results] == [True] * 5 + [False] * 2
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert len(table) == 7
    assert table.set_index("image").loc[str(data / "bad.png"), "reason"]
    assert (table["image_score"].notna() == (table["reason"] == "")).all()
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(DataError, match="--recursive"):
        localize([tmp_path / "empty"], backbone, kit.probe(backbone, 1), tmp_path / "out")


def test_an_interrupted_run_leaves_whole_results_and_goes_on(tmp_path, kit, monkeypatch):
    backbone = kit.Backbone(window_px=112, batch_size=1)
    paths = []
    for i in range(6):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(kit.photograph(112, 112, seed=i)).save(paths[-1])
    probe, out = kit.probe(backbone, 1), tmp_path / "out"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        localize(paths, backbone, probe, out, progress=stop, stride_px=56)
    assert not list(out.glob(".dlprobe-scratch-*"))
    for folder in (entry for entry in out.iterdir() if entry.is_dir()):
        assert (folder / "result.json").is_file()
    results = localize(paths, backbone, probe, out, stride_px=56)
    assert any(result.skipped for result in results)
    assert not all(result.skipped for result in results)
    assert len(pd.read_csv(out / "results.csv")) == 6


def test_regions_and_the_mask_follow_from_post_processing(tmp_path, kit):
    backbone = kit.Backbone(window_px=112)
    image = np.zeros((112, 224, 3), np.uint8)
    image[28:84, 28:84] = image[42:56, 168:182] = 255
    path = tmp_path / "two.png"
    Image.fromarray(image).save(path)
    probe = kit.probe(backbone, 1)
    probe = Probe(np.array([[20.0, 20, 20, 0, 0, 0]]), np.array([-30.0]), probe.card)
    found = {}
    for name, chosen in {"raw": PostProcessing(), "large": PostProcessing(min_area_px=1000)}.items():
        (result,) = localize([path], backbone, probe, tmp_path / name, stride_px=56, postprocessing=chosen)
        record = json.loads((result.folder / "result.json").read_text())
        mask = np.asarray(Image.open(result.folder / "mask.png")) > 0
        assert record["n_regions"] == len(record["regions"]) == result.n_regions
        assert record["mask_area"] == pytest.approx(mask.mean())
        assert sum(region["area_px"] for region in record["regions"]) == mask.sum()
        scores = np.load(result.folder / "score.npy")
        for region in record["regions"]:
            box = np.s_[region["y"] : region["y"] + region["h"], region["x"] : region["x"] + region["w"]]
            inside = scores[box][mask[box]]
            assert region["score_mean"] == pytest.approx(inside.mean(), abs=1e-6)
            assert region["score_max"] == inside.max()
        found[name] = record
    large, small = found["raw"]["regions"]
    assert max(abs(large["y"] - 28), abs(large["x"] - 28)) <= 7
    assert abs(large["h"] - 56) <= 14
    assert small["x"] > 150
    assert found["large"]["regions"] == [large]
    assert found["large"]["area"] == found["raw"]["area"]
    assert found["large"]["postprocessing"]["steps"] == ["threshold", "small"]


def test_a_saturated_map_is_said_to_be_the_whole_image(tmp_path, kit):
    backbone = kit.Backbone(window_px=112)
    probe = Probe(np.array([[20.0, 20, 20, 0, 0, 0]]), np.array([-30.0]), kit.probe(backbone, 1).card)
    kinds = {}
    for name, columns in {"none": 0, "half": 112, "most": 224, "nearly": 190}.items():
        image = np.zeros((112, 224, 3), np.uint8)
        image[:, :columns] = 255
        path = tmp_path / f"{name}.png"
        Image.fromarray(image).save(path)
        (result,) = localize([path], backbone, probe, tmp_path / "out", stride_px=56)
        record = json.loads((result.folder / "result.json").read_text())
        assert record["verdict"]["kind"] == result.verdict
        assert record["verdict"]["rule"]
        kinds[name] = result.verdict
    assert kinds == {"none": "nothing", "half": "region", "most": "whole image", "nearly": "whole image"}


def test_confidence_is_in_the_files_and_in_the_overlay(tmp_path, kit):
    backbone = kit.Backbone(window_px=112)
    image = kit.photograph(70, 140)
    path = tmp_path / "small.png"
    Image.fromarray(image).save(path)
    probe = kit.probe(backbone, 1)
    found = score_map(image, backbone, probe, stride_px=56)
    (result,) = localize([path], backbone, probe, tmp_path / "out", stride_px=56)
    windows = np.asarray(Image.open(result.folder / "windows.png"))
    assert windows.shape == (70, 140)
    np.testing.assert_array_equal(windows[[0, 0, -1, -1], [0, -1, 0, -1]], 1)
    assert windows.max() == found.n_windows.max()
    spread = np.asarray(Image.open(result.folder / "disagreement.png")) / 65535
    np.testing.assert_allclose(spread, found.disagreement, atol=1e-5)
    record = json.loads((result.folder / "result.json").read_text())["confidence"]
    assert record["disagreement_mean"] == pytest.approx(found.disagreement.mean(), abs=1e-6)
    assert record["n_windows_max"] == found.n_windows.max()
    assert record["one_window_share"] == pytest.approx((found.n_windows == 1).mean())


def test_the_overlay_hatches_where_windows_disagree_and_dots_where_one_looked():
    pixels = np.full((64, 64, 3), 100, np.uint8)
    scores, mask = np.zeros((64, 64), np.float32), np.zeros((64, 64), bool)
    disagreement, n_windows = np.zeros((64, 64), np.float32), np.full((64, 64), 4, np.int32)
    disagreement[:32] = 0.3
    n_windows[:, 32:] = 1
    drawn = overlay(pixels, scores, mask, disagreement, n_windows)
    sky = (drawn == (86, 180, 233)).all(axis=2)
    white = (drawn == 255).all(axis=2)
    assert 0.15 < sky[:32].mean() < 0.35
    assert not sky[32:].any()
    assert white[:, 32:].any()
    assert not white[:, :32].any()


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_percentiles_are_those_of_numpy(percent):
    rng = np.random.default_rng(0)
    for values in (
        rng.random((200, 311), np.float32),
        np.round(rng.random((40, 50), np.float32), 1),
        np.ones((30, 20), np.float32),
        np.array([[0.25]], np.float32),
        np.array([[-0.0, 1e-30, 0.5, 1.0]], np.float32),
    ):
        assert percentile(values, percent) == pytest.approx(np.percentile(values.astype(np.float64), percent), abs=1e-9)


@pytest.mark.parametrize(("shape", "dtype"), [((37, 53), "uint8"), ((37, 53), "uint16"), ((20, 31, 3), "uint8")])
def test_pictures_written_in_strips_are_read_back(tmp_path, monkeypatch, shape, dtype):
    picture = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    monkeypatch.setattr(pictures, "STRIP_PX", 150)
    pictures.write_png(tmp_path / "picture.png", shape, dtype, lambda part: picture[part])
    with Image.open(tmp_path / "picture.png") as found:
        found.verify()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), picture)
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "picture.png"), cv2.IMREAD_UNCHANGED)[..., ::-1][..., ::-1],
        picture if len(shape) == 2 else picture[..., ::-1],
    )


def test_files_of_a_large_image_are_those_of_a_small_one(tmp_path, monkeypatch, backbone, probe, image):
    (whole,) = localize([image], backbone, probe, tmp_path / "whole", stride_px=56)
    for module in (planes, pictures, postprocess):
        monkeypatch.setattr(module, "STRIP_PX", 1000)
    (strips,) = localize([image], backbone, probe, tmp_path / "strips", stride_px=56)
    for file in whole.folder.iterdir():
        assert file.read_bytes() == (strips.folder / file.name).read_bytes() or file.suffix == ".png", file.name
        if file.suffix == ".png":
            np.testing.assert_array_equal(
                np.asarray(Image.open(file)), np.asarray(Image.open(strips.folder / file.name)), err_msg=file.name
            )


def test_foreign_folders_are_left_alone(tmp_path, backbone, probe, image):
    foreign = tmp_path / "out" / "photo"
    foreign.mkdir(parents=True)
    (foreign / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no result"):
        localize([image], backbone, probe, tmp_path / "out", stride_px=56)
    assert (foreign / "diary.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="is no folder"):
        localize([image], backbone, probe, image, stride_px=56)


def test_a_threshold_by_hand_is_named_as_such(tmp_path, backbone, probe, image):
    (result,) = localize([image], backbone, probe, tmp_path / "out", threshold=0.25, stride_px=56)
    record = json.loads((result.folder / "result.json").read_text())
    assert (record["threshold"], record["threshold_policy"]) == (0.25, "given by hand")


def test_files_load_the_backbone_that_the_card_names(tmp_path, probe, image, backbone):
    probe.save(tmp_path / "probe.safetensors")
    (result,) = localize_files(tmp_path / "probe.safetensors", [image], tmp_path / "out", stride_px=56)
    found = score_map(np.asarray(Image.open(image)), backbone, probe, stride_px=56)
    np.testing.assert_allclose(np.load(result.folder / "score.npy"), found.scores, atol=1e-6)
    anonymous = Probe(probe.weights, probe.bias, {**probe.card, "model": None, "model_fingerprint": None})
    anonymous.save(tmp_path / "anonymous.safetensors")
    with pytest.raises(ProbeError, match="does not name its backbone"):
        localize_files(tmp_path / "anonymous.safetensors", [image], tmp_path / "out")


def test_the_overlay_tints_by_score_and_draws_the_border():
    pixels = np.full((64, 64, 3), 100, np.uint8)
    scores = np.zeros((64, 64), np.float32)
    mask = np.zeros((64, 64), bool)
    np.testing.assert_array_equal(overlay(pixels, scores, mask), pixels)
    scores[20:40, 20:40] = 1
    mask[20:40, 20:40] = True
    tinted = overlay(pixels, scores, mask)
    assert tinted[30, 30, 0] > 140
    assert tuple(tinted[30, 30]) != (100, 100, 100)
    assert tuple(tinted[19, 30]) == (255, 255, 255)
    assert tuple(tinted[5, 5]) == (100, 100, 100)


def test_other_weights_than_the_probes_are_refused_by_name(tmp_path, image):
    name = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    fitted = load_backbone(name, weights="random:0", window_px=112, layers=(0,))
    card = make_card(
        model=fitted.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=["INPAINTED"],
        threshold=0.5,
        threshold_policy="fixed",
        weights="random:0",
    )
    path = tmp_path / "probe.safetensors"
    Probe(np.ones((1, fitted.spec.width), np.float32), np.zeros(1, np.float32), card).save(path)
    (result,) = localize_files(path, [image], tmp_path / "out", stride_px=112)
    assert json.loads((result.folder / "result.json").read_text())["weights"] == "random:0"
    with pytest.raises(IdentityError, match="weights_sha256"):
        localize_files(path, [image], tmp_path / "other", weights="random:1")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("threshold", "colour"), [(1.0000001, [0, 0, 0]), (1.0, [0, 0, 1]), (0.0, [1, 1, 1])])
def test_a_threshold_at_an_end_colours_what_is_marked_and_nothing_else(threshold, colour):
    assert centred(np.array([0.0, 1 - 2.0**-23, 1.0], np.float32), threshold).tolist() == colour


def test_colours_are_centred_on_the_threshold_along_the_logits():
    scores = np.array([0.0, 0.2, 0.5, 0.999995, 1.0], np.float32)
    np.testing.assert_allclose(centred(scores, 0.5), scores, atol=1e-7)
    moved = centred(scores, float(scores[3]))
    assert moved[3] == pytest.approx(0.5)
    assert (np.diff(moved) > 0).all()
    assert moved[2] < 1e-4
    pixels, mask = np.full((1, 5, 3), 100, np.uint8), np.zeros((1, 5), bool)
    tinted = overlay(pixels, scores[None], mask, threshold=float(scores[3]))
    assert len(np.unique(tinted[0, 2:], axis=0)) == 3


class TestSeen:
    """Whether a probe has seen an image's photograph is told by the bytes of the file."""

    def card(self, probe, **lists):
        return Probe(probe.weights, probe.bias, {**probe.card, "data": lists})

    @pytest.mark.parametrize("part", ["train", "val", "calibration"])
    def test_a_file_that_had_a_part_is_named_with_its_part(self, tmp_path, backbone, probe, image, part):
        mark, other = sha256_of_file(image)[:16], "0" * 16
        lists = {f"{name}_files": [mark if name == part else other] for name in ("train", "val", "calibration")}
        seeing = self.card(probe, **lists)
        expected = {"train": "trained on", "val": "chosen on", "calibration": "calibrated on"}[part]
        for skipped in (False, True):
            (result,) = localize([image], backbone, seeing, tmp_path / "out", stride_px=56)
            assert (result.seen, result.skipped) == (expected, skipped)
        record = json.loads((result.folder / "result.json").read_text())
        assert record["seen"]["kind"] == expected
        assert f"the probe was {expected} this photograph" in record["seen"]["says"]
        assert list(pd.read_parquet(tmp_path / "out" / "results.parquet")["seen"]) == [expected]

    def test_training_counts_more_than_choosing(self, probe, image):
        mark = sha256_of_file(image)[:16]
        found = self.card(probe, train_files=[mark], val_files=[mark]).seen_files()
        assert found == {mark: "trained on"}

    def test_other_bytes_are_not_recognized(self, tmp_path, backbone, probe, image):
        seeing = self.card(probe, train_files=[sha256_of_file(image)[:16]])
        copy = tmp_path / "copy.bmp"
        Image.open(image).save(copy)
        (result,) = localize([copy], backbone, seeing, tmp_path / "out", stride_px=56)
        assert result.seen == ""
        assert "saved again would not be recognized" in (result.folder / "result.json").read_text()

    def test_a_card_without_lists_says_that_nobody_knows(self, tmp_path, backbone, probe, image):
        (result,) = localize([image], backbone, probe, tmp_path / "out", stride_px=56)
        assert result.seen == "unknown"
