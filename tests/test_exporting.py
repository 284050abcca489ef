"""Backbone and probe as one ONNX graph, against torch; push and pull; and the commands that do it."""

import json
from importlib.metadata import entry_points

import numpy as np
import pytest
from typer.testing import CliRunner

from dlprobe.backbones import load_backbone
from dlprobe.errors import IdentityError, OutputError, ProbeError
from dlprobe.exporting import export_windows
from dlprobe.probes import Probe, make_card

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()
WINDOW_PX = 64


def dlprobe(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("timm:vit_tiny_patch16_224", weights="random:0", window_px=WINDOW_PX, device="cpu")


def probe_of(spec, k=1):
    rng = np.random.default_rng(k)
    card = make_card(
        model=spec,
        scheme="three-class" if k == 3 else "autoencoded-pristine",
        objective="dice-batch",
        classes=["PRISTINE", "AUTOENCODED", "INPAINTED"][-k:],
        threshold=0.25,
        threshold_policy="best F1 on validation",
        weights="random:0",
    )
    return Probe(rng.normal(size=(k, spec.width)).astype(np.float32) / 4, rng.normal(size=k).astype(np.float32), card)


@pytest.mark.parametrize("k", [1, 3])
def test_the_graph_from_bytes_to_scores_is_torch(backbone, tmp_path, k):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    probe = probe_of(backbone.spec, k)
    path = export_windows(probe, backbone, tmp_path / "model.onnx")
    windows = np.random.default_rng(5).integers(0, 256, (5, WINDOW_PX, WINDOW_PX, 3), dtype=np.uint8)
    logits, scores = onnxruntime.InferenceSession(str(path)).run(None, {"windows": windows})
    expected = probe.logits(backbone(windows).numpy().astype(np.float64))
    assert logits.shape == (5, 4, 4, k)
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    odds = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(scores, odds / (1 + odds) if k == 1 else odds / odds.sum(-1, keepdims=True), atol=1e-6)
    (metadata,) = onnx.load(str(path)).metadata_props
    assert json.loads(metadata.value)["model_fingerprint"] == backbone.spec.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_what_has_no_graph_or_is_another_is_refused_and_leaves_nothing(backbone, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    residual = load_backbone("residual:srm", window_px=112)
    with pytest.raises(ProbeError, match="is no torch network"):
        export_windows(probe_of(residual.spec), residual, tmp_path / "m.onnx")
    with pytest.raises(IdentityError, match="probe and backbone differ"):
        export_windows(probe_of(residual.spec), backbone, tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="its folder does not exist"):
        export_windows(probe_of(backbone.spec), backbone, tmp_path / "no" / "m.onnx")
    from dlprobe import exporting

    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ProbeError, match="differs from torch"):
        export_windows(probe_of(backbone.spec), backbone, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_commands_carry_a_probe_out_and_back(backbone, tmp_path):
    pytest.importorskip("onnxruntime")
    saved = tmp_path / "mine.safetensors"
    probe_of(backbone.spec).save(saved)
    result = dlprobe("export", saved, "-o", tmp_path / "head.onnx", "--json")
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "head.onnx").stat().st_size
    result = dlprobe("export", saved, "-o", tmp_path / "both.onnx", "--with-backbone", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["bytes"] > 1e6
    assert dlprobe("push", saved, tmp_path / "hub").stdout.strip() == str(tmp_path / "hub")
    assert (tmp_path / "hub" / "README.md").is_file()
    assert dlprobe("pull", tmp_path / "hub", "-o", tmp_path / "back.safetensors").exit_code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == saved.read_bytes()
    for wrong in (
        ("export", tmp_path / "none", "-o", tmp_path / "x.onnx"),
        ("export", saved, "-o", tmp_path / "no" / "x.onnx", "--with-backbone"),
        ("pull", tmp_path, "-o", tmp_path / "x.safetensors"),
        ("push", saved, tmp_path / "no" / "hub"),
    ):
        result = dlprobe(*wrong)
        assert result.exit_code == 2, result.stdout
        assert result.stderr.startswith("error: ")
