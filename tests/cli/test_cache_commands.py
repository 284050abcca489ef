"""The commands that look after a cache, as a user types them."""

import json
import shutil
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()


def dlprobe(*arguments, code=0):
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def copy(tiny_cache, tmp_path):
    return shutil.copytree(tiny_cache, tmp_path / "copy")


@pytest.fixture
def manifest(tiny, tmp_path):
    dlprobe("scan", tiny / "data", "-o", tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


def damage(cache):
    [path] = (cache / "features.zarr" / "coverage").glob("c.0.*")
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def test_damage_is_found_repaired_and_gone(copy, manifest, tiny_cache):
    assert dlprobe("cache", "verify", copy).stdout == ""
    damage(copy)
    [found] = rows(dlprobe("cache", "verify", copy, "--json", code=3))
    assert (found["block"], found["file"].split("/")[1]) == (0, "coverage")
    [done] = rows(dlprobe("cache", "repair", copy, manifest, "--json"))
    assert (done["recomputed"], done["different"]) == (1, 0)
    dlprobe("cache", "verify", copy)
    [name] = [path.name for path in (copy / "features.zarr" / "coverage").glob("c.0.*")]
    parts = [(folder / "features.zarr" / "coverage" / name).read_bytes() for folder in (copy, tiny_cache)]
    assert parts[0] == parts[1]


def test_deep_verification_reads_images(copy, manifest):
    dlprobe("cache", "verify", copy, "--deep", 3, "--manifest", manifest)
    assert "--manifest" in dlprobe("cache", "verify", copy, "--deep", 3, code=2).stderr


def test_convert_diff_and_parity(copy, tmp_path):
    [made] = rows(dlprobe("cache", "convert", copy, "-o", tmp_path / "hdf5", "--store", "hdf5", "--json"))
    assert made["complete"]
    assert made["files"] < rows(dlprobe("cache", "info", copy, "--json"))[0]["files"]
    assert dlprobe("cache", "diff", copy, tmp_path / "hdf5").stdout == ""
    [found] = rows(dlprobe("cache", "parity", copy, tmp_path / "hdf5", "--json"))
    assert (found["max_abs"], found["cosine_min"]) == (0.0, 1.0)


def test_merge_and_export(copy, tmp_path):
    dlprobe("cache", "merge", copy, copy, "-o", tmp_path / "both", "--prefix", "a/", "--prefix", "b/")
    [info] = rows(dlprobe("cache", "info", tmp_path / "both", "--json"))
    [one] = rows(dlprobe("cache", "info", copy, "--json"))
    assert info["windows"] == 2 * one["windows"]
    [out] = rows(dlprobe("cache", "export", copy, "-o", tmp_path / "out", "--format", "parquet", "--json"))
    assert out["windows"] == one["windows"]
    assert (tmp_path / "out" / "patches.parquet").exists()


@pytest.mark.parametrize("command", ["info", "verify"])
def test_nothing_there_is_one_line(tmp_path, command):
    result = dlprobe("cache", command, tmp_path / "nothing", code=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no cache at" in result.stderr


def test_shards_and_back_ends_from_the_command_line(manifest, tmp_path):
    settings = (manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", "--window", 112, "--block-windows", 8)
    for shard in ("0/2", "1/2"):
        dlprobe("extract", *settings, "--store", "hdf5", "--shard", shard, "--json")
    [info] = rows(dlprobe("cache", "info", tmp_path / "cache", "--json"))
    assert info["complete"]
    assert (tmp_path / "cache" / "features.h5").is_file()
    assert "no shard" in dlprobe("extract", *settings, "--shard", "two", code=2).stderr
