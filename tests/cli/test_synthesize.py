"""``dlprobe synthesize`` as a user types it."""

import json
from importlib.metadata import entry_points

import pytest
from PIL import Image
from typer.testing import CliRunner

from dlprobe.data.synthesis.photographs import load_photograph

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()
SMALL = ("--window", 56, "--side", 64)


def dlprobe(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def refused(result, *words):
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("skimage:astronaut.png", "skimage:coffee.png", "skimage:chelsea.png"):
        photograph = load_photograph(name, 64)
        Image.fromarray(photograph.pixels).save(folder / f"{photograph.name}.png")
    return folder


def test_a_data_set_is_made_and_scanned(photographs, tmp_path):
    out = tmp_path / "set"
    chosen = ("--generator", "telea+pca", "--generator", "donor+sr", "--mask-kind", "sized", "--share", 0.3)
    result = dlprobe("synthesize", photographs, "-o", out, *SMALL, *chosen, "--seed", 7, "--dataset", "mine", "--json")
    assert result.exit_code == 0, result.stderr
    counts = {(row["variant"], row["generator"]): row["images"] for row in map(json.loads, result.stdout.splitlines())}
    fakes = {(variant, name): 3 for variant in ("sp", "fr") for name in ("telea+pca", "donor+sr")}
    assert counts == {("real", ""): 3, ("ae", "pca"): 3, ("ae", "sr"): 3, **fakes}
    assert "21 images" in result.stderr
    rows = [json.loads(line) for line in (out / "parameters.jsonl").read_text().splitlines()]
    assert {row["seed"] for row in rows} == {7}
    assert {row["mask_kind"] for row in rows} == {"", "sized-30pct"}
    assert rows[0]["source_id"] == "mine:astronaut"
    scanned = dlprobe("scan", out, "-o", tmp_path / "manifest.parquet")
    assert scanned.exit_code == 0, scanned.stderr
    refused(dlprobe("synthesize", photographs, "-o", out), "exists already")


def test_the_ladder_has_a_rung_for_each_share(photographs, tmp_path):
    result = dlprobe("synthesize", photographs, "-o", tmp_path / "set", *SMALL, "--ladder", "--generator", "ns+pca")
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "set").rglob("mask-sized-*.png"))) == 3 * 8


def test_one_unreadable_image_among_many_exits_with_three(photographs, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    result = dlprobe("synthesize", photographs, bad, "-o", tmp_path / "set", *SMALL)
    assert result.exit_code == 3, result.stderr
    assert f"rejected: {bad}" in result.stderr
    assert (tmp_path / "set/manifest.csv").is_file()


def test_what_cannot_be_is_one_line_and_leaves_nothing(photographs, tmp_path):
    out = tmp_path / "set"
    refused(dlprobe("synthesize", photographs, "-o", out, "--backend", "difusers"), "did you mean diffusers")
    refused(dlprobe("synthesize", photographs, "-o", out, "--backend", "diffusers"), "--model")
    refused(dlprobe("synthesize", photographs, "-o", out, "--steps", 3), "no option steps")
    refused(dlprobe("synthesize", photographs / "coffee.png", "-o", out), "give at least 3")
    refused(dlprobe("synthesize", photographs, "-o", out, "--mask-kind", "blob"), "no mask kind")
    refused(dlprobe("synthesize", tmp_path / "none.png", "-o", out), "none.png")
    assert not any(tmp_path.iterdir())
