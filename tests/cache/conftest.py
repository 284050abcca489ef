"""Images on disk, a small real backbone and caches made of both."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROJECTION = Path(__file__).parent.parent / "extraction" / "projection.py"


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


@pytest.fixture(scope="session")
def whole(manifest, backbone, tmp_path_factory):
    """Return the folder of a complete cache in blocks of four windows; not to be changed."""
    from dlprobe.extraction import extract

    path = tmp_path_factory.mktemp("caches") / "whole"
    extract(manifest, backbone, path, stride_px=40, block_windows=4)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """Return a copy of that cache, to be changed."""
    import shutil

    return Path(shutil.copytree(whole, tmp_path / "copy"))
