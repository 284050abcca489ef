"""Images on disk, a small real backbone and caches made of both."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dlprobe.backbones import load_backbone
from dlprobe.extraction import extract

PROJECTION = Path(__file__).with_name("projection.py")


@pytest.fixture(scope="session")
def projection():
    """Return the module of the test backbone."""
    name = "dlprobe_test_projection"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PROJECTION)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def manifest(projection, tmp_path_factory):
    """Return the manifest of ten images."""
    return projection.write_images(tmp_path_factory.mktemp("images"), projection.SIZES)


@pytest.fixture(scope="session")
def backbone(projection):
    """Return the test backbone."""
    return projection.Projection()


@pytest.fixture(scope="session")
def model():
    """Return a backbone that every process can import."""
    return load_backbone("residual:srm", window_px=56)


@pytest.fixture(scope="session")
def images(projection, tmp_path_factory):
    """Return the manifest of twenty images."""
    return projection.write_images(tmp_path_factory.mktemp("images"), projection.SIZES * 2)


@pytest.fixture(scope="session")
def alone(images, model, tmp_path_factory):
    """Return the folder of what this process extracts alone, with the settings of the tests of Ray."""
    path = tmp_path_factory.mktemp("alone") / "cache"
    extract(images, model, path, stride_px=40, block_windows=2)
    return path


@pytest.fixture
def tree():
    """Return a function that gives the bytes of every file in a folder, locks apart."""

    def read(root):
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.parent.name != "locks"
        }

    return read
