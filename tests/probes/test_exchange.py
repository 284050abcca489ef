"""Probes as ONNX graphs and in folders and repositories."""

import shutil

import numpy as np
import pytest

from dlprobe.errors import ExtraError, OutputError, ProbeError
from dlprobe.probes import Probe, make_card
from dlprobe.probes.exchange import export_onnx, page, pull, push


def probe(k=1, scale=1.0):
    rng = np.random.default_rng(k)
    card = make_card(
        model=None,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=[f"class {i}" for i in range(k)],
        threshold=0.25,
        threshold_policy="best F1 on validation",
        metrics={"f1": 0.5, "sp iou": {"value": 0.4321, "low": 0.4, "high": 0.5, "sources": 12}},
        notes=["Trained on photographs under CC BY 2.0."],
    )
    return Probe((scale * rng.normal(size=(k, 10))).astype(np.float32), rng.normal(size=k).astype(np.float32), card)


@pytest.mark.parametrize("k", [1, 3])
def test_a_graph_computes_logits_and_scores(tmp_path, k):
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    path = export_onnx(probe(k), tmp_path / "probe.onnx")
    embeddings = np.random.default_rng(9).normal(size=(2, 4, 5, 10)).astype(np.float32)
    logits, scores = onnxruntime.InferenceSession(path).run(None, {"embeddings": embeddings})
    expected = probe(k).logits(embeddings)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    odds = np.exp(expected.astype(float))
    np.testing.assert_allclose(scores, odds / (1 + odds) if k == 1 else odds / odds.sum(-1, keepdims=True), atol=1e-6)
    (metadata,) = onnx.load(path).metadata_props
    assert metadata.key == "dlprobe"
    assert '"threshold":0.25' in metadata.value
    first = path.read_bytes()
    assert export_onnx(probe(k), path).read_bytes() == first


def test_graphs_that_cannot_be_written_or_trusted_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(OutputError, match="its folder does not exist"):
        export_onnx(probe(), tmp_path / "no" / "probe.onnx")
    from dlprobe.probes import exchange

    other = exchange._graph(probe(scale=2.0))
    monkeypatch.setattr(exchange, "_graph", lambda probe: other)
    with pytest.raises(ProbeError, match="the ONNX graph of a probe differs from it"):
        export_onnx(probe(), tmp_path / "probe.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraError, match=r"needs onnx.*dlprobe\[onnx\]"):
        export_onnx(probe(), tmp_path / "probe.onnx")


def test_a_folder_holds_the_probe_and_its_page(tmp_path):
    place = push(probe(), tmp_path / "out")
    assert place == str(tmp_path / "out")
    np.testing.assert_array_equal(pull(place).weights, probe().weights)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text == page(probe())
    for phrase in (
        "autoencoded-pristine",
        "0.25 (best F1 on validation)",
        "CC BY 2.0",
        "without an identity",
        "- f1: 0.5",
        "0.432 [0.400, 0.500] over 12",
    ):
        assert phrase in text
    push(probe(), place)  # again, into the same folder
    with pytest.raises(OutputError, match="its parent does not exist"):
        push(probe(), tmp_path / "no" / "out")
    with pytest.raises(ProbeError, match="no probe at"):
        pull(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("README.md", "My own notes.\n"), ("probe.safetensors", "mine")])
def test_files_of_others_are_not_overwritten(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=f"{name} was not written by dlprobe") as caught:
        push(probe(), tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_page_that_was_edited_is_not_overwritten(tmp_path):
    push(probe(), tmp_path)
    push(probe(3), tmp_path)
    before = (tmp_path / "probe.safetensors").read_bytes()
    with (tmp_path / "README.md").open("a") as file:
        file.write("Do not use it on screenshots.\n")
    with pytest.raises(OutputError, match=r"README.md was not written by dlprobe, or was changed since"):
        push(probe(), tmp_path)
    assert (tmp_path / "probe.safetensors").read_bytes() == before


def test_a_repository_gets_the_same_files(tmp_path, monkeypatch):
    import huggingface_hub

    made = []

    def upload_folder(*, repo_id, folder_path, revision):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return f"hub/{repo_id}/{revision}"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **options: made.append((name, options["private"])))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, revision: str(tmp_path / name / file))
    assert push(probe(), "hf:me/probe", revision="v1") == "hub/me/probe/v1"
    assert made == [("me/probe", True)]
    np.testing.assert_array_equal(pull("hf:me/probe").weights, probe().weights)


def test_a_hub_out_of_reach_is_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ProbeError, match="cannot pull from hf:me/probe") as caught:
        pull("hf:me/probe")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="cannot push to hf:me/probe") as caught:
        push(probe(), "hf:me/probe")
    assert "\n" not in str(caught.value)
    with pytest.raises(ProbeError, match="cannot pull from hf:a name/with spaces"):
        pull("hf:a name/with spaces")
