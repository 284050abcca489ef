"""Images on disk, a small real backbone and caches made of both, in folders and on a real S3 server on localhost."""

import importlib.util
import shutil
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


BUCKET = "caches"


class Files:
    """The objects of a cache in a folder, seen without dlprobe."""

    def __init__(self, root):
        self.root = Path(root)

    def names(self):
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def read(self, name):
        return (self.root / name).read_bytes()

    def write(self, name, data):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def remove(self, name):
        (self.root / name).unlink()


class Objects:
    """The objects of a cache on S3, seen through boto3."""

    def __init__(self, client, url):
        self._client = client
        self._prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"

    def names(self):
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self._prefix)
        return sorted(item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", ()))

    def read(self, name):
        return self._client.get_object(Bucket=BUCKET, Key=self._prefix + name)["Body"].read()

    def write(self, name, data):
        self._client.put_object(Bucket=BUCKET, Key=self._prefix + name, Body=data)

    def remove(self, name):
        self._client.delete_object(Bucket=BUCKET, Key=self._prefix + name)


@pytest.fixture(scope="session")
def s3():
    """Return a boto3 client of a server on localhost that has one bucket; the environment tells dlprobe of it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("NO_PROXY", host)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client
    server.stop()


@pytest.fixture(scope="session")
def objects(request):
    """Return a function that gives a cache's objects, seen without dlprobe."""

    def see(path):
        if str(path).startswith("s3://"):
            return Objects(request.getfixturevalue("s3"), str(path))
        return Files(path)

    return see


@pytest.fixture
def tree(objects):
    """Return a function that gives the bytes of every object of a cache, locks apart."""

    def read(path):
        found = objects(path)
        return {name: found.read(name) for name in found.names() if not name.startswith("locks/")}

    return read


@pytest.fixture(scope="session")
def flip():
    """Return a function that flips a bit of an object."""

    def change(found, name, position):
        data = bytearray(found.read(name))
        data[position] ^= 1 << position % 8
        found.write(name, bytes(data))

    return change


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
    return Path(shutil.copytree(whole, tmp_path / "copy"))
