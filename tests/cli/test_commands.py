"""Every command as a user types it: what it prints where, how it exits, what it leaves behind."""

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()


def dlprobe(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def leaves(command, prefix=()):
    for name, child in sorted(command.commands.items()):
        if hasattr(child, "commands"):
            yield from leaves(child, (*prefix, name))
        else:
            yield (*prefix, name), child


SMALL = ("--window", 112)
COMMANDS = list(leaves(typer.main.get_command(APP)))


@pytest.fixture(scope="module")
def manifest(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "manifest.parquet"
    result = dlprobe("scan", tiny / "data", "-o", path)
    assert result.exit_code == 0, result.stderr
    return path


def refused(result, *words):
    """One line on stderr, nothing on stdout, exit 2."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_and_option_has_help_and_stands_in_the_readme(path, command):
    assert command.help
    assert all(parameter.help for parameter in command.params if parameter.name != "help")
    assert f"dlprobe {' '.join(path)}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_help_and_version_load_no_heavy_library(asked):
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "(script,) = entry_points(group='console_scripts', name='dlprobe')\n"
        f"sys.argv = ['dlprobe', '{asked}']\n"
        "try: script.load()()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'zarr', 'h5py', 'ray', 'sklearn', 'timm', 'pandas', 'numpy', 'cv2'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_scan_counts_on_stdout_and_talks_on_stderr(tiny, tmp_path):
    result = dlprobe("scan", tiny / "data", "-o", tmp_path / "m.parquet", "--json")
    rows = [row for row in map(json.loads, result.stdout.splitlines()) if row["kind"] == "count"]
    assert sum(row["images"] for row in rows) == 8 * 13
    assert {row["variant"] for row in rows} == {"real", "ae", "sp", "fr"}
    assert "104 images" in result.stderr


def test_a_shard_without_a_block_says_why(manifest, tmp_path):
    asking = ("extract", manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", *SMALL, "--shard", "1/2")
    few = ("--block-windows", 5000)
    for more in ((*few, "--dry-run"), few):
        result = dlprobe(*asking, *more)
        assert result.exit_code == 0, result.stderr
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("shard 1/2 has nothing to do: the ")
        assert "make 1 block of 5000, fewer than 2 shards; " in line
        assert "--block-windows" in line
    assert "nothing to do" not in dlprobe(*asking, "--block-windows", 100, "--dry-run").stderr


def test_the_whole_path_from_manifest_to_mask(manifest, tiny, tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    extracting = ("extract", manifest, "-o", cache, "--backbone", "residual:srm", "--window", 112, "--stride", 112)
    planned = json.loads(dlprobe(*extracting, "--dry-run", "--json").stdout)
    assert planned["windows"] > 100
    assert planned["bytes"] > 1e6
    assert not cache.exists()
    done = json.loads(dlprobe(*extracting, "--json").stdout)
    assert done["done"] == planned["windows"]
    again = json.loads(dlprobe(*extracting, "--json").stdout)
    assert (again["done"], again["skipped"]) == (0, planned["windows"])

    info = json.loads(dlprobe("cache", "info", cache, "--json").stdout)
    assert info["windows"] == planned["windows"]
    assert dlprobe("cache", "verify", cache).exit_code == 0

    fitting = ("fit", cache, "-o", run, "--scheme", "autoencoded-pristine", "--lr", 1, "--wd", 0.001, "--epochs", 1)
    result = dlprobe(*fitting, "--folds", 3, "--hold-out", "telea+sr")
    assert result.exit_code == 0, result.stderr
    assert "dice autoencoded-pristine" in result.stdout
    assert "nested cross-validation, 3 folds" in result.stderr

    report = dlprobe("report", run)
    html = Path(report.stdout.strip()).read_text()
    assert "nested cross-validation" in html

    probe = run / "probes/residual-srm/dice-autoencoded-pristine.safetensors"
    image = tiny / "data" / pd.read_parquet(manifest)["path"].iloc[0]
    result = dlprobe("localize", probe, image, "-o", tmp_path / "masks", "--stride", 56, "--json")
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    assert 0 <= row["area"] <= 1
    assert row["seen"] == "trained on"
    assert f"warning: {image}: the probe was trained on this photograph" in result.stderr
    copy = tmp_path / "copy.png"
    Image.open(image).save(copy, compress_level=1)
    result = dlprobe("localize", probe, image, copy, "-o", tmp_path / "masks", "--stride", 56, "--json")
    assert [json.loads(line)["seen"] for line in result.stdout.splitlines()] == ["trained on", ""]
    assert "has seen the photographs of 1 of 2 images (1 trained on; the first: " in result.stderr
    mask = np.asarray(Image.open(Path(row["folder"]) / "mask.png"))
    assert mask.shape == np.asarray(Image.open(image)).shape[:2]

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    result = dlprobe("localize", probe, image, bad, "-o", tmp_path / "masks", "--stride", 56)
    assert result.exit_code == 3
    assert "rejected" in result.stderr
    refused(dlprobe("localize", probe, bad, "-o", tmp_path / "more", "--stride", 56), "bad.png")
    assert not (tmp_path / "more").exists()
    refused(dlprobe("localize", image, image, "-o", tmp_path / "more"), "safetensors")
    refused(dlprobe("localize", probe, image, "-o", tmp_path / "more", "--budget", 0.5), "--adaptive")
    refused(dlprobe("localize", probe, image, "-o", tmp_path / "more", "--blend", "gauss"), "hann")

    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / image.name).write_bytes(image.read_bytes())
    again = ("localize", probe, tmp_path / "folder", "-o", tmp_path / "masks", "--stride", 28, "--adaptive")
    refused(dlprobe(*again), "--recursive")
    steps = ("--guided-radius", 4, "--fill-holes", "--min-area", 20, "--smooth-radius", 2, "--blend", "hann")
    result = dlprobe(*again, "--recursive", *steps, "--json")
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    record = json.loads((Path(row["folder"]) / "result.json").read_text())
    assert record["postprocessing"]["steps"] == ["threshold", "guided", "holes", "small", "smooth"]
    assert record["sliding"]["adaptive"]["budget"] == 0.4
    assert record["verdict"]["kind"] == row["verdict"]
    result = dlprobe(*again, "--recursive", *steps)
    assert "there already" in result.stderr


def test_bad_input_is_one_line_and_leaves_nothing(manifest, tiny, tmp_path):
    out = tmp_path / "cache"
    refused(dlprobe("scan", tmp_path / "none", "-o", tmp_path / "m.parquet"), "nothing at")
    refused(dlprobe("scan", tiny / "data", "-o", tmp_path / "m.parquet", "--layout", "cvs"), "did you mean csv")
    refused(dlprobe("extract", tmp_path / "none.parquet", "-o", out, "--backbone", "residual:srm"), "dlprobe scan")
    refused(dlprobe("extract", manifest, "-o", out, "--backbone", "resnet50"), "has no source")
    refused(dlprobe("extract", manifest, "-o", out, "--backbone", "residual:smr"), "srm")
    refused(dlprobe("extract", manifest, "-o", out, "--backbone", "residual:srm", "--cls"), "gives no CLS token")
    window = ("--window", 500)
    refused(dlprobe("extract", manifest, "-o", out, "--backbone", "residual:srm", *window), "490", "504")
    (tmp_path / "file").write_text("mine")
    refused(dlprobe("extract", manifest, "-o", tmp_path / "file", "--backbone", "residual:srm"), "file")
    refused(dlprobe("fit", tmp_path / "none", "-o", tmp_path / "run"), "none")
    refused(dlprobe("fit", tmp_path / "none", "-o", tmp_path / "run", "--baselines", "rigde"), "did you mean ridge")
    refused(dlprobe("fit", tmp_path / "none", "-o", tmp_path / "run", "--threshold-policy", "area:x"), "no rate")
    refused(dlprobe("report", tmp_path), "nothing to report on")
    refused(dlprobe("cache", "info", tmp_path), "")
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_one_unreadable_image_among_many(tiny, tmp_path):
    frame = pd.read_csv(tiny / "data/manifest.csv", keep_default_na=False).head(6)
    for name in [*frame["path"], *filter(None, frame["mask"])]:
        target = tmp_path / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tiny / "data" / name).read_bytes())
    frame.to_csv(tmp_path / "data/manifest.csv", index=False)
    result = dlprobe("scan", tmp_path / "data", "-o", tmp_path / "m.parquet")
    assert result.exit_code == 0
    victim = tmp_path / "data" / frame["path"].iloc[2]
    victim.write_bytes(victim.read_bytes()[:3000])
    extracting = (
        "extract",
        tmp_path / "m.parquet",
        "-o",
        tmp_path / "c",
        "--backbone",
        "residual:srm",
        "--window",
        112,
    )
    result = dlprobe(*extracting)
    assert result.exit_code == 3
    assert re.search(rf"rejected: .*{victim.name}", result.stderr)
    victim.write_bytes(b"")
    result = dlprobe("scan", tmp_path / "data", "-o", tmp_path / "m2.parquet")
    assert result.exit_code == 3
    assert victim.name in result.stderr
    assert len(pd.read_parquet(tmp_path / "m2.parquet")) == 5


def test_backbones_are_listed():
    rows = [json.loads(line) for line in dlprobe("backbones", "--json").stdout.splitlines()]
    assert any(row["name"] == "residual:srm" and row["present"] for row in rows)
    assert any("dinov3" in row["name"] for row in rows)


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    import dlprobe.data as package

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(package, "scan", broken)
    result = dlprobe("scan", tmp_path, "-o", tmp_path / "m.parquet")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2.00 GiB", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"]
)
def test_memory_of_a_device_that_does_not_last_is_one_line(manifest, tmp_path, monkeypatch, words):
    def full(*_arguments, **_settings):
        raise RuntimeError(words)

    monkeypatch.setattr("dlprobe.extraction.extract", full)
    run = dlprobe("extract", manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", *SMALL)
    assert run.exit_code == 2
    [line] = run.stderr.strip().splitlines()
    assert line.startswith("error: the device's memory does not hold this")
    assert "--batch-size" in line


def test_another_error_of_a_device_keeps_its_traceback(manifest, tmp_path, monkeypatch):
    def broken(*_arguments, **_settings):
        msg = "CUDA error: an illegal memory access was encountered"
        raise RuntimeError(msg)

    monkeypatch.setattr("dlprobe.extraction.extract", broken)
    run = dlprobe("extract", manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", *SMALL)
    assert isinstance(run.exception, RuntimeError)


def test_options_of_a_cluster_reach_it_and_are_of_no_other_runner(manifest, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("dlprobe.extraction.RayRunner", lambda **options: seen.append(options) or "local")
    arguments = ("extract", manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", *SMALL)
    options = ("--workers", 2, "--cpus-per-worker", 3, "--address", "auto", "--worker-device", "cuda")
    assert dlprobe(*arguments, "--runner", "ray", *options).exit_code == 0
    assert seen == [{"address": "auto", "workers": 2, "cpus_per_worker": 3, "device": "cuda"}]
    for option in zip(options[::2], options[1::2], strict=True):
        run = dlprobe(*arguments, *option)
        assert run.exit_code == 2
        assert "are of --runner ray" in " ".join(re.sub(r"[│╭╮╰╯─]", " ", run.stderr).split())


@pytest.mark.slow
def test_compiled_blocks_from_end_to_end_and_taken_up_again(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    cache = tmp_path / "cache"
    command = ["extract", manifest, "-o", cache, "--backbone", "timm:test_vit", "--weights", "random:0"]
    command += ["--window", 160, "--stride", 160, "--block-windows", 4, "--batch-size", 3, "--compile"]
    first = dlprobe(*command, "--json")
    assert first.exit_code == 0, first.output
    whole = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    record = sorted((cache / "records").glob("0*.json"))[1]
    record.unlink()
    again = json.loads(dlprobe(*command, "--json").stdout)
    assert again["done"] == 4
    assert again["drift"] == 0
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == whole
    from dlprobe.cache import open_cache

    assert open_cache(cache).pins.compiled
    assert open_cache(cache).pins.batch_size == 2  # a block is two batches of two, and not of three and three
