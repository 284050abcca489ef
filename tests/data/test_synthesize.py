"""Data sets of a user's photographs: what is promised of families, masks, parameters and files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from dlprobe.data import scan
from dlprobe.data.images import read_image, read_mask
from dlprobe.data.manifest import source_groups
from dlprobe.data.synthesis import SynthesisSettings, synthesize
from dlprobe.data.synthesis.autoencoders import fit_pca, pca_moments
from dlprobe.data.synthesis.generator import LADDER, MASK_KINDS
from dlprobe.data.synthesis.generator import backends as backends_module
from dlprobe.data.synthesis.generator.shapes import box_around, draw_mask, object_mask, stroke_mask
from dlprobe.data.synthesis.inpainters import INPAINTERS
from dlprobe.data.synthesis.masks import Frame
from dlprobe.data.synthesis.photographs import load_photograph
from dlprobe.errors import DataError, OutputError, RegistryError
from dlprobe.spec import sha256_of_file

WINDOW_PX = 112
NAMES = (
    "skimage:astronaut.png",
    "skimage:coffee.png",
    "skimage:camera.png",
    "skimage:brick.png",
    "skimage:chelsea.png",
)
SMALL = SynthesisSettings(window_px=WINDOW_PX, side_px=130)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a folder of five photographs, two of them grey."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in NAMES:
        photograph = load_photograph(name, 150)
        Image.fromarray(photograph.pixels).save(folder / f"{photograph.name}.png")
    return folder


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory):
    """Return the report of a whole run with all four offline generators."""
    out = tmp_path_factory.mktemp("made") / "set"
    return synthesize([photographs], out, settings=SMALL, generators=("telea+pca", "donor+pca", "ns+sr", "donor+sr"))


def parameters(report):
    lines = (report.path / "parameters.jsonl").read_text().splitlines()
    return {row["path"]: row for row in map(json.loads, lines)}


def pixels(report, row):
    return read_image(report.path / row["path"])


def mask(report, row):
    return read_mask(report.path / row["mask"], (row["height"], row["width"]))


def rows(report, **values):
    frame = report.manifest.frame
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return [row for _, row in frame.iterrows()]


def real_of(report, row):
    return pixels(report, rows(report, source_id=row["source_id"], variant="real")[0])


def files_of(root: Path):
    return {p.relative_to(root).as_posix(): sha256_of_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_photograph_has_the_whole_family(made):
    frame = made.manifest.frame
    assert frame["source_id"].nunique() == len(NAMES)
    for _, images in frame.groupby("source_id"):
        assert images["variant"].value_counts().to_dict() == {"real": 1, "ae": 2, "sp": 12, "fr": 12}
        kinds = {kind.partition("-")[0] for kind in images["mask_kind"]} - {""}
        assert kinds == {"object", "random", "sized"}
    assert not made.rejects


def test_the_csv_layout_reads_everything_that_was_written(made):
    result = scan(made.path, layout="csv")
    assert not result.rejects
    assert result.manifest.sha256 == made.manifest.sha256
    named = {*made.manifest.frame["path"], *made.manifest.frame["mask"]} - {""}
    assert named | {"manifest.csv", "parameters.jsonl", "synthesis.json"} == set(files_of(made.path))
    assert all((made.path / name).read_bytes().startswith(b"\x89PNG\r\n") for name in named)


def test_the_real_image_is_the_photograph_cut_about_its_centre(made, photographs):
    for row in rows(made, variant="real"):
        whole = read_image(photographs / f"{row['source_id'].partition(':')[2]}.png")
        np.testing.assert_array_equal(pixels(made, row), whole[10:140, 10:140])


def test_a_splice_is_the_photograph_outside_and_the_regenerated_image_inside(made):
    for row in rows(made, variant="sp"):
        real, image, inside = real_of(made, row), pixels(made, row), mask(made, row)
        (whole,) = rows(made, variant="fr", generator=row["generator"], mask=row["mask"])
        np.testing.assert_array_equal(image[~inside], real[~inside])
        np.testing.assert_array_equal(image[inside], pixels(made, whole)[inside])
        assert (image[inside] != real[inside]).any(axis=-1).mean() > 0.5


def test_a_regenerated_image_went_wholly_through_an_autoencoder_that_never_saw_it(made):
    seen = 0
    for row in rows(made, variant="fr", generator="telea+pca"):
        listed = parameters(made)[row["path"]]
        groups = source_groups(made.manifest.frame)
        own = made.manifest.frame["source_id"] == row["source_id"]
        donor = rows(made, source_id=row["source_id"], generator="donor+pca")[0]["donor_id"]
        assert groups[own].nunique() == 1
        assert set(listed["fitted_on"]) == set(made.manifest.frame["source_id"]) - {row["source_id"], donor}
        others = [pixels(made, rows(made, source_id=name, variant="real")[0]) for name in listed["fitted_on"]]
        coder = fit_pca([pca_moments(other) for other in others])
        real = real_of(made, row)
        rng = np.random.default_rng(0)  # not drawn from by this filling
        expected = coder(INPAINTERS["telea"](real, mask(made, row), real, rng))
        if (real == real[..., :1]).all():
            expected = np.repeat(np.rint(expected.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
        np.testing.assert_array_equal(pixels(made, row), expected)
        seen += 1
    assert seen == 15


def test_parameters_stand_beside_every_image_and_agree_with_the_files(made):
    table = parameters(made)
    assert set(table) == set(made.manifest.frame["path"])
    for _, row in made.manifest.frame.iterrows():
        listed = table[row["path"]]
        for name in ("mask", "variant", "source_id", "donor_id", "generator", "mask_kind"):
            assert listed[name] == row[name]
        assert listed["seed"] == 0
        assert listed["cut"] == {"y": 10, "x": 10, "h": 130, "w": 130}
        if row["mask"]:
            inside = mask(made, row)
            assert listed["mask_px"] == inside.sum()
            assert listed["mask_share_of_image"] == inside.mean()
            assert listed["mask_share_of_window"] == pytest.approx(inside.sum() / WINDOW_PX**2)
            assert listed["mask_share_wanted"] == pytest.approx(listed["mask_share_of_window"], rel=0.5)
            assert f"{listed['inpainter']}+{listed['autoencoder']}" == row["generator"]
    run = json.loads((made.path / "synthesis.json").read_text())
    assert run["settings"]["shares"] == list(SMALL.shares)
    assert {item["source_id"] for item in run["photographs"]} == set(made.manifest.frame["source_id"])


def test_donors_are_other_photographs_named_only_where_used_and_make_small_groups(made):
    frame = made.manifest.frame
    donated = frame["generator"].str.startswith("donor")
    assert (frame.loc[~donated, "donor_id"] == "").all()
    assert set(frame.loc[donated, "donor_id"]) == set(frame["source_id"])
    assert (frame.loc[donated, "donor_id"] != frame.loc[donated, "source_id"]).all()
    assert source_groups(frame).nunique() == 2  # five photographs: a pair and a round of three


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_masks(photographs, tmp_path):
    options = {"generators": ("donor+pca",)}
    images = [photographs / "astronaut.png", photographs / "brick.png", photographs / "coffee.png"]
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        settings = SynthesisSettings(seed=seed, window_px=56, side_px=64)
        synthesize(images, tmp_path / name, settings=settings, **options)
    one, again, other = (files_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    masks = [name for name in one if "/mask-" in name]
    assert len(masks) == 9
    assert all(one[name] != other[name] for name in masks)


def test_the_ladder_covers_half_a_percent_to_sixty_percent_of_a_window_exactly(photographs, tmp_path):
    settings = SynthesisSettings(window_px=WINDOW_PX, side_px=130, ladder=True)
    report = synthesize([photographs], tmp_path / "set", settings=settings, generators=("telea+sr",))
    assert (min(LADDER), max(LADDER)) == (0.005, 0.60)
    for _, images in report.manifest.frame.groupby("source_id"):
        spliced = images[images["variant"] == "sp"]
        areas = sorted(int(mask(report, row).sum()) for _, row in spliced.iterrows())
        assert areas == [round(share * WINDOW_PX**2) for share in LADDER]
        assert "sized-0.5pct" in set(spliced["mask_kind"])


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("share", [0.005, 0.02, 0.25, 0.6])
def test_drawn_masks_come_near_the_share_and_differ_by_seed(photographs, kind, share):
    image = read_image(photographs / "coffee.png")
    frame = Frame(10.0, 20.0, 112.0, 112.0)
    drawn = [draw_mask(kind, np.random.default_rng(seed), image, frame, share) for seed in range(4)]
    for found in drawn:
        assert found.shape == image.shape[:2]
        assert found.sum() == pytest.approx(share * 112**2, rel={"sized": 0.01, "box": 0.2}.get(kind, 0.5), abs=8)
        ys, xs = np.nonzero(found)
        assert 10 - 30 <= np.median(ys) <= 122 + 30
        assert 20 - 30 <= np.median(xs) <= 132 + 30
        if kind == "box":
            np.testing.assert_array_equal(found, box_around(found))
    assert any((found != drawn[0]).any() for found in drawn[1:])
    again = draw_mask(kind, np.random.default_rng(0), image, frame, share)
    np.testing.assert_array_equal(again, drawn[0])


def test_strokes_stay_in_the_frame_are_broken_and_overshoot_by_less_than_one():
    frame, area_px = Frame(20.0, 30.0, 100.0, 120.0), 3000
    pieces = []
    for seed in range(5):
        found = stroke_mask(np.random.default_rng(seed), (200, 220), frame, area_px)
        brush_px = round(0.2 * np.sqrt(area_px))
        assert area_px <= found.sum() < area_px + 4 * brush_px**2
        ys, xs = np.nonzero(found)
        assert ys.min() >= 20 - brush_px
        assert ys.max() <= 120 + brush_px
        assert xs.min() >= 30 - brush_px
        assert xs.max() <= 150 + brush_px
        pieces.append(ndimage.label(found)[1])
    assert max(pieces) > 1


def test_shares_go_round_with_photographs_and_kinds():
    settings = SynthesisSettings(shares=(0.1, 0.2, 0.3))
    assert settings.masks_wanted(0) == [("object", 0.1), ("random", 0.2), ("sized", 0.3)]
    assert settings.masks_wanted(1) == [("object", 0.2), ("random", 0.3), ("sized", 0.1)]
    assert SynthesisSettings(ladder=True).masks_wanted(5) == [("sized", share) for share in LADDER]


def test_an_object_mask_is_one_piece_that_follows_edges():
    image = np.full((120, 160, 3), 60, np.uint8)
    y, x = np.mgrid[:120, :160]
    disc = (y - 60) ** 2 + (x - 80) ** 2 <= 35**2
    image[disc] = (200, 120, 40)
    image = np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    frame = Frame(30.0, 50.0, 60.0, 60.0)  # its inner half lies within the disc
    for seed in range(4):
        found = object_mask(np.random.default_rng(seed), image, frame, int(disc.sum()))
        assert (found & disc).sum() / (found | disc).sum() > 0.85
        assert ndimage.label(found)[1] == 1


def test_masks_of_the_user_are_cut_as_the_photographs_are(photographs, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    whole = np.zeros((150, 150), np.uint8)
    whole[40:90, 60:100] = 255
    whole[40:50, 60:70] = 0
    for name in ("astronaut", "brick", "coffee"):
        Image.fromarray(whole).save(folder / f"{name}_mask.png")
    Image.fromarray(whole[:100]).save(folder / "camera.png")
    settings = SynthesisSettings(
        window_px=WINDOW_PX, side_px=130, object_masks=folder, mask_kinds=("object", "box", "sized")
    )
    report = synthesize([photographs], tmp_path / "set", settings=settings)
    assert {Path(reject.path).stem for reject in report.rejects} == {"camera", "chelsea"}
    assert {path.name for path in report.path.iterdir() if path.is_dir()} == {"astronaut", "brick", "coffee"}
    for row in rows(report, mask_kind="object"):
        np.testing.assert_array_equal(mask(report, row), whole[10:140, 10:140] > 0)
    for row in rows(report, mask_kind="box"):
        np.testing.assert_array_equal(mask(report, row), box_around(whole[10:140, 10:140] > 0))
        assert parameters(report)[row["path"]]["mask_share_wanted"] is None


def test_source_ids_are_unique_canonical_and_no_photograph_counts_twice(photographs, tmp_path):
    folder = tmp_path / "many"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    copies = {
        "a/000000123456.png": "astronaut",
        "b/COCO_val2014_000000123456.png": "coffee",  # COCO's number tells one photograph, whatever its pixels
        "a/same name.png": "coffee",
        "b/same name.png": "brick",
        "b/twin.png": "astronaut",
        "b/manifest.csv.png": "camera",
    }
    for target, name in copies.items():
        (folder / target).write_bytes((photographs / f"{name}.png").read_bytes())
    report = synthesize([folder, folder / "a"], tmp_path / "set", settings=SMALL)
    ids = sorted(report.manifest.frame["source_id"].unique())
    assert len(ids) == 4
    assert ids[0] == "coco:000000123456"
    assert [name[:21] for name in ids[1:]] == [
        "synthesized:manifest_",
        "synthesized:same_name",
        "synthesized:same_name",
    ]
    assert {Path(reject.path).name for reject in report.rejects} == {"COCO_val2014_000000123456.png", "twin.png"}
    assert all("the same photograph as" in reject.reason for reject in report.rejects)


def test_an_unreadable_photograph_among_many_is_a_reject(photographs, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes((photographs / "coffee.png").read_bytes()[:3000])
    images = [bad, *sorted(photographs.iterdir())[:3]]
    calls = []
    report = synthesize(
        images, tmp_path / "set", settings=SMALL, progress=lambda done, total: calls.append((done, total))
    )
    assert [reject.path for reject in report.rejects] == [str(bad)]
    assert report.manifest.frame["source_id"].nunique() == 3
    assert calls == [(done, 8) for done in range(1, 8)]
    with pytest.raises(DataError, match=r"not one of 1 photographs could be read.*bad\.png"):
        synthesize([bad], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_too_few_photographs_for_the_offline_autoencoders_are_one_line(photographs, tmp_path):
    images = sorted(photographs.iterdir())
    with pytest.raises(DataError, match="its donor, and 2 can be used; give at least 3"):
        synthesize(images[:2], tmp_path / "set", settings=SMALL)
    with pytest.raises(DataError, match="the altered one, and 1 can be used; give at least 2"):
        synthesize(images[:1], tmp_path / "set", settings=SMALL, generators=("telea+pca",))
    assert not any(tmp_path.iterdir())
    report = synthesize(images[:2], tmp_path / "set", settings=SMALL, generators=("telea+pca",))
    assert len(report.manifest) == 2 * (1 + 1 + 3 * 2)


def test_many_photographs_are_fitted_on_a_bounded_number(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(backends_module, "FITTING_PHOTOGRAPHS", 2)
    report = synthesize([photographs], tmp_path / "set", settings=SMALL, generators=("telea+pca",))
    fitted = [row["fitted_on"] for row in parameters(report).values() if row["variant"] == "ae"]
    assert sorted(map(len, fitted)) == [1, 1, 2, 2, 2]  # the two that are fitted on leave themselves out


def test_an_existing_path_is_refused_and_kept(photographs, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        synthesize([photographs], tmp_path, settings=SMALL)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_of_photographs_does_not_get_the_fakes(photographs):
    before = sorted(photographs.rglob("*"))
    with pytest.raises(OutputError, match="would be taken for photographs"):
        synthesize([photographs], photographs / "deep" / "set", settings=SMALL)
    assert sorted(photographs.rglob("*")) == before


def test_what_cannot_be_asked_is_refused_in_words(photographs, tmp_path):
    out = tmp_path / "set"
    with pytest.raises(DataError, match="no mask kind 'objects'"):
        SynthesisSettings(mask_kinds=("objects",))
    with pytest.raises(DataError, match=r"share of 1\.5 is out of range"):
        SynthesisSettings(shares=(1.5,))
    with pytest.raises(DataError, match="data set name"):
        SynthesisSettings(dataset="my:set")
    with pytest.raises(DataError, match="no folder of masks"):
        SynthesisSettings(object_masks=tmp_path / "none")
    with pytest.raises(DataError, match="seed"):
        SynthesisSettings(seed=-1)
    with pytest.raises(RegistryError, match="did you mean diffusers"):
        synthesize([photographs], out, backend="difusers")
    with pytest.raises(DataError, match="back end offline has no option model"):
        synthesize([photographs], out, model="x")
    with pytest.raises(RegistryError, match="did you mean telea"):
        synthesize([photographs], out, generators=("tela+pca",))
    with pytest.raises(DataError, match=r"names no offline auto-encoder; write such as telea\+pca"):
        synthesize([photographs], out, generators=("telea",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image to make a data set of"):
        synthesize([tmp_path / "empty"], out)
    tiny = SynthesisSettings(window_px=8, side_px=8, ladder=True)
    with pytest.raises(DataError, match=r"not one of 5 photographs could be altered.*a mask of 0 px"):
        synthesize([photographs], out, settings=tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_manifest_is_what_pandas_reads(made):
    table = pd.read_csv(made.path / "manifest.csv", keep_default_na=False)
    assert sorted(table["path"]) == list(made.manifest.frame["path"])
    assert set(table["dataset"]) == {"synthesized"}
