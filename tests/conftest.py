"""A whole small data set with its cache and run, made once, by the paths that a user takes."""

import subprocess
from pathlib import Path

import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.data import scan
from dlprobe.data.synthesis import HELD_OUT_GENERATORS, build_demo
from dlprobe.extraction import extract
from dlprobe.studies import FitSettings, fit_caches

WINDOW_PX = 112
SETTINGS = FitSettings(
    schemes=("autoencoded-pristine", "autoencoded-fake"),
    learning_rates=(0.3, 1.0, 3.0),
    weight_decays=(1e-3,),
    epochs=2,
    patience=None,
    n_folds=4,
    hold_out=HELD_OUT_GENERATORS,
    baselines=("logistic",),
    baseline_c=(0.01,),
    baseline_patches=1500,
)


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none, also when it is asked for by name."""
    if not torch.cuda.is_available():
        absent = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(absent)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return the folder of a tiny demo data set: 8 photographs of 128 px."""
    folder = tmp_path_factory.mktemp("tiny")
    build_demo(folder / "data", photographs=8, side_px=128, window_px=WINDOW_PX)
    return folder


@pytest.fixture(scope="session")
def tiny_manifest(tiny):
    """Return its manifest."""
    return scan(tiny / "data").manifest


@pytest.fixture(scope="session")
def tiny_backbone():
    """Return the residual backbone for its windows."""
    return load_backbone("residual:srm", window_px=WINDOW_PX)


@pytest.fixture(scope="session")
def tiny_cache(tiny, tiny_manifest, tiny_backbone):
    """Return the path of its cache."""
    extract(tiny_manifest, tiny_backbone, tiny / "cache", stride_px=WINDOW_PX, block_windows=16)
    return tiny / "cache"


@pytest.fixture(scope="session")
def tiny_fit(tiny, tiny_cache):
    """Return the result of a fit on it."""
    return fit_caches([tiny_cache], tiny / "run", settings=SETTINGS)


class SmallDisk:
    """A file system of a few kilobytes that can grow, mounted by a shell that is root or plays it in a namespace."""

    def __init__(self, command, mount):
        self._shell = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._mount = mount
        # what is mounted in a namespace of its own can be seen from outside through the process that holds it
        self.path = Path(f"/proc/{self._shell.pid}/root{mount}" if command[0] == "unshare" else mount)

    def run(self, command):
        """Run a command in the shell; tell whether it succeeded."""
        try:
            self._shell.stdin.write(f"{command} >&2 && echo yes || echo no\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            return False
        return self._shell.stdout.readline() == "yes\n"

    def resize(self, size):
        """Set the size, such as ``16k``."""
        assert self.run(f"mount -o remount,size={size} {self._mount}")

    def close(self):
        """Take the file system away."""
        self.run(f"umount {self._mount}")
        self._shell.stdin.close()
        self._shell.stdout.close()
        self._shell.wait(timeout=10)


@pytest.fixture
def small_disk(tmp_path):
    """Return a `SmallDisk` of 16 kB; skipped only where neither root nor user namespaces can mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    for command in (["sh"], ["unshare", "-rm", "sh"]):
        try:
            disk = SmallDisk(command, mount)
        except FileNotFoundError:
            continue
        try:
            if disk.run(f"mount -t tmpfs -o size=16k none {mount}"):
                yield disk
                return
        finally:
            disk.close()
    pytest.skip("no file system can be mounted here, neither by this user nor in a user namespace")
