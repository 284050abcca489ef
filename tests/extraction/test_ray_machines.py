"""Machines of a Ray cluster that come late, go early, or are short of memory: the bytes of one process all the same."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest

from dlprobe.cache import open_cache
from dlprobe.errors import CacheError
from dlprobe.extraction import RayRunner, extract
from dlprobe.extraction.runners import cluster as runners

SETTINGS = {"stride_px": 40, "block_windows": 2}


@pytest.fixture
def new_cluster(monkeypatch):
    """Return a function that starts a cluster to which machines can be added, all of them on this one."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    begun = []

    def start(cores):
        begun.append(Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False}))
        return begun[-1]

    yield start
    ray.shutdown()
    for found in begun:
        found.shutdown()


@pytest.fixture
def dead(monkeypatch):
    """Return the list of what Ray says of each worker that dies."""
    found, tell = [], runners._told_of

    def told(error):
        found.append(type(error).__name__)
        return tell(error)

    monkeypatch.setattr(runners, "_told_of", told)
    return found


@pytest.fixture
def joining():
    """Return a function that starts a machine of one core, which takes a while to join a cluster."""
    begun = []

    def start(address):
        options = [f"--address={address}", "--num-cpus=1", "--disable-usage-stats", "--block"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        begun.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    yield start
    for process in begun:
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "workers"), [(0, None), (1, 2)])
def test_a_machine_that_joins_late_is_waited_for(
    new_cluster, joining, images, model, *, tmp_path, alone, tree, monkeypatch, cores, workers
):
    room, seen = runners._room, []
    monkeypatch.setattr(runners, "_room", lambda needs: seen.append(room(needs)) or seen[-1])
    cluster = new_cluster(cores)
    joining(cluster.address)
    runner = RayRunner(address=cluster.address, workers=workers)
    extract(images, model, tmp_path / "cache", runner=runner, **SETTINGS)
    assert seen == [cores]  # it was not there when places were asked for
    assert tree(tmp_path / "cache") == tree(alone)


@pytest.mark.slow
def test_a_machine_that_never_joins_is_one_line(new_cluster, images, model, tmp_path):
    runner = RayRunner(address=new_cluster(0).address, wait_s=2)
    with pytest.raises(CacheError, match=r"waited 2 s .* has room for 0 workers of 1 CPU; ask for fewer") as caught:
        extract(images, model, tmp_path / "cache", runner=runner, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_the_blocks_of_a_machine_that_leaves_go_to_the_others(
    new_cluster, images, model, tmp_path, *, alone, tree, monkeypatch
):
    monkeypatch.setattr(runners, "_SILENCE_S", 5.0)
    cluster = new_cluster(1)
    node, removed = cluster.add_node(num_cpus=1), []

    def remove(done, _total):
        if done >= 8 and not removed:
            cluster.remove_node(node, allow_graceful=False)
            removed.append(done)

    runner = RayRunner(address=cluster.address, workers=2)
    extract(images, model, tmp_path / "cache", runner=runner, progress=remove, **SETTINGS)
    assert removed
    assert tree(tmp_path / "cache") == tree(alone)


@pytest.mark.slow
def test_workers_that_the_memory_monitor_ends_cost_their_blocks_alone(
    new_cluster, projection, images, tmp_path, *, monkeypatch, tree, dead
):
    """Nothing fills the memory: to the monitor hardly any is too much, and it looks seldom."""
    import ray

    class Slow(projection.Projection):
        def __call__(self, windows):
            time.sleep(1.5)
            return super().__call__(windows)

    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "30000")
    ray.cloudpickle.register_pickle_by_value(projection)
    extract(images, projection.Projection(), tmp_path / "alone", **SETTINGS)
    runner = RayRunner(address=new_cluster(2).address, workers=2)
    report = extract(images, Slow(), tmp_path / "cache", runner=runner, **SETTINGS)
    assert "OutOfMemoryError" in dead
    assert (report.done, report.rejected) == (report.windows, ())
    assert tree(tmp_path / "cache") == tree(tmp_path / "alone")


@pytest.mark.slow
def test_machines_that_stay_short_of_memory_are_one_line(
    new_cluster, images, model, tmp_path, *, monkeypatch, tree, alone, dead
):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "250")
    runner = RayRunner(address=new_cluster(2).address, workers=2)
    said = r"3 workers died over block \d+ of .* \(their machine was short of memory\); .* give each more room"
    with pytest.raises(CacheError, match=said) as caught:
        extract(images, model, tmp_path / "cache", runner=runner, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert set(dead) <= {"OutOfMemoryError", "ActorDiedError"}
    assert not (tmp_path / "cache").exists() or open_cache(tmp_path / "cache").missing_blocks
    extract(images, model, tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(alone)


@pytest.mark.parametrize("name", ["WorkerCrashedError", "LocalRayletDiedError", "OutOfMemoryError", "RaySystemError"])
def test_whatever_ends_a_worker_is_a_death_with_a_short_reason(monkeypatch, name):
    import ray

    error = getattr(ray.exceptions, name)
    page = "what happened\n" + "what to do about it " * 50
    raised = error(page) if name in {"OutOfMemoryError", "RaySystemError"} else error()

    def get(_task):
        raise raised

    monkeypatch.setattr(ray, "get", get)
    reason = runners._cause_of_death("task")
    assert reason
    assert len(reason) <= 300
    assert "\n" not in reason
    assert (reason == "their machine was short of memory") == (name == "OutOfMemoryError")
