"""What the command line says of weights: bad files, an unreachable hub, tensors that are left out."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dlprobe.backbones import load_backbone
from dlprobe.data import Manifest

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
NANO = "timm:vit_nano_patch14_reg4_dinov2"

_SPEC = importlib.util.spec_from_file_location("dlprobe_test_files", Path(__file__).with_name("test_files.py"))
files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(files)

CHANGES = [files.removed, files.renamed, files.added, files.reshaped]
WRITERS = [files.code, files.page, files.truncated]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(folder / "a.png")
    row = {"path": "a.png", "variant": "real", "source_id": "a", "width": 70, "height": 70}
    Manifest.from_records([row], folder).write(folder / "m.parquet")
    return folder / "m.parquet"


@pytest.fixture
def tensors():
    donor = load_backbone(NANO, weights="random:5", window_px=70, device="cpu")
    return {name: value.clone() for name, value in donor.network.state_dict().items()}


def extract(manifest, out, weights):
    options = ["--backbone", NANO, "--weights", str(weights), "--window", "70", "--device", "cpu"]
    return CliRunner().invoke(SCRIPT.load(), ["extract", str(manifest), "-o", str(out), *options])


@pytest.mark.parametrize("make", [*CHANGES, *WRITERS], ids=lambda make: make.__name__)
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(make, manifest, tensors, tmp_path):
    path = tmp_path / "model.pth"
    if make in CHANGES:
        make(tensors)
        torch.save(tensors, path)
    else:
        make(path, tensors)
    result = extract(manifest, tmp_path / "cache", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert str(path) in line
    assert not (tmp_path / "cache").exists()


def test_what_a_checkpoint_holds_beside_the_network_is_named(manifest, tensors, tmp_path):
    torch.save({**tensors, "mask_token": torch.zeros(1, 48), "head.bias": torch.zeros(3)}, tmp_path / "model.pth")
    result = extract(manifest, tmp_path / "cache", tmp_path / "model.pth")
    assert result.exit_code == 0, result.stderr
    assert "not used of the weights: head.bias, mask_token" in result.stderr


@pytest.mark.parametrize("name", ["dinov2-b-reg", "hf:facebook/dinov2-base"])
def test_an_unreachable_hub_is_one_line_without_retries(manifest, tmp_path, name):
    closed = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    code = "from dlprobe_cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "extract", manifest, "-o", tmp_path / "cache", "--backbone", name],
        capture_output=True,
        text=True,
        env={**os.environ, **closed},
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "the hub cannot be reached" in line
    assert "--weights FILE" in line
    assert not (tmp_path / "cache").exists()
