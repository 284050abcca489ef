"""`dlprobe doctor`: numbers that can be checked, and advice where something is wrong."""

import json

import pytest
from typer.testing import CliRunner

from dlprobe.backbones import load_backbone
from dlprobe.doctor import examine
from dlprobe.doctor.engines import compare_engines
from dlprobe.doctor.machine import EXTRAS, look_around
from dlprobe.doctor.rates import disk_rates
from dlprobe.errors import BackboneError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("dlprobe.doctor.rates.DISK_BYTES", 16 << 20)
    monkeypatch.setattr("dlprobe.doctor.rates._SIDES", {"cpu": 128, "cuda": 1024})


def test_all_of_it(tmp_path):
    found = {finding.topic: finding for finding in examine(folder=tmp_path)}
    assert list(tmp_path.iterdir()) == []
    for topic in ("gemm cpu float32", "gemm cpu bfloat16", "disk write", "disk read"):
        assert found[topic].value > 0
    assert {f"extra {name}" for name in EXTRAS} <= set(found)
    for engine in ("torch", "openvino"):
        finding = found[f"engine {engine} cpu float32"]
        assert finding.value < 1e-5
        assert finding.advice == ""
    assert 1e-4 < found["engine torch cpu bfloat16"].value < 1e-1
    work = found["work timm:test_vit 160 px"].value
    assert found["at most torch cpu float32"].value == pytest.approx(found["gemm cpu float32"].value / work)


def test_the_work_is_that_of_the_matrix_products():
    backbone = load_backbone("timm:test_vit", weights="random:0", device="cpu", window_px=160)
    network, tokens = backbone.network, 101
    linear = sum(p.numel() for name, p in network.blocks.named_parameters() if p.ndim == 2) * tokens
    patches = network.patch_embed.proj.weight.numel() * 100
    attention = len(network.blocks) * 2 * tokens**2 * 64
    gemm = {("cpu", "float32"): 1.0, ("cpu", "bfloat16"): 1.0}
    work = next(iter(compare_engines("timm:test_vit", "random:0", 160, gemm, timing=False)))
    assert work.value * 1e9 / 2 == pytest.approx(linear + patches + attention, rel=1e-6)


def test_a_folder_that_cannot_be_written(tmp_path):
    [finding] = disk_rates(tmp_path / "gone")
    assert "--folder" in finding.advice


def test_a_hub_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    hub = list(look_around())[-1]
    assert hub.found == "127.0.0.1:1 does not answer"
    assert "--weights FILE" in hub.advice


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(EXTRAS, "umap", ("no-such-package", "maps"))
    [finding] = [finding for finding in look_around() if finding.topic == "extra umap"]
    assert finding.advice == "for maps: pip install 'dlprobe[umap]'"


def test_an_unknown_backbone():
    with pytest.raises(BackboneError, match="no model 'no_such_vit'"):
        list(compare_engines("timm:no_such_vit", "random:0", None, {}, timing=False))


def test_the_command(tmp_path):
    from importlib.metadata import entry_points

    [script] = entry_points(group="console_scripts", name="dlprobe")
    result = CliRunner().invoke(script.load(), ["doctor", "--json", "--folder", str(tmp_path / "gone")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"topic", "found", "value", "unit", "advice"} == set(rows[0])
    assert any(row["topic"] == "disk" and row["advice"] for row in rows)


def test_a_batch_that_memory_does_not_hold_is_a_finding(monkeypatch):
    import torch

    def full(*_arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("dlprobe.doctor.engines._timed", full)
    gemm = {("cpu", "float32"): 1.0, ("cpu", "bfloat16"): 1.0}
    rows = list(compare_engines("timm:test_vit", "random:0", 160, gemm, timing=True))
    timed = [row for row in rows if row.topic.startswith("timed")]
    assert timed
    for row in timed:
        assert row.found.startswith("memory does not hold batches of 8 windows")
        assert row.advice
