"""Through Ray's client: a cluster whose head is another process, reached at ``ray://HOST:PORT``."""

import contextlib
import errno
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from dlprobe.cache import open_cache
from dlprobe.errors import BackboneError, CacheError, ExtraError
from dlprobe.extraction import RayRunner, extract
from dlprobe.extraction.runners import cluster as runners

SETTINGS = {"stride_px": 40, "block_windows": 2}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Head:
    """A cluster with room for two workers, started as a user does it; ended with all of its processes."""

    def __init__(self, folder):
        port = free_port()
        ports = [
            f"--port={free_port()}",
            f"--ray-client-server-port={port}",
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        self.address = f"ray://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *ports, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            time.sleep(0.2)
        self.end()
        pytest.fail("no cluster within a minute")

    def processes(self):
        """Return all of its processes that live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def workers(self):
        """Return the processes of actors."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "BlockWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self):
        """Kill it."""
        processes = self.processes()
        self._process.kill()
        self._process.wait()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=20)


@pytest.fixture
def new_head(monkeypatch):
    """Return a function that starts a cluster; this process leaves the one that it may be connected to."""
    import tempfile

    import ray

    ray.shutdown()
    # where a cluster that Ray began by itself has left a token, others ask for it, and clients have to be told
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    heads = []
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets need short paths

        def start():
            heads.append(Head(folder))
            return heads[-1]

        yield start
        ray.shutdown()
        for head in heads:
            head.end()


@pytest.mark.slow
def test_the_bytes_are_those_of_one_process_whatever_is_killed(new_head, images, model, tmp_path, *, alone, tree):
    import ray

    head, seen, killed = new_head(), [], []

    def look(done, _total):
        seen.append(done)
        if done >= 6 and not killed:
            [victim, *_] = head.workers()
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.pid)

    runner = RayRunner(address=head.address, workers=2)
    report = extract(images, model, tmp_path / "cache", runner=runner, progress=look, **SETTINGS)
    assert killed
    assert (report.done, report.rejected) == (report.windows, ())
    assert seen == sorted(set(seen))
    assert tree(tmp_path / "cache") == tree(alone)
    assert not list((tmp_path / "cache").rglob(".dlprobe-scratch-*"))
    assert not ray.is_initialized()

    held = None
    try:  # others hold it
        ray.init(head.address, log_to_driver=False)
        held = ray.util.placement_group([{"CPU": 1}])
        ray.get(held.ready(), timeout=30)
        with pytest.raises(CacheError, match=r"waited 1 s for 2 workers of 1 CPU: .* has room for 1 now"):
            extract(images, model, tmp_path / "held", runner=RayRunner(workers=2, wait_s=1), **SETTINGS)
    finally:
        ray.util.remove_placement_group(held)
        ray.shutdown()
    assert not (tmp_path / "held").exists()


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_said_as_it_would_be_here(new_head, images, model, tmp_path, projection):
    """The worker has no module of the test's backbone."""
    runner = RayRunner(address=new_head().address, workers=1)
    with pytest.raises(BackboneError, match=r"the worker on .* cannot load .*; install its code there") as caught:
        extract(images, projection.Projection(), tmp_path / "cache", runner=runner, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()

    def stop(_done, _total):
        raise BrokenPipeError(errno.EPIPE, "of the terminal")

    with pytest.raises(BrokenPipeError, match="of the terminal"):  # the cluster is there
        extract(images, model, tmp_path / "cache", runner=runner, progress=stop, **SETTINGS)


@pytest.mark.parametrize(
    ("through_client", "connected", "channel", "lost"),
    [
        (True, False, True, True),
        (True, True, False, True),  # only its channel has gone
        (True, True, True, False),
        (False, True, True, False),
        (False, False, False, False),
    ],
)
def test_only_a_cluster_that_has_gone_is_said_to_have_gone(monkeypatch, *, through_client, connected, channel, lost):
    import ray
    from ray.util import client

    def put(_value):
        if not channel:
            raise ConnectionError("the client has already been disconnected")
        return "reference"

    monkeypatch.setattr(client.ray, "is_connected", lambda: through_client)
    monkeypatch.setattr(ray, "is_initialized", lambda: connected)
    monkeypatch.setattr(ray, "put", put)
    expected = (CacheError, "cannot be reached any more .*gone away") if lost else (BrokenPipeError, "gone away")
    with pytest.raises(expected[0], match=expected[1]), runners._loss_told():
        raise BrokenPipeError(errno.EPIPE, "gone away")


def test_a_client_that_was_lost_before_is_no_hindrance(monkeypatch):
    import ray
    from ray.util import client

    class Lost:
        closed = False

        def close(self):
            self.closed = True

    lost, context = Lost(), client.ray.get_context()
    monkeypatch.setattr(context, "client_worker", lost)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None if context.client_worker is None else pytest.fail("connected"))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(runners, "_require_answer", lambda _address: None)
    with RayRunner(address="ray://127.0.0.1:1", workers=1)._cluster() as own:
        assert own is False
    assert lost.closed


def test_only_what_was_waited_is_said(monkeypatch):
    for room, words in ((1, "the Ray cluster has room for 1 workers"), (9, "others hold the Ray cluster")):
        monkeypatch.setattr(runners, "_room", lambda _needs, room=room: room)
        for waited, begin in ((0.0, "asked for 2 workers of 1 CPU: "), (60.0, "waited 60 s for 2 workers of 1 CPU: ")):
            assert str(runners._too_few({"CPU": 1}, 2, 0, waited)).startswith(begin + words)


@pytest.mark.slow
def test_a_cluster_that_ends_is_one_line_and_keeps_what_was_recorded(new_head, images, model, tmp_path, *, alone, tree):
    head = new_head()

    def end(done, _total):
        if done == 8:
            head.end()

    runner = RayRunner(address=head.address, workers=2)
    with pytest.raises(CacheError, match=r"the Ray cluster cannot be reached any more .* will go on") as caught:
        extract(images, model, tmp_path / "cache", runner=runner, progress=end, **SETTINGS)
    assert "\n" not in str(caught.value)
    cache = open_cache(tmp_path / "cache")
    assert 0 < len(cache.missing_blocks) < cache.n_blocks
    extract(images, model, tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(alone)


def test_the_package_that_ray_s_client_needs_is_named(images, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:9")
    with pytest.raises(ExtraError, match=r"an address ray://HOST:PORT needs grpc; .* 'dlprobe\[ray\]'"):
        extract(images, model, tmp_path / "cache", runner="ray", **SETTINGS)
    assert not (tmp_path / "cache").exists()


def test_nobody_at_the_address(images, model, tmp_path):
    pytest.importorskip("grpc")
    runner = RayRunner(address=f"ray://127.0.0.1:{free_port()}")
    with pytest.raises(CacheError, match=r"no Ray cluster at ray://127\.0\.0\.1:\d+ ") as caught:
        extract(images, model, tmp_path / "cache", runner=runner, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
