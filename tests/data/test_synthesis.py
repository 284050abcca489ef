"""The demo data: what is promised of families, masks, donors and files."""

from pathlib import Path

import numpy as np
import pytest

from dlprobe.data import Manifest, scan
from dlprobe.data.images import read_image, read_mask
from dlprobe.data.manifest import source_groups
from dlprobe.data.synthesis import HELD_OUT_GENERATORS, build_demo
from dlprobe.data.synthesis.masks import MASK_SHARES, blob_mask, window_frame
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph
from dlprobe.errors import DataError, OutputError
from dlprobe.spec import sha256_of_file

SIDE_PX, WINDOW_PX = 128, 126


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("synthesis") / "tiny"
    return build_demo(root, photographs=4, side_px=SIDE_PX, window_px=WINDOW_PX)


def rows(manifest: Manifest, **values: str):
    frame = manifest.frame
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return [row for _, row in frame.iterrows()]


def pixels(manifest: Manifest, row) -> np.ndarray:
    return read_image(manifest.root / row["path"])


def mask(manifest: Manifest, row) -> np.ndarray:
    return read_mask(manifest.root / row["mask"], (row["height"], row["width"]))


def real_of(manifest: Manifest, row) -> np.ndarray:
    return pixels(manifest, rows(manifest, source_id=row["source_id"], variant="real")[0])


def files_of(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): sha256_of_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_masks(tiny: Manifest, tmp_path: Path):
    options = {"photographs": 4, "side_px": SIDE_PX, "window_px": WINDOW_PX}
    build_demo(tmp_path / "again", **options)
    build_demo(tmp_path / "other", seed=1, **options)
    first, again, other = files_of(tiny.root), files_of(tmp_path / "again"), files_of(tmp_path / "other")
    assert again == first
    assert other.keys() == first.keys()
    masks = [name for name in first if "/mask-" in name]
    assert masks
    assert all(first[name] != other[name] for name in masks)
    assert first["astronaut/real.png"] == other["astronaut/real.png"]


def test_every_photograph_has_the_whole_family(tiny: Manifest):
    expected = {
        ("real", ""): 1,
        ("ae", "pca"): 1,
        ("ae", "sr"): 1,
        **{
            (variant, generator): 1
            for variant in ("sp", "fr")
            for generator in ("telea+pca", "ns+pca", "donor+pca", "telea+sr", "donor+sr")
        },
    }
    for _, images in tiny.frame.groupby("source_id"):
        assert images.groupby(["variant", "generator"]).size().to_dict() == expected
    assert set(HELD_OUT_GENERATORS) == {"sr", "telea+sr", "donor+sr"}
    assert set(tiny.frame["dataset"]) == {"demo"}


def test_the_csv_layout_reads_everything_that_was_written(tiny: Manifest):
    result = scan(tiny.root, layout="csv")
    assert not result.rejects
    assert not result.findings
    assert result.manifest.sha256 == tiny.sha256
    named = {*tiny.frame["path"], *tiny.frame["mask"], "manifest.csv"} - {""}
    assert named == set(files_of(tiny.root))


def test_a_splice_leaves_the_outside_bit_identical_and_changes_the_inside(tiny: Manifest):
    for row in rows(tiny, variant="sp"):
        real, image, inside = real_of(tiny, row), pixels(tiny, row), mask(tiny, row)
        np.testing.assert_array_equal(image[~inside], real[~inside])
        assert (image[inside] != real[inside]).any(axis=-1).mean() > 0.5


def test_a_regenerated_image_changes_outside_too_as_the_autoencoder_does(tiny: Manifest):
    for row in rows(tiny, variant="fr"):
        real, image, inside = real_of(tiny, row), pixels(tiny, row), mask(tiny, row)
        assert (image[~inside] != real[~inside]).any(axis=-1).mean() > 0.5
        coder = row["generator"].split("+")[1]
        encoded = pixels(tiny, rows(tiny, source_id=row["source_id"], variant="ae", generator=coder)[0])
        near = np.zeros_like(inside)
        ys, xs = np.nonzero(inside)  # an auto-encoder reaches at most two blocks of 8 px beyond the mask
        near[max(0, ys.min() - 16) : ys.max() + 17, max(0, xs.min() - 16) : xs.max() + 17] = True
        np.testing.assert_array_equal(image[~near], encoded[~near])


def test_a_splice_holds_what_the_regenerated_image_holds_inside(tiny: Manifest):
    for row in rows(tiny, variant="sp"):
        partner = rows(tiny, source_id=row["source_id"], variant="fr", generator=row["generator"])[0]
        inside = mask(tiny, row)
        assert partner["mask"] == row["mask"]
        np.testing.assert_array_equal(pixels(tiny, row)[inside], pixels(tiny, partner)[inside])


def test_masks_cover_the_share_of_a_window_that_their_kind_says(tiny: Manifest):
    seen = set()
    for row in rows(tiny, variant="sp"):
        area_px = mask(tiny, row).sum()
        assert area_px == round(MASK_SHARES[row["mask_kind"]] * WINDOW_PX**2)
        seen.add(row["mask_kind"])
    assert seen == set(MASK_SHARES)


def test_grey_photographs_stay_grey(tiny: Manifest):
    images = [pixels(tiny, row) for row in rows(tiny, source_id="skimage:brick")]
    assert len(images) == 13
    assert all((image == image[..., :1]).all() for image in images)


def test_donors_pair_up_within_groups(tiny: Manifest):
    groups = source_groups(tiny.frame)
    assert groups.nunique() == 2
    for row in rows(tiny, generator="donor+pca"):
        assert {row["source_id"], row["donor_id"]} in [
            {"skimage:astronaut", "skimage:coffee"},
            {"skimage:brick", "skimage:grass"},
        ]
    assert not tiny.frame.loc[~tiny.frame["generator"].str.startswith("donor"), "donor_id"].any()


def test_pairs_are_disjoint_and_leave_at_least_eight_groups():
    names = [name for pair in PAIRS for name in pair]
    assert len(names) == len(set(names)) == 2 * len(PAIRS)
    assert len(PAIRS) >= 8


def test_every_photograph_ships_with_the_installed_wheels():
    loaded = [load_photograph(name, 1016) for pair in PAIRS for name in pair]
    assert sum(not photograph.grey for photograph in loaded) == 10
    assert sum(min(photograph.pixels.shape[:2]) < 504 for photograph in loaded) >= 5
    assert max(max(photograph.pixels.shape[:2]) for photograph in loaded) == 1016


def test_a_large_photograph_is_cut_about_its_centre():
    whole = load_photograph("skimage:coffee.png", 10_000).pixels
    cut = load_photograph("skimage:coffee.png", 100).pixels
    np.testing.assert_array_equal(cut, whole[150:250, 250:350])


def test_a_missing_photograph_is_one_line():
    with pytest.raises(DataError, match=r"no image at .*nothing\.png; check the path"):
        load_photograph("skimage:nothing.png", 100)


@pytest.mark.parametrize("number", [2, 5, 18])
def test_an_impossible_number_of_photographs_is_refused(tmp_path: Path, number: int):
    with pytest.raises(DataError, match="an even number from 4 to 16"):
        build_demo(tmp_path / "demo", photographs=number)
    assert not any(tmp_path.iterdir())


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        build_demo(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_progress_counts_photographs(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    build_demo(
        tmp_path / "demo",
        photographs=4,
        side_px=64,
        window_px=56,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("size", [(300, 451), (512, 512), (872, 1000)])
@pytest.mark.parametrize("share", list(MASK_SHARES.values()))
def test_a_mask_has_its_area_and_lies_about_a_window(size: tuple[int, int], share: float):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        frame = window_frame(rng, size, 504)
        drawn = blob_mask(rng, size, frame, share)
        assert drawn.sum() == round(share * frame.h * frame.w)
        ys, xs = np.nonzero(drawn)
        assert frame.y <= np.median(ys) <= frame.y + frame.h
        assert frame.x <= np.median(xs) <= frame.x + frame.w
        box = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        assert drawn.sum() < 0.95 * box  # no rectangle


def test_frames_of_an_enlarged_image_are_its_windows_in_stored_pixels():
    # 300x451 is enlarged by sqrt(1016^2 / (300 * 451)) = 2.762, to 829x1246; windows lie at 0 and 325, 0 and 742
    found = {window_frame(np.random.default_rng(seed), (300, 451), 504) for seed in range(40)}
    expected = {(y, x) for y in (0.0, 325 * 300 / 829) for x in (0.0, 742 * 451 / 1246)}
    assert {(round(f.y, 6), round(f.x, 6)) for f in found} == {(round(y, 6), round(x, 6)) for y, x in expected}
    assert all(f.h == pytest.approx(504 * 300 / 829) for f in found)


@pytest.mark.parametrize("share", [0.0, 1e-7, 1.0, 1.5])
def test_a_mask_without_room_is_refused(share: float):
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="does not fit"):
        blob_mask(rng, (504, 504), window_frame(rng, (504, 504), 504), share)
