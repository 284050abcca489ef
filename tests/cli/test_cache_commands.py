"""The commands that look after a cache, as a user types them."""

import json
import random
import re
import shutil
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from dlprobe.cache import open_cache

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


def test_repair_says_where_files_went_that_are_no_part_of_the_cache(copy, manifest):
    damage(copy)
    assert "strays" not in dlprobe("cache", "repair", copy, manifest).stderr
    for count, words in (
        (1, "1 file that is no part of the cache was"),
        (2, "2 files that are no part of the cache were"),
    ):
        for number in range(count):
            (copy / "records" / f"notes {number}").write_text("somebody's")
        result = dlprobe("cache", "repair", copy, manifest, "--json")
        assert f"{words} moved to {copy}/strays" in result.stderr.splitlines()
        assert [row["set_apart"] for row in rows(result)] == [count]
    assert (copy / "strays" / "records" / "notes 0.1").read_text() == "somebody's"


@pytest.mark.parametrize("name", ["coverage", "embeddings", "manifest", "moments", "reference", "regions", "windows"])
def test_a_fit_misses_what_verify_misses_and_repair_brings_it_back(copy, manifest, tmp_path, name):
    [chunk, *_] = sorted((copy / "features.zarr" / name).glob("c.*"))
    stored = chunk.read_bytes()
    chunk.unlink()
    [found] = rows(dlprobe("cache", "verify", copy, "--json", code=3))
    result = dlprobe("fit", copy, "-o", tmp_path / "run", code=2)
    [line] = result.stderr.strip().splitlines()
    assert found["file"] in line
    assert "`dlprobe cache repair`" in line
    dlprobe("cache", "repair", copy, manifest)
    assert chunk.read_bytes() == stored


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


def test_damage_found_at_once_leaves_the_images_alone_and_says_so(copy, manifest):
    damage(copy)
    said = dlprobe("cache", "verify", copy, "--deep", 3, "--manifest", manifest, code=3).stderr
    assert "1 damaged part; no window was embedded again (--deep); mend with `dlprobe cache repair" in said


def test_a_subset_is_exported(copy, tmp_path):
    table = open_cache(copy).windows
    chosen = table[(table["variant"] == "sp") & table["generator"].isin(["telea+pca", "ns+pca"])].index[2:]
    other = table.index[table["variant"] == "real"][0]
    (tmp_path / "windows.txt").write_text("\n".join(map(str, [other, *chosen])))
    subset = ("--variant", "sp", "--generator", "telea+pca", "--generator", "ns+pca")
    options = (*subset, "--windows", tmp_path / "windows.txt", "--json")
    [out] = rows(dlprobe("cache", "export", copy, "-o", tmp_path / "out", *options))
    assert out["windows"] == len(chosen) > 0
    for words in ("1, 2", "99999999999999999999"):
        (tmp_path / "windows.txt").write_text(words)
        assert "no list of window" in dlprobe("cache", "export", copy, "-o", tmp_path / "two", *options, code=2).stderr
    said = dlprobe("cache", "export", copy, "-o", tmp_path / "two", "--source", "nobody", code=2).stderr
    assert "no windows of source_id 'nobody'; there are" in said
    assert not (tmp_path / "two").exists()


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


def test_an_incomplete_cache_is_fitted_only_where_that_is_asked_for(copy, tmp_path):
    (copy / "records" / "000002.json").unlink()
    fitting = ("fit", copy, "-o", tmp_path / "run", "--scheme", "autoencoded-pristine", "--lr", 1, "--wd", 0.001)
    fitting += ("--epochs", 1, "--folds", 3)
    said = dlprobe(*fitting, code=2).stderr
    assert "is incomplete: 1 of" in said
    assert "--allow-partial" in said
    assert not (tmp_path / "run").exists()
    assert "partial: 16 of 104 windows" in dlprobe(*fitting, "--allow-partial").stderr


def test_shards_and_back_ends_from_the_command_line(manifest, tmp_path):
    settings = (manifest, "-o", tmp_path / "cache", "--backbone", "residual:srm", "--window", 112, "--block-windows", 8)
    for shard in ("0/2", "1/2"):
        planned, done = (
            rows(dlprobe("extract", *settings, "--store", "hdf5", "--shard", shard, "--json", *more))[0]
            for more in (("--dry-run",), ())
        )
        assert planned["windows"] == done["done"]
    [info] = rows(dlprobe("cache", "info", tmp_path / "cache", "--json"))
    assert info["complete"]
    assert (tmp_path / "cache" / "features.h5").is_file()
    assert "no shard" in dlprobe("extract", *settings, "--shard", "two", code=2).stderr


class TestAFlipAnywhere:
    """One random bit of each file that a cache has, by the commands that a user has: found, named, and mended."""

    @pytest.fixture
    def flipped(self, copy, manifest):
        """Return a function that flips a bit, and gives what verifying found and repairing did."""

        def run(file, start, stop, rng):
            position, before = rng.randrange(start, stop), (copy / file).read_bytes()
            changed = bytearray(before)
            changed[position] ^= 1 << rng.randrange(8)
            (copy / file).write_bytes(changed)
            found = rows(dlprobe("cache", "verify", copy, "--json", code=3))
            [done] = rows(dlprobe("cache", "repair", copy, manifest, "--json"))
            assert (copy / file).read_bytes() == before, (file, position)
            return found, done

        return run

    @staticmethod
    def files(cache):
        return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())

    def test_in_what_belongs_to_no_block(self, copy, flipped):
        rng = random.Random(0)
        names = [name for name in self.files(copy) if re.search(r"zarr\.json|root|(windows|manifest|reference)/", name)]
        assert len(names) == 12
        for name in names:
            found, done = flipped(name, 0, (copy / name).stat().st_size, rng)
            assert [damage["file"] for damage in found] == [name]
            assert (done["restored"], done["recomputed"]) == (1, 0)

    def test_in_blocks_and_records(self, copy, flipped):
        rng, images = random.Random(1), set(open_cache(copy).images_of_block(3))
        names = [name for name in self.files(copy) if re.search(r"c\.3\.0|000003\.json", name)]
        assert len(names) == 5
        for name in names:
            [damage], done = flipped(name, 0, (copy / name).stat().st_size, rng)
            assert (damage["file"], damage["block"], set(damage["images"])) == (name, 3, images)
            assert (done["restored"], done["recomputed"], done["different"]) == (0, 1, 0)

    def test_in_hdf5(self, copy, flipped, tmp_path):
        dlprobe("cache", "convert", copy, "-o", tmp_path / "hdf5")
        shutil.rmtree(copy)
        shutil.copytree(tmp_path / "hdf5", copy)
        rng, cache = random.Random(2), open_cache(copy)
        for part in cache.store.fixed_names():
            found, done = flipped("features.h5", *map(int, part.partition("#")[2].split("-")), rng)
            assert [damage["file"] for damage in found] == [part]
            assert (done["restored"], done["recomputed"]) == (1, 0)
        for array, digest in cache.record(3).chunks.items():
            start = cache.store.extent(array, 3).offset
            [damage], done = flipped("features.h5", start, start + digest.length, rng)
            assert (damage["block"], set(damage["images"])) == (3, set(cache.images_of_block(3)))
            assert (done["restored"], done["recomputed"], done["different"]) == (0, 1, 0)

    def test_a_file_of_hdf5_that_was_cut_short(self, copy, manifest, tmp_path):
        dlprobe("cache", "convert", copy, "-o", tmp_path / "hdf5")
        path, cache = tmp_path / "hdf5" / "features.h5", open_cache(tmp_path / "hdf5")
        whole, last = path.read_bytes(), cache.n_blocks - 1
        images = set(cache.images_of_block(last))
        cut = cache.store.extent("moments", last).offset + 7
        path.write_bytes(whole[:cut])
        found = rows(dlprobe("cache", "verify", tmp_path / "hdf5", "--json", code=3))
        blocks = [damage for damage in found if damage["block"] is not None]
        assert [damage["block"] for damage in blocks] == [last]
        assert set(blocks[0]["images"]) == images
        assert f"ends at byte {cut}" in blocks[0]["reason"]
        [done] = rows(dlprobe("cache", "repair", tmp_path / "hdf5", manifest, "--json"))
        assert (done["recomputed"], done["different"]) == (1, 0)
        assert path.read_bytes() == whole

    def test_in_both_places_that_say_what_the_cache_is(self, copy, manifest):
        for name in ("features.zarr/zarr.json", "records/root.json"):
            (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        said = dlprobe("cache", "repair", copy, manifest, code=2).stderr
        assert len(said.strip().splitlines()) == 1
        assert "neither from features.zarr nor from records/root.json; put one of them back from a copy" in said
