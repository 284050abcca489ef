"""Which runner is meant."""

import pickle
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlprobe.backbones import load_backbone
from dlprobe.errors import BackboneError, CacheError, IdentityError, RegistryError
from dlprobe.extraction import LocalRunner, RayRunner, extract
from dlprobe.extraction.runners import Job, find_runner
from dlprobe.extraction.runners.cluster import _Pool, _room
from dlprobe.extraction.runners.worker import load_there, order_of


def test_names_and_runners():
    assert isinstance(find_runner("local"), LocalRunner)
    assert find_runner("ray") == RayRunner()
    mine = RayRunner(workers=3)
    assert find_runner(mine) is mine


def test_a_runner_that_there_is_none_of(manifest, backbone, tmp_path):
    with pytest.raises(RegistryError, match="no runner 'slurm'; write one of local, ray"):
        extract(manifest, backbone, tmp_path / "cache", runner="slurm")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"cpus_per_worker": 0}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(CacheError, match="at least one of each"):
        RayRunner(**numbers)


class Writer:
    """Where a cache would be written, and which of its blocks are not recorded yet."""

    path = Path("cache")

    def __init__(self, missing=()):
        self.missing = missing


def sent(manifest, backbone):
    """Return the order for a backbone, as it arrives."""
    job = Job(manifest=manifest, backbone=backbone, windows=np.zeros((0, 6), np.int32), max_pixels=1)
    return pickle.loads(pickle.dumps(order_of(job, Writer(), 1)))  # noqa: S301


def loaded(order):
    """Return what a worker loads for an order."""
    return load_there(order.backbone, order.spec, order.pins)


def network(**options):
    return load_backbone("timm:test_vit", **{"weights": "random:0", "device": "cpu", "window_px": 160, **options})


@pytest.mark.parametrize(
    "options", [{}, {"compiled": True, "batch_size": 3}, {"engine": "openvino", "layers": (0, -1), "norm": False}]
)
def test_a_backbone_with_a_name_is_loaded_again_by_a_worker(manifest, options):
    if "engine" in options:
        pytest.importorskip("openvino")
    here = network(**options)
    there = loaded(sent(manifest, here))
    assert (there.spec, there.pins) == (here.spec, here.pins)
    if not here.pins.compiled:
        windows = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
        assert torch.equal(there(windows), here(windows))


def test_the_size_that_was_settled_is_the_worker_s(manifest):
    assert loaded(sent(manifest, network().with_batch_size(3))).pins.batch_size == 3


def test_an_order_has_no_relative_path(manifest, tmp_path, monkeypatch):
    import timm

    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), "weights.safetensors")
    order = sent(type(manifest)(manifest.frame, "images"), network(weights="weights.safetensors"))
    assert order.manifest.root == tmp_path / "images"
    assert order.path == str(tmp_path / "cache")
    monkeypatch.chdir("/")
    assert loaded(order).spec == order.spec
    changed = {name: tensor + 1 for name, tensor in load_file(tmp_path / "weights.safetensors").items()}
    save_file(changed, tmp_path / "weights.safetensors")
    with pytest.raises(IdentityError, match=r"the worker on .* differ in weights_sha256: .* same weights") as caught:
        loaded(order)
    assert "\n" not in str(caught.value)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"the worker on .* cannot load the backbone: .*weights.safetensors"):
        loaded(order)


def test_what_a_worker_has_not_installed_is_one_line(manifest, backbone):
    order = replace(sent(manifest, network()), backbone=b"cno_such_module\nBackbone\n.")
    with pytest.raises(BackboneError, match=r"cannot load .* \(No module named 'no_such_module'\); install"):
        loaded(order)


def test_a_worker_has_all_it_needs_on_one_machine(monkeypatch):
    ray = pytest.importorskip("ray")
    machines = [(True, {"CPU": 3.0, "GPU": 2.0}), (True, {"CPU": 3.0}), (False, {"CPU": 64.0}), (True, {"GPU": 4.0})]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": alive, "Resources": found} for alive, found in machines])
    assert _room({"CPU": 1}) == 6
    assert _room({"CPU": 2}) == 2  # and not three
    assert _room({"CPU": 1, "GPU": 1}) == 2
    assert _room({"CPU": 4}) == 0


@pytest.mark.parametrize(
    ("address", "environment", "used"),
    [
        (None, None, "local"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
        ("local", "10.0.0.1:6379", "local"),
    ],
)
def test_which_cluster_is_meant(monkeypatch, address, environment, used):
    ray = pytest.importorskip("ray")
    seen = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: seen.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("dlprobe.extraction.runners.cluster._require_answer", lambda _address: None)
    if environment is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    with RayRunner(address=address, workers=3, cpus_per_worker=2)._cluster():
        pass
    assert seen["address"] == used
    assert seen.get("num_cpus") == (6 if used == "local" else None)


def test_what_was_not_loaded_by_name_is_on_no_other_device(manifest, backbone, tmp_path):
    with pytest.raises(BackboneError, match="was not loaded by name"):
        extract(manifest, backbone, tmp_path / "cache", runner=RayRunner(device="cuda"))


def test_a_machine_without_the_workers_device_begins_a_cache_as_they_would(manifest, tmp_path, *, monkeypatch, tree):
    def somewhere(_runner, function, *arguments):
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))  # noqa: S301
        return function(*arguments)

    settings = {"stride_px": 160, "block_windows": 4}
    there = network(precision="bfloat16", batch_size=2)  # what "auto" is there
    extract(manifest, there, tmp_path / "there", cls=True, **settings)
    auto = replace(there.recipe.request, precision="bfloat16", device="auto")
    here = network(batch_size=2)
    here.recipe = replace(here.recipe, request=auto)
    monkeypatch.setattr(RayRunner, "_call", somewhere)
    monkeypatch.setattr(
        RayRunner,
        "run",
        lambda _self, job, *rest: LocalRunner().run(replace(job, backbone=loaded(sent(manifest, job.backbone))), *rest),
    )
    report = extract(manifest, here, tmp_path / "here", cls=True, runner=RayRunner(device="cpu"), **settings)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    assert extract(manifest, there, tmp_path / "here", cls=True, **settings).drift == 0
    assert report.done == report.windows


def test_a_device_that_no_worker_has_is_one_line(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(RayRunner, "_call", lambda _self, function, *arguments: function(*arguments))
    with pytest.raises(
        BackboneError, match=r"the worker on .* cannot load the backbone: device 'cuda:9' is not on"
    ) as caught:
        extract(manifest, network(), tmp_path / "cache", stride_px=160, runner=RayRunner(device="cuda:9"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


class Seat:
    """A worker that records a block when the cluster is asked, or never, if its machine has gone."""

    def __init__(self, name):
        self.group, self.hand, self.ended, self.given = name, {}, False, []

    def give(self, block):
        self.given.append(block)
        self.hand[(self.group, block)] = block

    def end(self):
        self.ended = True


@pytest.mark.parametrize("gone", [{"a"}, {"a", "b"}])
def test_workers_whose_machines_have_gone_keep_no_block(monkeypatch, gone):
    ray = pytest.importorskip("ray")
    seats, written = [Seat("a"), Seat("b")], []
    pool = _Pool.__new__(_Pool)
    pool._seats, pool._suspects, pool._writer = list(seats), set(), Writer(set(range(9)) - {0})

    def wait(tasks, **_options):
        alive = [task for task in tasks if task[0] not in gone]
        return (alive[:1], tasks)

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr("dlprobe.extraction.runners.cluster._cause_of_death", lambda _task: None)
    monkeypatch.setattr(
        "dlprobe.extraction.runners.cluster._held", lambda groups: [group for group in groups if group not in gone]
    )
    if gone == {"a"}:
        pool.run(deque(range(9)), written.append)
        assert sorted(written) == list(range(9))
        assert seats[0].ended
        assert seats[0].given[0] == 0  # recorded before its machine was lost, and so not given again
        assert set(seats[1].given) == set(range(1, 9))
    else:
        with pytest.raises(CacheError, match="have left the Ray cluster; run the same command again, cache will go on"):
            pool.run(deque(range(9)), written.append)
