"""A real Ray cluster on this machine: the bytes of one process, whatever is killed.

What runs by default shares one cluster and takes half a minute; the rest is slow.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache, verify
from dlprobe.data import Manifest
from dlprobe.data.samples import read_sample
from dlprobe.errors import BackboneError, CacheError
from dlprobe.extraction import RayRunner, extract

SETTINGS = {"stride_px": 40, "block_windows": 2}


@pytest.fixture(scope="module")
def cluster():
    """Return nothing, while a cluster with room for two workers is there, to which this process is connected."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def disconnected():
    """End the cluster that other tests share: a process is connected to one at a time."""
    import ray

    ray.shutdown()


def workers():
    """Return the processes of the actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "BlockWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_the_bytes_are_those_of_one_process(self, images, model, tmp_path, *, alone, tree, monkeypatch):
        seen = []
        monkeypatch.chdir(images.root.parent)  # the workers are elsewhere
        named = Manifest(images.frame, images.root.name)
        path = Path(os.path.relpath(tmp_path / "cache"))
        settings = {**SETTINGS, "runner": RayRunner(workers=2)}
        report = extract(named, model, path, progress=lambda *n: seen.append(n), **settings)
        assert tree(tmp_path / "cache") == tree(alone)
        assert report.rejected == ()
        assert (seen[0], seen[-1]) == ((0, report.windows), (report.windows, report.windows))
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert extract(named, model, path, **settings).done == 0

    def test_a_killed_worker_costs_the_blocks_in_its_hands_alone(self, images, model, tmp_path, alone, tree):
        killed = []

        def kill_one(done, _total):
            if done >= 6 and not killed:
                victim = workers()[0]
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

        report = extract(images, model, tmp_path / "cache", runner=RayRunner(workers=2), progress=kill_one, **SETTINGS)
        assert killed
        assert report.done == report.windows
        assert tree(tmp_path / "cache") == tree(alone)
        assert not list((tmp_path / "cache").rglob(".dlprobe-scratch-*"))
        assert verify(tmp_path / "cache") == []

    def test_others_hold_the_cluster(self, images, model, tmp_path):
        import ray

        held = ray.util.placement_group([{"CPU": 1}])
        assert held.wait(30)
        try:
            with pytest.raises(CacheError, match=r"waited 1 s for 2 workers of 1 CPU: .* has room for 1 now") as caught:
                extract(images, model, tmp_path / "cache", runner=RayRunner(workers=2, wait_s=1), **SETTINGS)
        finally:
            ray.util.remove_placement_group(held)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.slow
    def test_what_others_hold_is_left_to_them(self, images, model, tmp_path, *, alone, tree):
        import ray

        held = ray.util.placement_group([{"CPU": 1}])
        assert held.wait(30)
        try:
            extract(images, model, tmp_path / "cache", runner=RayRunner(wait_s=1), **SETTINGS)
        finally:
            ray.util.remove_placement_group(held)
        assert tree(tmp_path / "cache") == tree(alone)
        for _ in range(100):  # Ray tells a little later what is free
            if ray.available_resources().get("CPU") == 2:
                return
            time.sleep(0.2)
        pytest.fail("a worker's place is kept from others afterwards")

    @pytest.mark.slow
    def test_the_bytes_are_those_of_one_process_in_hdf5_too(self, images, model, tmp_path, tree):
        settings = {**SETTINGS, "store": "hdf5"}
        extract(images, model, tmp_path / "alone", **settings)
        extract(images, model, tmp_path / "cache", runner=RayRunner(workers=2), **settings)
        assert tree(tmp_path / "cache") == tree(tmp_path / "alone")

    @pytest.mark.slow
    def test_an_engine_that_cannot_be_sent_is_loaded_by_each_worker(self, images, tmp_path, tree):
        pytest.importorskip("openvino")
        network = load_backbone(
            "timm:test_vit", weights="random:0", device="cpu", window_px=160, engine="openvino", precision="float32"
        )
        settings = {"stride_px": 160, "block_windows": 2}
        extract(images, network, tmp_path / "alone", **settings)
        extract(images, network, tmp_path / "cache", runner=RayRunner(workers=2), **settings)
        assert tree(tmp_path / "cache") == tree(tmp_path / "alone")

    @pytest.mark.slow
    def test_a_cache_is_begun_where_the_workers_are(self, images, tmp_path, tree):
        network = load_backbone("timm:test_vit", weights="random:0", device="cpu", window_px=160)
        settings = {"stride_px": 160, "block_windows": 2}
        extract(images, network, tmp_path / "alone", **settings)
        extract(images, network, tmp_path / "cache", runner=RayRunner(workers=1, device="cpu"), **settings)
        assert tree(tmp_path / "cache") == tree(tmp_path / "alone")

    @pytest.mark.slow
    def test_a_cluster_without_the_device(self, images, model, tmp_path):
        with pytest.raises(CacheError, match="room for 0 workers of 1 GPU and 1 CPU"):
            extract(images, model, tmp_path / "cache", runner=RayRunner(device="cuda", wait_s=1), **SETTINGS)

    @pytest.mark.slow
    def test_the_block_that_kills_is_named_and_not_the_one_beside_it(self, images, tmp_path, projection):
        import ray

        class Deadly(projection.Projection):
            def __call__(self, windows):
                if (windows.astype(int).sum(axis=(1, 2, 3)) == self.victim).any():
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(windows)

        ray.cloudpickle.register_pickle_by_value(projection)
        extract(images, projection.Projection(), tmp_path / "whole", **SETTINGS)
        deadly, block = Deadly(), 5
        row = open_cache(tmp_path / "whole").windows.query("block == @block").iloc[0]
        sample = read_sample(images.root, images.frame.set_index("path", drop=False).loc[row["path"]], 56)
        box = np.s_[row["y"] : row["y"] + 56, row["x"] : row["x"] + 56]
        deadly.victim = int(sample.pixels[box].astype(int).sum())
        with pytest.raises(CacheError, match=rf"3 workers died over block {block} of"):
            extract(images, deadly, tmp_path / "cache", runner=RayRunner(workers=1), **SETTINGS)

    @pytest.mark.slow
    def test_workers_that_die_again_and_again_end_it(self, images, model, tmp_path, alone, tree):
        stop = threading.Event()

        def kill_all():
            while not stop.wait(0.02):
                for process in workers():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill_all)
        killer.start()
        try:
            with pytest.raises(CacheError, match="3 workers died over block") as caught:
                extract(images, model, tmp_path / "cache", runner=RayRunner(workers=2), **SETTINGS)
        finally:
            stop.set()
            killer.join()
        assert "\n" not in str(caught.value)
        extract(images, model, tmp_path / "cache", **SETTINGS)
        assert tree(tmp_path / "cache") == tree(alone)

    @pytest.mark.slow
    def test_a_worker_computes_on_as_many_threads_as_it_has_cores(self, images, tmp_path, projection):
        import ray
        import torch

        class Threads(projection.Projection):
            def __call__(self, windows):
                return torch.full((len(windows), *(self.spec.grid,) * 2, self.width), float(torch.get_num_threads()))

        ray.cloudpickle.register_pickle_by_value(projection)
        for cores in (1, 2):
            path = tmp_path / str(cores)
            extract(images, Threads(), path, runner=RayRunner(workers=1, cpus_per_worker=cores), **SETTINGS)
            assert (open_cache(path).read([0]).embeddings == cores).all()

    def test_what_goes_wrong_in_a_worker_is_said_as_it_would_be_here(self, images, tmp_path, projection):
        class Unsendable(projection.Projection):
            lock = threading.Lock()

            def __getstate__(self):
                return {**self.__dict__, "lock": self.lock}

        with pytest.raises(BackboneError, match=r"cannot be sent to other machines .* use shards"):
            extract(images, Unsendable(), tmp_path / "cache", runner="ray", **SETTINGS)
        assert not (tmp_path / "cache").exists()

    def test_more_workers_than_there_is_room_for(self, images, model, tmp_path):
        with pytest.raises(CacheError, match="room for 2 workers of 1 CPU"):
            extract(images, model, tmp_path / "cache", runner=RayRunner(workers=9, wait_s=1), **SETTINGS)
        assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("disconnected")
def test_ctrl_c_ends_the_cluster_and_keeps_what_was_recorded(images, model, tmp_path, alone, tree):
    script = tmp_path / "run.py"
    script.write_text(INTERRUPTED.format(folder=str(Path(__file__).parent), images=str(images.root)))
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"},  # a cluster of its own asks nobody
    ) as run:
        run.stdout.readline()
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.stderr.read()
    psutil.wait_procs(children, timeout=30)
    assert not [process for process in children if process.is_running()]
    cache = open_cache(tmp_path / "cache")
    assert 0 < len(cache.missing_blocks) < cache.n_blocks
    assert not list((tmp_path / "cache").rglob(".dlprobe-scratch-*"))
    stored = {int(path.name.split(".")[1]) for path in cache.path.glob("features.zarr/embeddings/c.*")}
    assert stored.isdisjoint(cache.missing_blocks)
    extract(images, model, tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(alone)


INTERRUPTED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
import projection
from dlprobe.backbones import load_backbone
from dlprobe.extraction import RayRunner, extract

def progress(done, total):
    if done >= 6:
        print("begun", flush=True)
        time.sleep(60)

manifest = projection.write_images(pathlib.Path({images!r}), projection.SIZES * 2)
try:
    extract(manifest, load_backbone("residual:srm", window_px=56), sys.argv[1], stride_px=40, block_windows=2,
            runner=RayRunner(address="local", workers=1), progress=progress)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.usefixtures("disconnected")
def test_no_cluster_at_an_address(images, model, tmp_path, *, monkeypatch, named):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:8" if named else "127.0.0.1:9")
    runner = RayRunner(address="127.0.0.1:9" if named else None)
    with pytest.raises(CacheError, match=r"no Ray cluster at 127\.0\.0\.1:9") as caught:
        extract(images, model, tmp_path / "cache", runner=runner, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
