"""Images of the exact sizes of the published data sets go the whole way, scaled alike in training and test."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import scan
from dlprobe.data.images import read_image
from dlprobe.extraction import extract
from dlprobe.localization import localize, score_map
from dlprobe.studies import FitSettings, fit_caches

#: Data set, size (height, width), windows an image; each has sources for training, validation and test.
SETS = (
    ("b-free", (512, 512), 1),
    ("tgif", (512, 512), 1),
    ("tgif", (480, 640), 4),
    ("tgif", (1024, 1024), 4),
    ("cocoglide", (256, 256), 4),
)
SPLITS = ("train", "train", "val", "test")
SCHEME = "autoencoded-pristine"
MODEL = "residual-srm"


def photograph(rng, size):
    """Return textured noise over smooth shapes, about as rough as a photograph."""
    shapes = gaussian_filter(rng.normal(0, 1, (*size, 3)), (12, 12, 0)) * 600 + 120
    return np.clip(shapes + rng.normal(0, 9, (*size, 3)), 0, 255)


def inpainted(pixels, mask):
    """Return the image with what a decoder leaves of it inside the mask: the smooth part."""
    return np.where(mask[..., None], gaussian_filter(pixels, (2, 2, 0)), pixels)


def write(folder, rng):
    rows = []
    for dataset, (height, width), _ in SETS:
        for n, split in enumerate(SPLITS):
            source = f"{dataset}:{height}x{width}-{n}"
            stem = source.replace(":", "-")
            pixels = photograph(rng, (height, width))
            mask = np.zeros((height, width), bool)
            mask[height // 4 : 3 * height // 4, width // 3 : 5 * width // 6] = True
            common = {"source_id": source, "split": split, "dataset": dataset}
            for variant, image in (("real", pixels), ("sp", inpainted(pixels, mask))):
                Image.fromarray(np.rint(image).astype(np.uint8)).save(folder / f"{stem}-{variant}.png")
                rows.append({"path": f"{stem}-{variant}.png", "variant": variant, "mask": "", **common})
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{stem}-mask.png")
            rows[-1]["mask"] = f"{stem}-mask.png"
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "data").mkdir()
    write(folder / "data", np.random.default_rng(5))
    manifest = scan(folder / "data").manifest
    backbone = load_backbone("residual:srm")
    report = extract(manifest, backbone, folder / "cache")
    settings = FitSettings(
        schemes=(SCHEME,),
        learning_rates=(0.1, 0.3, 1.0),
        weight_decays=(1e-3,),
        epochs=8,
        batch_windows=4,
        baseline_patches=4000,
    )
    return folder, manifest, backbone, report, fit_caches([folder / "cache"], folder / "run", settings=settings)


def test_each_size_has_the_windows_it_should(rehearsal):
    folder, manifest, _, report, _ = rehearsal
    assert not report.rejected
    counts = open_cache(folder / "cache").windows.groupby("path").size()
    for dataset, (height, width), expected in SETS:
        here = manifest.frame.query("dataset == @dataset and height == @height and width == @width")
        assert len(here) == 2 * len(SPLITS)
        assert (counts[here["path"]] == expected).all(), (dataset, height, width)


def test_training_and_localization_look_at_one_size(rehearsal):
    folder, manifest, backbone, _, fit = rehearsal
    table = open_cache(folder / "cache").windows
    for row in manifest.frame.drop_duplicates(["height", "width"]).itertuples():
        windows = table[table["path"] == row.path]
        pixels = read_image(folder / "data" / row.path)
        seen = score_map(pixels, backbone, fit.probes[f"{MODEL}/dice-{SCHEME}"], stride_px=504).logits.shape
        corners = windows[["y", "x"]].to_numpy()
        borders = corners.min(axis=0) + corners.max(axis=0) + 504  # spread evenly from border to border
        assert borders.tolist() == list(seen[:2]), row.path


def test_the_probe_finds_the_region_at_every_size(rehearsal):
    *_, fit = rehearsal
    rows = fit.images.query("method == 'dice' and variant == 'sp'")
    by_size = rows.groupby(rows["source_id"].str.replace(r"-\d$", "", regex=True))[["iou", "ap"]].mean()
    assert len(by_size) == len(SETS)
    assert (by_size["ap"] > 0.6).all(), by_size
    # four times enlarged, everything is smooth to a probe that saw two such photographs: ranked right, cut too low
    assert (by_size.drop("cocoglide:256x256")["iou"] > 0.5).all(), by_size
    real = fit.images.query("method == 'dice' and variant == 'real' and dataset != 'cocoglide'")
    assert real["false_area"].mean() < 0.2
    assert fit.notes[0].endswith("the manifest's split")


def test_other_images_of_each_size_are_localized(rehearsal, tmp_path):
    folder, manifest, backbone, _, fit = rehearsal
    probe = fit.probes[f"{MODEL}/dice-{SCHEME}"]
    chosen = manifest.frame.query("split == 'test' and variant == 'sp'").drop_duplicates(["height", "width"])
    paths = [folder / "data" / path for path in chosen["path"]]
    results = localize(paths, backbone, probe, tmp_path, threshold=0.5, stride_px=504)
    for result, row in zip(results, chosen.itertuples(), strict=True):
        marked = np.asarray(Image.open(result.folder / "mask.png")) > 0
        truth = np.asarray(Image.open(folder / "data" / row.mask)) > 0
        assert marked.shape == truth.shape == (row.height, row.width)
        if row.dataset != "cocoglide":
            assert (marked & truth).sum() / (marked | truth).sum() > 0.5, row.path
