"""The auditor: a clean set yields nothing, and each planted fault is found by its name."""

import copy
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dlprobe.data.audit import audit
from dlprobe.data.audit.auditing import spread_sample
from dlprobe.data.layouts import Guess
from dlprobe.data.manifest import Manifest
from dlprobe.data.scan import scan

SIDE = 112
SPLITS = ("train", "train", "val", "test")


def photograph(seed, side=SIDE):
    """A picture with structure at every scale, so that no two look alike."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal((side, side, 3)), (s, s, 0)) * s for s in (1, 4, 12, 30)]
    values = sum(layers)
    return np.clip(128 + 40 * values / values.std(), 8, 247).astype(np.uint8)


def autoencoded(pixels, seed=0):
    noise = np.random.default_rng(seed).choice([-4, -3, 3, 4], pixels.shape)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)


class Set:
    """A data set of families, of which tests change single files and rows."""

    def __init__(self, root, photographs=12):
        self.root = root
        self.rows = {}
        for i in range(photographs):
            real = photograph(i)
            mask = np.zeros((SIDE, SIDE), bool)
            mask[30 : 60 + i, 40:80] = True
            other = photograph(1000 + i)
            pasted = np.where(mask[..., None], autoencoded(other), real)
            regenerated = np.where(mask[..., None], autoencoded(other), autoencoded(real))
            restored = np.where(mask[..., None], autoencoded(real), real)
            self.add(f"m/{i}.png", np.where(mask, 255, 0).astype(np.uint8))
            split = SPLITS[i % 4]
            self.add(f"real/{i}.png", real, "real", i, split)
            self.add(f"ae/{i}.png", autoencoded(real), "ae", i, split, generator="g")
            self.add(f"aesp/{i}.png", restored, "aesp", i, split, f"m/{i}.png", "g")
            self.add(f"sp/{i}.png", pasted, "sp", i, split, f"m/{i}.png", "g")
            self.add(f"fr/{i}.png", regenerated, "fr", i, split, f"m/{i}.png", "g")

    def add(self, path, pixels, variant="", source="", split="", mask="", generator="", **save):  # noqa: PLR0917
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / path, **save)
        if variant:
            self.rows[path] = {
                "path": path,
                "variant": variant,
                "source_id": f"s:{source}",
                "split": split,
                "mask": mask,
                "generator": generator,
                "width": pixels.shape[1],
                "height": pixels.shape[0],
            }

    def pixels(self, path):
        return np.asarray(Image.open(self.root / path))

    def audit(self, **options):
        manifest = Manifest.from_records(self.rows.values(), self.root)
        return {finding.name: finding for finding in audit(manifest, **options)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Set(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def clean(built, tmp_path):
    shutil.copytree(built.root, tmp_path, dirs_exist_ok=True)
    mine = copy.copy(built)
    mine.root, mine.rows = tmp_path, copy.deepcopy(built.rows)
    return mine


def test_a_clean_set_yields_nothing(clean):
    assert clean.audit() == {}
    assert clean.audit(sample=None) == {}


def test_a_truncated_image_is_unreadable(clean):
    for path in ("sp/3.png", "real/5.png"):
        data = (clean.root / path).read_bytes()
        (clean.root / path).write_bytes(data[: len(data) // 2])
    found = clean.audit()
    assert found["unreadable"].count == 2
    assert set(found["unreadable"].examples) == {"sp/3.png", "real/5.png"}
    assert found["unreadable"].severity == "error"


@pytest.mark.parametrize(
    ("name", "shape"), [("mask-size", (SIDE // 2, SIDE // 2)), ("mask-transposed", (SIDE, SIDE - 16))]
)
def test_masks_of_another_size_and_transposed(clean, name, shape):
    clean.add("m/2.png", np.full(shape, 255, np.uint8))
    if name == "mask-transposed":
        clean.add("sp/2.png", photograph(2)[: SIDE - 16], "sp", 2, "val", "m/2.png", "g")
        for path in ("fr/2.png", "aesp/2.png"):
            del clean.rows[path]
    assert "sp/2.png" in clean.audit()[name].examples


def test_a_mask_that_is_no_image(clean):
    (clean.root / "m/2.png").write_bytes(b"nothing")
    assert set(clean.audit()["mask-unreadable"].examples) == {"sp/2.png", "fr/2.png", "aesp/2.png"}


def test_masks_with_more_than_two_levels_unless_declared_soft(clean):
    soft = gaussian_filter(clean.pixels("m/4.png").astype(float), 1.5).astype(np.uint8)
    clean.add("m/4.png", soft)
    found = clean.audit()
    assert found["mask-levels"].count == 3
    assert set(found) == {"mask-levels"}
    for path in ("sp/4.png", "fr/4.png", "aesp/4.png"):
        clean.rows[path]["mask_kind"] = "bbox-soft"
    assert clean.audit() == {}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mask-dark", lambda mask: mask // 255),
        ("mask-empty", lambda mask: mask * 0),
        ("mask-full", lambda mask: mask * 0 + 255),
    ],
)
def test_masks_of_zeros_and_ones_empty_and_full(clean, name, change):
    clean.add("m/4.png", change(clean.pixels("m/4.png")))
    found = clean.audit()[name]
    assert found.count == 3
    assert set(found.examples) == {"sp/4.png", "fr/4.png", "aesp/4.png"}


def test_an_inverted_mask_is_told_by_its_partner(clean):
    clean.add("m/4.png", 255 - clean.pixels("m/4.png"))
    found = clean.audit()
    assert set(found["mask-inverted"].examples) == {"sp/4.png", "fr/4.png", "aesp/4.png"}
    assert "variant-contradicted" not in found


def test_without_partners_mostly_white_masks_are_suspected(clean):
    for i in range(12):
        clean.rows.pop(f"real/{i}.png")
    assert clean.audit() == {}
    for i in range(12):
        clean.add(f"m/{i}.png", 255 - clean.pixels(f"m/{i}.png"))
    found = clean.audit()
    assert set(found) == {"mask-mostly-white"}
    assert found["mask-mostly-white"].count == 36


@pytest.mark.parametrize(("declared", "true"), [("sp", "fr"), ("fr", "sp"), ("aesp", "fr"), ("ae", "sp")])
def test_a_variant_that_the_pixels_contradict(clean, declared, true):
    for i in (1, 6):
        row = clean.rows[f"{declared}/{i}.png"]
        (clean.root / row["path"]).write_bytes((clean.root / f"{true}/{i}.png").read_bytes())
        if declared == "ae":
            (clean.root / row["path"]).write_bytes((clean.root / f"real/{i}.png").read_bytes())
    found = clean.audit()
    assert set(found) == {"variant-contradicted"}
    assert found["variant-contradicted"].count == 2
    kind = "sp" if true == "sp" else "fr"
    assert (
        f"declared {declared} by g, but the background is that of {kind} in 2 of 12"
        in found["variant-contradicted"].detail
    )


@pytest.mark.parametrize("quality", [75, 90])
def test_a_variant_that_jpeg_pixels_contradict(clean, quality):
    for kind in ("sp", "fr"):
        for i in range(12):
            row = clean.rows.pop(f"{kind}/{i}.png")
            pixels = clean.pixels(row["path"])
            if kind == "fr":  # what an auto-encoder loses must exceed what compression loses
                rng = np.random.default_rng(i)
                pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
            clean.add(f"{kind}/{i}.jpg", pixels, kind, i, row["split"], row["mask"], "g", quality=quality)
    found = clean.audit()
    assert "variant-contradicted" not in found
    clean.rows["sp/1.jpg"]["variant"] = "fr"
    clean.rows["fr/2.jpg"]["variant"] = "sp"
    found = [f for f in audit(Manifest.from_records(clean.rows.values(), clean.root)) if f.name.startswith("variant")]
    assert sorted(f.examples for f in found) == [("fr/2.jpg",), ("sp/1.jpg",)]


def test_near_duplicates_across_splits_under_different_sources(clean):
    again = Image.fromarray(photograph(0)).resize((SIDE + 48, SIDE + 48), Image.Resampling.BICUBIC)
    clean.add("real/copy.jpg", np.asarray(again), "real", "copy", "test", quality=60)
    found = clean.audit()["near-duplicate"]
    assert found.count == 1
    assert set(found.examples) == {"real/0.png", "real/copy.jpg"}
    clean.rows["real/copy.jpg"]["split"] = "train"
    assert "near-duplicate" not in clean.audit()


def test_near_duplicates_across_data_sets_where_there_are_no_splits(clean):
    for row in clean.rows.values():
        row |= {"split": "", "dataset": "a"}
    clean.add("real/copy.png", photograph(0)[:, ::1], "real", "copy")
    clean.rows["real/copy.png"]["dataset"] = "b"
    assert clean.audit()["near-duplicate"].count == 1


def test_sources_across_splits_data_sets_and_what_was_seen(clean):
    clean.rows["ae/0.png"]["split"] = "test"
    assert clean.audit()["source-crosses-splits"].examples == ("s:0",)
    clean.rows["ae/0.png"]["split"] = "train"
    for path, row in clean.rows.items():
        row["dataset"] = "b" if path == "sp/7.png" else "a"
    assert clean.audit()["source-in-two-datasets"].examples == ("s:7",)
    for row in clean.rows.values():
        row["dataset"] = "a"
    seen = clean.audit(seen={"dinolizer": ["s:3", "s:99"], "other": ["x"]})["source-seen"]
    assert (seen.examples, seen.count, "dinolizer" in seen.detail) == (("s:3",), 1, True)


def test_photographs_of_coco_may_have_been_seen_by_a_backbone(clean):
    clean.rows["real/0.png"]["source_id"] = "coco:000000000001"
    found = clean.audit(sample=0)["backbone-may-have-seen"]
    assert (found.severity, found.examples) == ("info", ("coco:000000000001",))
    clean.rows["real/0.png"]["dataset"] = "cocoglide"
    assert clean.audit(sample=0) == {}


def rewrap(clean, kinds, **how):
    """Store the images of some variants in another wrapping."""
    for path in [path for path, row in clean.rows.items() if row["variant"] in kinds]:
        row = clean.rows.pop(path)
        new = path.replace(".png", ".jpg")
        Image.open(clean.root / path).save(clean.root / new, **how)
        clean.rows[new] = {**row, "path": new}


def test_a_format_shortcut(clean):
    rewrap(clean, {"real"}, quality=95)
    found = clean.audit()["shortcut-format"]
    assert found.severity == "error"
    assert "1.00" in found.detail
    assert "JPEG is most frequent among authentic images, PNG among fakes" in found.detail


def test_a_quality_shortcut_and_none_at_equal_quality(clean):
    rewrap(clean, {"real"}, quality=95)
    rewrap(clean, {"ae", "aesp", "sp", "fr"}, quality=95)
    assert not {"shortcut-format", "shortcut-quality"} & set(clean.audit())
    for path, row in clean.rows.items():
        if row["variant"] != "real":
            Image.fromarray(clean.pixels(path)).save(clean.root / path, quality=75)
    found = clean.audit()["shortcut-quality"]
    assert found.severity == "error"
    for path, where in (("real/0.jpg", "authentic images"), ("sp/0.jpg", "fakes")):
        with Image.open(clean.root / path) as image:
            assert f"{np.mean(image.quantization[0]):.1f} in {where}" in found.detail


def test_a_size_shortcut(clean):
    for i in range(12):
        row = clean.rows[f"real/{i}.png"]
        clean.add(row["path"], photograph(i, SIDE + 8), "real", i, row["split"])
    found = clean.audit()["shortcut-size"]
    assert f"{SIDE + 8}x{SIDE + 8} is most frequent among authentic images, {SIDE}x{SIDE} among fakes" in found.detail


def test_guesses_are_settled_by_the_pixels(clean):
    guesses = [Guess("g restores", "variant", "g"), Guess("white is new", "polarity"), Guess("h", "variant", "h")]
    manifest = Manifest.from_records(clean.rows.values(), clean.root)
    right = [f for f in audit(manifest, guesses=guesses) if f.name == "guess"]
    assert [f.severity for f in right] == ["info"] * 3
    assert right[0].detail == "g restores; the pixels agree in 48, disagree in 0 and say nothing in 0 of 48"
    assert right[1].detail.startswith("white is new; the pixels agree in 36, disagree in 0")
    assert right[2].detail == "h; no sampled image has a partner to check it on"
    swapped = {"sp": "fr", "fr": "sp"}
    rows = [{**row, "variant": swapped.get(row["variant"], row["variant"])} for row in clean.rows.values()]
    rows = [row for row in rows if row["variant"] in {"sp", "fr", "real"}]
    wrong = [f for f in audit(Manifest.from_records(rows, clean.root), guesses=guesses[:1]) if f.name == "guess"]
    assert (wrong[0].severity, "disagree in 24" in wrong[0].detail) == ("warning", True)


def test_the_sample_is_seeded_spread_and_can_be_all_or_none(clean):
    frame = Manifest.from_records(clean.rows.values(), clean.root).frame
    one = spread_sample(frame, ["variant"], 10, seed=1)
    assert list(one["variant"].value_counts()) == [2] * 5
    assert list(one.index) == sorted(one.index)
    assert list(spread_sample(frame, ["variant"], 10, seed=1)["path"]) == list(one["path"])
    assert list(spread_sample(frame, ["variant"], 10, seed=2)["path"]) != list(one["path"])
    assert len(spread_sample(frame, ["variant"], None, seed=1)) == len(frame)
    for path in clean.rows:
        (clean.root / path).write_bytes(b"")
    assert clean.audit(sample=0) == {}
    assert clean.audit(sample=10)["unreadable"].count == 10
    assert clean.audit(sample=None)["unreadable"].count == 60


def test_findings_come_with_the_gravest_first(clean):
    rewrap(clean, {"real"}, quality=95)
    clean.rows["ae/0.png"]["split"] = "test"
    clean.rows["ae/1.png"]["source_id"] = "coco:000000000001"
    manifest = Manifest.from_records(clean.rows.values(), clean.root)
    severities = [finding.severity for finding in audit(manifest)]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert {"error", "info"} <= set(severities)


def test_a_scan_audits(clean):
    lines = ["path,mask,variant,source_id,split,generator"]
    lines += [",".join(str(r[k]) for k in lines[0].split(",")) for r in clean.rows.values()]
    (clean.root / "manifest.csv").write_text("\n".join(lines))
    assert scan(clean.root).findings == []
    clean.add("m/4.png", 255 - clean.pixels("m/4.png"))
    assert [f.name for f in scan(clean.root).faults] == ["mask-inverted"]
    assert scan(clean.root, sample=0).faults == []
