"""The probe file: deterministic, whole, and refused when it is something else."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from dlprobe.errors import IdentityError, OutputError, ProbeError
from dlprobe.probes import Probe, make_card
from dlprobe.spec import ModelSpec

SPEC = ModelSpec(
    backbone="timm:vit_small",
    implementation="timm",
    weights_sha256="0" * 64,
    layers=(11,),
    norm=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    resize_rule="enlarge",
    window_px=504,
    patch_px=14,
    width=6,
)


def card(model=SPEC, classes=("inpainted",), **more):
    settings = {"scheme": "autoencoded-pristine", "objective": "dice-batch", "threshold": 0.4, "threshold_policy": "f1"}
    return make_card(model=model, classes=classes, **{**settings, **more})


def probe(dtype=np.float32, k=1, **more):
    rng = np.random.default_rng(0)
    classes = [f"class {i}" for i in range(k)]
    return Probe(rng.normal(size=(k, 6)).astype(dtype), rng.normal(size=k).astype(dtype), card(classes=classes, **more))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3])
def test_a_probe_comes_back_as_it_was(tmp_path, dtype, k):
    written = probe(dtype, k, metrics={"f1": 0.5}, notes=["CC BY"], fold=2)
    written.save(tmp_path / "a.safetensors")
    read = Probe.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read.weights, written.weights)
    np.testing.assert_array_equal(read.bias, written.bias)
    assert read.weights.dtype == dtype
    assert read.card == json.loads(json.dumps(written.card))
    assert read.model_spec == SPEC
    assert read.card["model_fingerprint"] == SPEC.fingerprint
    assert read.threshold == 0.4
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_equal_probes_are_equal_files(tmp_path):
    probe().save(tmp_path / "a")
    same = probe()
    Probe(same.weights, same.bias, dict(reversed(same.card.items()))).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


LISTS = {"train_files": ["00ff" * 4, "ab12" * 4], "val_files": [], "calibration_files": ["9" * 16]}


def header_bytes(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


def test_lists_of_files_come_back_and_leave_the_header_as_it_was(tmp_path):
    written = probe(data={"split": "3 folds", **LISTS})
    written.save(tmp_path / "few")
    read = Probe.load(tmp_path / "few")
    assert read.card == json.loads(json.dumps(written.card))
    assert read.sha256 == written.sha256
    assert read.seen_files() == {"00ff" * 4: "trained on", "ab12" * 4: "trained on", "9" * 16: "calibrated on"}
    many = [f"{number:016x}" for number in range(10**5)]
    probe(data={"split": "3 folds", **LISTS, "train_files": many}).save(tmp_path / "many")
    assert header_bytes(tmp_path / "many") < header_bytes(tmp_path / "few") + 100
    assert Probe.load(tmp_path / "many").card["data"]["train_files"] == many


def test_a_card_with_its_lists_in_the_header_is_read(tmp_path):
    one = probe(data=LISTS)
    tensors = {"weights": one.weights, "bias": one.bias}
    save_file(tensors, tmp_path / "old", metadata={"dlprobe": json.dumps(one.card)})
    assert Probe.load(tmp_path / "old").card == json.loads(json.dumps(one.card))
    for shape, content in [((2, 7), one.card), ((2, 8), []), ((2, 8), {**one.card, "data": None})]:
        odd = {**tensors, "val_files": np.zeros(shape, np.uint8)}
        save_file(odd, tmp_path / "odd", metadata={"dlprobe": json.dumps(content)})
        with pytest.raises(ProbeError, match="odd: val_files is no list of files"):
            Probe.load(tmp_path / "odd")


@pytest.mark.parametrize("marks", [["ABCD" * 4], ["ab12"], [1], "ab12" * 4, None])
def test_what_is_no_list_of_hashes_stays_as_it_is(tmp_path, marks):
    probe(data={"train_files": marks}).save(tmp_path / "a")
    assert Probe.load(tmp_path / "a").card["data"] == {"train_files": marks}


def test_a_card_too_large_for_a_header_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(ProbeError, match=r"has 100 MB, most of them in its field 'data'.*fewer or shorter") as caught:
        probe(data={"train_sources": ["x" * 10**8]}).save(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_logits_are_the_affine_map():
    embeddings = np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float16)
    one = probe(k=3)
    expected = np.einsum("...d,kd->...k", embeddings.astype(np.float64), one.weights.astype(np.float64)) + one.bias
    assert one.logits(embeddings).dtype == np.float32
    np.testing.assert_allclose(one.logits(embeddings), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ProbeError, match="width 6 was given embeddings of shape"):
        one.logits(embeddings[..., :5])


def test_another_model_is_refused_with_the_fields_that_differ():
    from dataclasses import replace

    assert probe().require_model(SPEC)
    assert not probe().require_model(None)
    assert not probe(model=None).require_model(SPEC)
    with pytest.raises(IdentityError, match=r"weights_sha256: .* != .*; use the backbone"):
        probe().require_model(replace(SPEC, weights_sha256="1" * 64))


def test_files_that_are_no_probes_are_refused_in_one_line(tmp_path):
    probe().save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-3])
    (tmp_path / "header").write_bytes(content[:20])
    (tmp_path / "text").write_text("not a probe")
    (tmp_path / "empty").write_bytes(b"")
    save_file({"weights": np.ones((1, 2), np.float32)}, tmp_path / "foreign")
    (tmp_path / "newer").write_bytes(content.replace(b'\\"version\\":1', b'\\"version\\":9'))
    expected = {
        "cut": "no whole",
        "header": "no whole",
        "text": "no whole",
        "empty": "no whole",
        "missing": "no probe at",
        "foreign": "but no probe of dlprobe",
        "newer": "this release reads",
    }
    for name, message in expected.items():
        with pytest.raises(ProbeError, match=message) as caught:
            Probe.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="its folder does not exist"):
        probe().save(tmp_path / "no" / "a")
    with pytest.raises(OutputError, match="it is a folder"):
        probe().save(tmp_path)
    with pytest.raises(ProbeError, match="not JSON"):
        probe(metrics={"f1": float("nan")}).save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "bias", "changes", "message"),
    [
        (np.ones((1, 6), np.float16), np.ones(1, np.float16), {}, "use float32 or float64"),
        (np.ones(6, np.float32), np.ones(1, np.float32), {}, "give \\(k, width\\)"),
        (np.full((1, 6), np.nan, np.float32), np.ones(1, np.float32), {}, "not finite"),
        (np.ones((1, 5), np.float32), np.ones(1, np.float32), {}, "width 5, the model on its card 6"),
        (np.ones((2, 6), np.float32), np.ones(2, np.float32), {}, "2 logits and 1 classes"),
        (np.ones((1, 6), np.float32), np.ones(1, np.float32), {"schema": {"kind": "x", "version": 1}}, "schema"),
    ],
)
def test_a_probe_that_does_not_hold_together_is_refused(weights, bias, changes, message):
    with pytest.raises(ProbeError, match=message):
        Probe(weights, bias, {**card(), **changes})
    with pytest.raises(ProbeError, match="lacks threshold"):
        Probe(np.ones((1, 6)), np.ones(1), {key: value for key, value in card().items() if key != "threshold"})
