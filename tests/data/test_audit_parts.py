"""Parts of the auditor against independent references: verdicts, near-duplicates, shortcuts, polarity."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import binary_dilation, gaussian_filter
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from dlprobe.data.audit.duplicates import MOST_BITS, look, near_duplicates
from dlprobe.data.audit.examine import Examination, Subject
from dlprobe.data.audit.masks import polarity, variant_findings
from dlprobe.data.audit.shortcuts import area_under_curve, crossed_accuracy, read_wrapping
from dlprobe.data.audit.verdict import Verdict, background_verdict, dilated, recompressed
from dlprobe.errors import DataError


def photograph(seed, shape=(160, 176)):
    rng = np.random.default_rng(seed)
    values = sum(gaussian_filter(rng.standard_normal((*shape, 3)), (s, s, 0)) * s for s in (1, 4, 12, 30))
    return np.clip(128 + 40 * values / values.std(), 8, 247).astype(np.uint8)


@pytest.fixture(scope="module")
def pair():
    original = photograph(0)
    mask = np.zeros(original.shape[:2], bool)
    mask[40:90, 50:100] = True
    pasted = np.where(mask[..., None], photograph(1), original)
    noise = np.random.default_rng(2).normal(0, 10, original.shape)
    regenerated = np.where(mask[..., None], photograph(1), np.clip(original + noise, 0, 255).astype(np.uint8))
    return original, mask, pasted, regenerated


def verdict(folder, original, fake, mask, name="f.png", **save):
    Image.fromarray(fake).save(folder / name, **save)
    return background_verdict(original, np.asarray(Image.open(folder / name).convert("RGB")), mask, folder / name)


def test_lossless_pairs(tmp_path, pair):
    original, mask, pasted, regenerated = pair
    assert verdict(tmp_path, original, pasted, mask) == verdict(tmp_path, original, original, mask)
    spliced, fresh = verdict(tmp_path, original, pasted, mask), verdict(tmp_path, original, regenerated, mask)
    assert (spliced.kind, spliced.kept, spliced.recipe) == ("sp", 1.0, "lossless")
    assert fresh.kind == "fr"
    outside = ~binary_dilation(mask, np.ones((33, 33)))
    assert fresh.kept == pytest.approx((regenerated == original).all(axis=2)[outside].mean())


@pytest.mark.parametrize("quality", [60, 75, 90, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_pairs(tmp_path, pair, quality, subsampling):
    original, mask, pasted, regenerated = pair
    how = {"name": "f.jpg", "quality": quality, "subsampling": subsampling}
    assert verdict(tmp_path, original, pasted, mask, **how).kind == "sp"
    assert verdict(tmp_path, original, pasted, mask, **how).recipe == "jpeg"
    assert verdict(tmp_path, original, regenerated, mask, **how).kind == "fr"


def test_jpeg_share_of_kept_blocks_is_that_of_a_plain_transcription(tmp_path, pair):
    original, mask, _, regenerated = pair
    mixed = regenerated.copy()
    mixed[:, 100:] = original[:, 100:]
    found = verdict(tmp_path, original, mixed, mask, name="f.jpg", quality=80)
    with Image.open(tmp_path / "f.jpg") as header:
        buffer = io.BytesIO()
        Image.fromarray(original).save(buffer, "JPEG", qtables=header.quantization, subsampling=2)
    lumas = [np.asarray(Image.open(f).convert("L"), float) for f in (tmp_path / "f.jpg", buffer)]
    truth = np.asarray(Image.fromarray(original).convert("L"), float)
    outside = ~binary_dilation(mask, np.ones((33, 33)))
    kept = []
    for y in range(0, 160, 16):
        for x in range(0, 176, 16):
            box = np.s_[y : y + 16, x : x + 16]
            if outside[box].all():
                errors = [np.abs(truth[box] - luma[box]).mean() for luma in lumas]
                kept.append(errors[0] / max(errors[1], 0.3) < 1.1)
    assert found.kept == pytest.approx(np.mean(kept))
    assert found.kind == ""
    assert 0.3 < found.kept < 0.9


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 92])
def test_recompression_takes_tables_and_subsampling_from_the_fake(tmp_path, pair, quality, subsampling):
    colourful = np.where(np.arange(176)[:, None] % 3 == 0, [250, 10, 10], pair[0]).astype(np.uint8)
    Image.fromarray(colourful).save(tmp_path / "f.jpg", quality=quality, subsampling=subsampling)
    with Image.open(tmp_path / "f.jpg") as header:
        np.testing.assert_array_equal(recompressed(colourful, header), np.asarray(header))


def test_a_background_under_an_inverted_mask_says_nothing_of_the_variant():
    subject = Subject("p", "m", "sp", "g", "", "", ("q",))
    common = {"subject": subject, "partner": "q", "white_share": 0.5, "brightest": 255, "verdict": Verdict("fr", 0, "")}
    inverted = Examination(inside=0, outside=50, **common)
    wrong = Examination(inside=50, outside=5, **common)
    assert list(variant_findings([inverted])) == []
    assert [f.count for f in variant_findings([inverted, wrong])] == [1]


@pytest.mark.parametrize(
    ("path", "variant", "inside", "outside", "expected"),
    [
        ("a.png", "fr", 0.0, 1.5, 0),  # a smooth place painted smooth, behind an auto-encoder
        ("a.jpg", "sp", 0.2, 3.0, 0),  # the same behind compression
        ("a.png", "sp", 0.0, 1.5, -1),
        ("a.png", "aesp", 0.0, 4.0, -1),
        ("a.jpg", "sp", 3.0, 80.0, -1),
        ("a.png", "fr", 1.2, 94.1, -1),
        ("a.png", "fr", 6.6, 65.0, -1),
        ("a.png", "fr", 15.0, 25.0, 0),
        ("a.png", "fr", 94.1, 1.2, 1),
        ("a.png", "sp", 0.0, 0.4, 0),
    ],
)
def test_small_changes_do_not_turn_a_mask_round(path, variant, inside, outside, expected):
    subject = Subject(path, "m", variant, "g", "", "", ("q",))
    seen = Examination(subject=subject, partner="q", white_share=0.3, inside=inside, outside=outside)
    assert polarity(seen) == expected


def test_grey_jpeg_other_formats_and_masks_without_background(tmp_path, pair):
    original, mask, pasted, _ = pair
    grey = np.asarray(Image.fromarray(original).convert("L").convert("RGB"))
    fake = np.where(mask[..., None], 0, grey).astype(np.uint8)[..., 0]
    assert verdict(tmp_path, grey, fake, mask, name="g.jpg", quality=80).kind == "sp"
    webp = verdict(tmp_path, original, pasted, mask, name="f.webp")
    assert (webp.kind, webp.recipe) == ("", "")
    nothing = verdict(tmp_path, original, pasted, np.ones_like(mask))
    assert nothing.kind == ""
    assert np.isnan(nothing.kept)
    with pytest.raises(DataError, match="differ in size"):
        background_verdict(original, pasted[:-1], mask, tmp_path / "f.png")


def test_a_soft_rim_and_the_last_bit_of_a_lossy_photograph_are_forgiven(tmp_path, pair):
    original, mask, pasted, _ = pair
    alpha = gaussian_filter(mask.astype(float), 3)[..., None]
    soft = np.rint(alpha * pasted + (1 - alpha) * original).astype(np.uint8)
    assert verdict(tmp_path, original, soft, mask).kind == "sp"
    bits = np.random.default_rng(0).integers(-1, 2, original.shape)
    decoded = np.clip(original + bits, 0, 255).astype(np.uint8)
    Image.fromarray(pasted).save(tmp_path / "f.png")
    assert background_verdict(decoded, pasted, mask, tmp_path / "f.png", exact=False).kind == "sp"
    assert background_verdict(decoded, pasted, mask, tmp_path / "f.png").kind == "fr"


def test_dilation_is_scipys():
    mask = np.random.default_rng(0).random((60, 70)) > 0.997
    np.testing.assert_array_equal(dilated(mask, 5), binary_dilation(mask, np.ones((11, 11))))


def test_signs_are_those_of_the_cosine_transform():
    pixels = photograph(3)
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX), float)
    low = dctn(small, norm="ortho")[:8, :8].ravel()[1:]
    np.testing.assert_array_equal(look(pixels).signs, np.where(low > np.median(low), 1, -1))


def test_near_duplicates_survive_handling_and_strangers_do_not_match():
    originals = [photograph(seed) for seed in range(40)]
    changed = []
    for i, pixels in enumerate(originals[:20]):
        image = Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.resize((120 + i, 130), Image.Resampling.LANCZOS).point(lambda v: v * 0.9 + 5).save(
            buffer, "JPEG", quality=50
        )
        changed.append(np.asarray(Image.open(buffer)))
    looks = [look(p) for p in (*originals, *changed)]
    groups = ["a"] * 40 + ["b"] * 20
    assert sorted(near_duplicates(looks, groups)) == [(i, 40 + i) for i in range(20)]
    assert list(near_duplicates(looks, ["a"] * 60)) == []
    assert list(near_duplicates([], [])) == []


def test_near_duplicates_across_blocks_agree_with_a_plain_loop(monkeypatch):
    monkeypatch.setattr("dlprobe.data.audit.duplicates._MOST_NUMBERS", 4 * 19)
    looks = [look(photograph(seed % 7)) for seed in range(19)]
    groups = [str(i % 3) for i in range(19)]
    expected = [
        (i, j)
        for i in range(19)
        for j in range(i + 1, 19)
        if groups[i] != groups[j]
        and (looks[i].signs != looks[j].signs).sum() <= MOST_BITS
        and np.corrcoef(looks[i].thumbnail, looks[j].thumbnail)[0, 1] >= 0.97
    ]
    assert sorted(near_duplicates(looks, groups)) == expected
    assert len(expected) > 5


def test_flat_images_have_no_look():
    assert look(np.full((40, 40, 3), 200, np.uint8)) is None
    assert look(photograph(0)) is not None


def test_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 6, 50).astype(float)
        positive = rng.random(50) > 0.4
        assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_crossed_accuracy_is_that_of_a_rule_learnt_on_the_other_half():
    rng = np.random.default_rng(1)
    values = rng.choice(["a", "b", "c"], 300)
    fake = rng.random(300) < np.select([values == "a", values == "b"], [0.9, 0.5], 0.2)
    half = rng.random(300) > 0.5
    told = np.empty(300, bool)
    for learnt in (half, ~half):
        for value in "abc":
            here = learnt & (values == value)
            shares = [(here & part).sum() / (learnt & part).sum() for part in (fake, ~fake)]
            told[~learnt & (values == value)] = shares[0] > shares[1]
    assert crossed_accuracy(values, fake, half) == pytest.approx(balanced_accuracy_score(fake, told))
    unseen = np.array([str(i) for i in range(300)])
    assert crossed_accuracy(unseen, fake, half) == pytest.approx(0.5)


def test_wrapping_reads_format_and_quantisation(tmp_path):
    image = Image.fromarray(photograph(0))
    steps = {}
    for quality in (50, 95):
        image.save(tmp_path / "a.jpg", quality=quality)
        found = read_wrapping(tmp_path / "a.jpg", "s", True, (1, 2))
        assert (found.format, found.size, found.fake) == ("JPEG", (1, 2), True)
        steps[quality] = found.quality_step
    with Image.open(tmp_path / "a.jpg") as opened:
        assert steps[95] == pytest.approx(np.mean(opened.quantization[0]))
    assert steps[50] > 8 * steps[95]
    image.save(tmp_path / "a.png")
    assert read_wrapping(tmp_path / "a.png", "s", False, (1, 2)).quality_step == 0
    (tmp_path / "x.png").write_bytes(b"x")
    assert read_wrapping(tmp_path / "x.png", "s", False, (1, 2)) is None
    assert read_wrapping(tmp_path / "none.png", "s", False, (1, 2)) is None


@pytest.mark.parametrize(
    ("inside", "outside", "share", "sign"),
    [(80, 3, 0.3, 1), (3, 80, 0.7, -1), (5, 4, 0.5, 0), (0.4, 0.1, 0.5, 0), (80, float("nan"), 1.0, 0), (9, 9, 0.0, 0)],
)
def test_polarity(inside, outside, share, sign):
    subject = Subject("p", "m", "fr", "", "", "", ("q",))
    seen = Examination(subject=subject, partner="q", inside=inside, outside=outside, white_share=share, brightest=255)
    assert polarity(seen) == sign
