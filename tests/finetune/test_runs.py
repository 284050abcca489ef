"""A whole adaptation as a user sees it: what is left behind, what reads it, and what is said when it cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import load_file
from typer.testing import CliRunner

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import Manifest
from dlprobe.errors import BackboneError, DataError, OutputError, ProbeError
from dlprobe.extraction import extract
from dlprobe.probes import Probe
from dlprobe.spec import sha256_of_file
from dlprobe.studies import FitSettings, estimate_finetune, finetune, fit_caches, read_run
from dlprobe.studies.fitting.pool import CachePool
from dlprobe.studies.fitting.scoring import Column, score_images
from dlprobe.studies.fitting.splits import assign

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
BACKBONE = ("--backbone", "timm:test_vit", "--weights", "random:5", "--window", 64, "--stride", 64, "--device", "cpu")
SHORT = ("--epochs", 2, "--batch-windows", 8, "--rank", 2, "--lr", 0.001)


def dlprobe(*arguments):
    return CliRunner().invoke(SCRIPT.load(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(few, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "few.parquet"
    few.write(path)
    return path


@pytest.fixture(scope="module")
def made(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    modes = ("--mode", "head", "--mode", "lora", "--mode", "full")
    result = dlprobe("finetune", table, "-o", out, *BACKBONE, *SHORT, *modes, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return out, result


@pytest.fixture(scope="module")
def probes(made):
    out, _ = made
    return {path.parent.name.rpartition("-")[2]: path for path in (out / "probes").rglob("*.safetensors")}


def test_the_run_compares_its_modes_and_leaves_no_checkpoint(made):
    out, result = made
    run = read_run(out)
    names = [f"timm:test_vit.r160_in1k {mode}" for mode in ("head", "lora", "full")]
    assert list(run.record["models"]) == names
    assert {json.loads(line)["model"] for line in result.stdout.splitlines()} == set(names)
    pairs = set(run.tables["comparisons"]["comparison"])
    assert f"{names[0]} - {names[1]}" in pairs
    assert f"{names[1]} - {names[2]}" in pairs
    assert sorted(path.name for path in out.parent.iterdir()) == ["run"]
    for name, moved in zip(names, (0, 6 * 2 * 2 * 2 * 64, None), strict=True):
        model = run.record["models"][name]
        assert len(model["history"]) == 2
        assert model["trainable"] == moved or moved is None
    assert "validation chose it" in result.stderr


def test_a_finished_run_shows_again_what_a_terminal_has_room_for(made, table):
    out, _ = made
    modes = ("--mode", "head", "--mode", "lora", "--mode", "full")
    again = dlprobe("finetune", table, "-o", out, *BACKBONE, *SHORT, *modes)
    assert again.exit_code == 0, (again.stderr, again.exception)
    lines = again.stdout.splitlines()
    assert [line for line in lines if line.startswith("timm:")] == list(read_run(out).record["models"])
    assert max(map(len, lines)) <= 100
    assert "iou@patch" in again.stdout
    assert "results.md" in again.stderr


def test_the_report_reads_it(made):
    out, _ = made
    assert dlprobe("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "test_vit.r160_in1k lora" in page


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_weights_are_those_that_were_tested_and_the_probe_is_bound_to_them(made, probes, few, tmp_path, mode):
    out, _ = made
    probe = Probe.load(probes[mode])
    backbone = load_backbone("timm:test_vit", weights=out / "weights" / f"{mode}.safetensors", window_px=64)
    assert probe.require_model(backbone.spec)
    assert (
        probe.card["model_fingerprint"]
        == read_run(out).record["models"][f"timm:test_vit.r160_in1k {mode}"]["model_fingerprint"]
    )
    extract(few, backbone, tmp_path / "cache", stride_px=64, dtype="float32")
    pool = CachePool([open_cache(tmp_path / "cache")])
    split = assign(pool.windows, n_folds=0)
    logit = np.log(probe.threshold / (1 - probe.threshold))
    column = Column("dice", "autoencoded-pristine", 0, probe.weights[0], float(probe.bias[0]), threshold=float(logit))
    columns = ["iou", "f1", "false_area", "ap", "iou_val", "false_area_val"]
    images = read_run(out).tables["images"]
    ours = images[(images["model"].str.endswith(mode)) & (images["method"] == "dice")]
    again = score_images(pool, split, [column])
    again = again[again["method"] == "dice"]
    assert len(ours) == 4
    assert_allclose(
        ours.set_index("path").sort_index()[columns], again.set_index("path").sort_index()[columns], atol=1e-6
    )


def test_the_probe_localizes_without_being_told_where_the_weights_are(probes, few, tmp_path):
    image = few.root / few.frame["path"].iloc[0]
    for mode, path in probes.items():
        result = dlprobe("localize", path, image, "-o", tmp_path / mode, "--stride", 64, "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        assert list((tmp_path / mode).rglob("*.json"))
    scores = [next((tmp_path / mode).rglob("*mask*")).read_bytes() for mode in probes]
    assert len(scores) == 3


def test_a_frozen_head_is_bound_to_the_backbone_as_it_was(made, probes):
    out, _ = made
    probe = Probe.load(probes["head"])
    assert probe.require_model(load_backbone("timm:test_vit", weights="random:5", window_px=64).spec)
    assert probe.card["weights"] == "random:5"
    assert sorted(path.name for path in (out / "weights").iterdir()) == ["full.safetensors", "lora.safetensors"]


def test_a_card_lists_the_files_of_its_photographs_and_no_others(probes, few):
    for path in probes.values():
        data = Probe.load(path).card["data"]
        for part in ("train", "val"):
            files = few.frame.loc[few.frame["split"] == part, "path"]
            assert data[f"{part}_files"] == sorted({sha256_of_file(few.root / name)[:16] for name in files})


def test_a_transformers_backbone_is_adapted_and_read_again(few, brief, tmp_path):
    transformers = pytest.importorskip("transformers")
    backbone = load_backbone("hf:facebook/dinov2-small", weights="random:0", window_px=56, layers=(0,), device="cpu")
    result = finetune(few, backbone, tmp_path / "run", settings=brief(epochs=1, stride_px=112, batch_windows=16))
    (probe,) = result.probes.values()
    folder = tmp_path / "run" / "weights" / "lora"
    again = load_backbone("hf:facebook/dinov2-small", weights=folder, window_px=56, layers=(0,))
    assert probe.require_model(again.spec)
    assert transformers.AutoModel.from_pretrained(folder).config.num_hidden_layers == 12


def test_a_killed_run_goes_on_to_the_same_weights(table, made, tmp_path):
    out, whole = tmp_path / "run", made[0]
    arguments = ["finetune", table, "-o", out, *BACKBONE, *SHORT, "--mode", "lora", "--checkpoint-steps", 1]
    command = [sys.executable, "-c", "from dlprobe_cli.main import app; app()", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    states = out / ".dlprobe-fit"
    deadline = time.monotonic() + 120
    while not list(states.glob("*/lora.state")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".dlprobe-fit"]
    assert dlprobe(*arguments).exit_code == 0
    assert not states.exists()
    (found,) = (Probe.load(path) for path in (out / "probes").rglob("*.safetensors"))
    (expected,) = (Probe.load(path) for path in (whole / "probes").rglob("*-lora/*.safetensors"))
    assert_allclose(found.weights, expected.weights, atol=1e-6 * np.abs(expected.weights).max())
    one, other = (load_file(folder / "weights" / "lora.safetensors") for folder in (out, whole))
    for name, values in one.items():
        assert_allclose(values, other[name], atol=1e-6)


def test_a_dry_run_counts_what_a_run_does(table, made):
    result = dlprobe("finetune", table, "-o", "nowhere", *BACKBONE, *SHORT, "--mode", "lora", "--dry-run", "--json")
    (row,) = (json.loads(line) for line in result.stdout.splitlines())
    assert (row["train_windows"], row["val_windows"], row["test_windows"]) == (48, 16, 16)
    assert row["steps"] == 12
    assert row["trainable"] == 6 * 2 * 2 * 2 * 64
    assert row["eta_s"] > 0


def test_an_unreadable_image_is_a_reject_and_the_rest_goes_on(few, vit, brief, tmp_path):
    frame = few.frame.copy()
    bad = frame.index[frame["split"] == "train"][0]
    frame.loc[bad, "path"] = "gone.png"
    settings = brief(keep="last", epochs=1, seed=2)
    broken = Manifest(frame, few.root)
    found = finetune(broken, vit(), tmp_path / "broken", modes=("head",), settings=settings)
    assert list(found.rejects) == ["gone.png"]
    extract(broken, vit(), tmp_path / "cache", stride_px=64, dtype="float32", seed=2)
    fit = FitSettings(
        schemes=("autoencoded-pristine",),
        learning_rates=(0.3,),
        weight_decays=(1e-3,),
        epochs=1,
        patience=None,
        batch_windows=8,
        n_folds=0,
        baseline_patches=200,
        seed=2,
    )
    expected = fit_caches([tmp_path / "cache"], tmp_path / "fit", settings=fit)
    (probe,) = found.probes.values()
    (other,) = (each for name, each in expected.probes.items() if name.endswith("/dice-autoencoded-pristine"))
    assert_allclose(probe.weights, other.weights, atol=1e-5 * np.abs(other.weights).max())


def test_the_command_exits_with_three_after_rejects(few, tmp_path):
    frame = few.frame.copy()
    frame.loc[frame.index[frame["split"] == "train"][0], "path"] = "gone.png"
    Manifest(frame, few.root).write(tmp_path / "broken.parquet")
    result = dlprobe("finetune", tmp_path / "broken.parquet", "-o", tmp_path / "run", *BACKBONE, "--epochs", 1)
    assert result.exit_code == 3
    assert "rejected: gone.png" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mode", "adapter"), ("adapter", "head, lora, full")),
        (("--mode", "head", "--mode", "head"), ("twice",)),
        (("--scheme", "autoencoded-pristin"), ("autoencoded-pristine",)),
        (("--keep", "first"), ("best, last",)),
        (("--degrade", "jpeg:quality=50"), ("--views",)),
        (("--warmup", 2), ("warmup",)),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(table, tmp_path, arguments, words):
    result = dlprobe("finetune", table, "-o", tmp_path / "run", *BACKBONE, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_refused_before_it_begins(few, vit, brief, tmp_path):
    settings = brief()
    with pytest.raises(BackboneError, match="residual:srm"):
        finetune(few, load_backbone("residual:srm", window_px=112), tmp_path / "run", settings=settings)
    with pytest.raises(ProbeError, match="no mode 'all'"):
        estimate_finetune(few, vit(), modes=("all",), settings=settings)
    only = few.select(few.frame["split"] == "test")
    with pytest.raises(DataError, match="leaves no window for train"):
        finetune(only, vit(), tmp_path / "run", settings=settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="no run of dlprobe"):
        finetune(few, vit(), tmp_path / "mine", settings=settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
