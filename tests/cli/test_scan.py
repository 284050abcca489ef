"""The command scan: counts on stdout, what is wrong on stderr, and a sum that leaves no file out."""

import json
import re
import warnings
from importlib.metadata import entry_points

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from dlprobe.cache import open_cache
from dlprobe.data import Manifest
from dlprobe.errors import CacheError

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()
RNG = np.random.default_rng(5)
SIDE = 48


def dlprobe(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def refused(result, *words):
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in ("error: ", *words)), line


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photograph(side=SIDE):
    return np.kron(RNG.integers(0, 256, (side // 8, side // 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


@pytest.fixture
def clean(tmp_path):
    """Return a set without any fault: photographs, spliced fakes of them, and masks."""
    root = tmp_path / "data"
    for number in range(3):
        original = photograph()
        fake, mask = original.copy(), np.zeros((SIDE, SIDE), np.uint8)
        fake[8:24, 8:24] ^= 0x55
        mask[8:24, 8:24] = 255
        save(root / "real" / f"{number}.png", original)
        save(root / "sp" / "lama" / f"{number}.png", fake)
        save(root / "masks" / "sp" / "lama" / f"{number}.png", mask)
    return root


@pytest.fixture
def scanning(clean, tmp_path):
    return "scan", clean, "-o", tmp_path / "m.parquet", "--layout", "folder"


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_clean_set_is_a_table_on_stdout_and_a_sum_on_stderr(scanning, clean, tmp_path):
    (clean / "notes.txt").write_text("x")
    result = dlprobe(*scanning, "--strict")
    assert result.exit_code == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["variant", "generator", "split", "images", "sources"],
        ["real", "3", "3"],
        ["sp", "lama", "3", "3"],
    ]
    assert "10 files in = 6 records + 0 rejects + 4 ignored (mask 3, table or text 1)" in result.stderr.splitlines()
    assert len(pd.read_parquet(tmp_path / "m.parquet")) == 6


def test_findings_and_rejects_are_told_with_severity_name_count_and_examples(scanning, clean):
    mask = clean / "masks/sp/lama/1.png"
    save(mask, 255 - np.asarray(Image.open(mask)))
    result = dlprobe(*scanning)
    assert result.exit_code == 0
    assert dlprobe(*scanning, "--strict").exit_code == 3
    assert result.stderr.splitlines()[-1].endswith("0 rejected, 1 findings, 1 of them an error")
    assert re.search(r"^error: mask-inverted \(1\): .*; such as sp/lama/1.png$", result.stderr, re.MULTILINE)

    (clean / "real/0.png").write_bytes(b"no image")
    result = dlprobe(*scanning)
    assert result.exit_code == 3
    assert re.search(r"^rejected: unreadable: real/0.png: .*damaged", result.stderr, re.MULTILINE)
    assert "9 files in = 5 records + 1 rejects + 3 ignored (mask 3)" in result.stderr


def test_errors_of_the_scan_are_told_again_by_whoever_uses_the_manifest(scanning, clean, tmp_path):
    extracting = ("extract", tmp_path / "m.parquet", "--backbone", "residual:srm", "--window", 56, "--dry-run", "-o")
    assert dlprobe(*scanning).exit_code == 0
    before = Manifest.read(tmp_path / "m.parquet")
    assert "warning" not in dlprobe(*extracting, tmp_path / "cache").stderr
    mask = clean / "masks/sp/lama/1.png"
    save(mask, 255 - np.asarray(Image.open(mask)))
    (clean / "real/0.png").write_bytes(b"no image")  # left out, and so no fault of what is there
    assert dlprobe(*scanning).exit_code == 3
    assert [noted.name for noted in Manifest.read(tmp_path / "m.parquet").noted] == ["mask-inverted"]
    result = dlprobe(*extracting, tmp_path / "cache")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert f"the scan that wrote {tmp_path / 'm.parquet'} found an error: mask-inverted (1); " in line
    save(clean / "real/0.png", np.asarray(Image.open(clean / "real/1.png")))
    dlprobe(*scanning)
    assert Manifest.read(tmp_path / "m.parquet").sha256 == before.sha256  # no part of the identity


def test_facts_are_no_faults(scanning, clean):
    frame = pd.DataFrame(
        {
            "path": [f"real/{n}.png" for n in range(3)],
            "variant": "real",
            "source_id": [f"coco:{n:012d}" for n in (1, 2, 3)],
        }
    )
    frame.to_csv(clean / "manifest.csv", index=False)
    arguments = [*scanning[:-1], "csv", "--json", "--strict"]
    found = dlprobe(*arguments)
    severities = {row["severity"] for row in rows(found) if row["kind"] == "finding" and row["name"] != "orphan-image"}
    assert severities <= {"info"}
    assert found.exit_code == 3  # three images and three masks that the table does not name
    for path in [*(clean / "sp/lama").iterdir(), *(clean / "masks/sp/lama").iterdir()]:
        path.unlink()
    found = dlprobe(*arguments)
    assert [row["severity"] for row in rows(found) if row["kind"] == "finding"] == ["info"]
    assert found.exit_code == 0


def test_many_rejects_of_one_fault_are_cut_on_a_terminal_and_whole_in_json(scanning, clean):
    for number in range(25):
        (clean / "real" / f"broken{number:02d}.png").write_bytes(b"x")
    result = dlprobe(*scanning)
    lines = [line for line in result.stderr.splitlines() if line.startswith("rejected:")]
    assert len(lines) == 11
    assert lines[-1] == "rejected: unreadable: and 15 more; --json lists all"
    assert len([row for row in rows(dlprobe(*scanning, "--json")) if row["kind"] == "reject"]) == 25


def test_json_lines_hold_all_of_it(scanning, clean):
    mask = clean / "masks/sp/lama/1.png"
    save(mask, 255 - np.asarray(Image.open(mask)))
    (clean / "real/bad.png").write_bytes(b"x")
    found = rows(dlprobe(*scanning, "--json"))
    assert [row["kind"] for row in found] == ["count", "count", "finding", "finding", "reject", "accounting"]
    assert found[1] == {"kind": "count", "variant": "sp", "generator": "lama", "split": "", "images": 3, "sources": 3}
    inverted = next(row for row in found if row.get("name") == "mask-inverted")
    assert (inverted["severity"], inverted["count"], inverted["examples"]) == ("error", 1, ["sp/lama/1.png"])
    assert found[4]["path"] == "real/bad.png"
    assert found[4]["fault"] == "unreadable"
    assert found[5] == {
        "kind": "accounting",
        "files": 10,
        "listed": 0,
        "records": 6,
        "rejects": 1,
        "ignored": 3,
        "ignored_reasons": {"mask": 3},
    }


def test_examples_are_the_worst_first(scanning, clean):
    for number, change in enumerate((0x04, 0x40, 0x10)):
        fake = np.asarray(Image.open(clean / f"real/{number}.png")).copy()
        fake[8:24, 8:24] ^= change
        save(clean / f"sp/lama/{number}.png", fake)
        mask = clean / f"masks/sp/lama/{number}.png"
        save(mask, 255 - np.asarray(Image.open(mask)))
    (inverted,) = (row for row in rows(dlprobe(*scanning, "--json")) if row.get("name") == "mask-inverted")
    assert inverted["examples"] == [f"sp/lama/{number}.png" for number in (1, 2, 0)]


def test_names_cannot_reach_the_terminal_as_commands(scanning, clean):
    (clean / "real/\x1b[31mred\n.png").write_bytes((clean / "real/0.png").read_bytes())
    (clean / "masks/sp/\x1b]0;title\x07.png").write_bytes((clean / "real/0.png").read_bytes())
    (clean / "\x1b[2J.png").write_bytes((clean / "real/0.png").read_bytes())
    result = dlprobe(*scanning)
    assert "\\x1b[31mred\\n.png" in result.stderr
    assert "\\x1b[2J.png" in result.stderr
    assert "\x1b[31mred" not in result.stderr
    assert "\x1b[2J" not in result.stderr
    assert "\x07" not in result.stderr


def test_the_sample_decides_which_pixels_are_looked_at(scanning, clean):
    for mask in (clean / "masks/sp/lama").iterdir():
        save(mask, 255 - np.asarray(Image.open(mask)))

    def inverted(*options):
        found = [row for row in rows(dlprobe(*scanning, "--json", *options)) if row.get("name") == "mask-inverted"]
        return sum(row["count"] for row in found)

    assert inverted("--sample", 0) == 0
    assert inverted("--sample", "all") == inverted() == 3
    assert inverted("--sample", 2) == 1  # one of each variant
    seen = {dlprobe(*scanning, "--json", "--sample", 2, "--seed", seed).stdout for seed in range(8)}
    assert len(seen) > 1
    refused(dlprobe(*scanning, "--sample", "some"), "--sample 'some'", "'all'")
    refused(dlprobe(*scanning, "--sample", "-1"), "--sample '-1'")


def test_the_limit_on_pixels_holds_for_scan_and_extract(scanning, clean, tmp_path):
    save(clean / "real/large.png", photograph(2 * SIDE))
    result = dlprobe(*scanning, "--max-pixels", SIDE**2)
    assert result.exit_code == 3
    assert re.search(r"rejected: unreadable: real/large.png: .*more than 2,304", result.stderr)
    assert dlprobe(*scanning).exit_code == 0
    extracting = ("extract", tmp_path / "m.parquet", "--backbone", "residual:srm", "--window", 28, "--stride", 28)
    result = dlprobe(*extracting, "-o", tmp_path / "limited", "--max-pixels", SIDE**2)
    assert result.exit_code == 3
    assert re.findall(r"rejected: (\S+):", result.stderr) == ["real/large.png"]
    assert dlprobe(*extracting, "-o", tmp_path / "cache").exit_code == 0
    assert dlprobe(*extracting, "-o", tmp_path / "limited", "--retry-rejects").exit_code == 0


def test_a_bomb_is_a_reject_and_pillow_adds_nothing(scanning, clean):
    Image.new("1", (12_000, 9_000)).save(clean / "real/bomb.png")
    with warnings.catch_warnings(record=True) as said:  # pytest's own filters would make them errors
        warnings.simplefilter("default")
        result = dlprobe(*scanning)
    assert result.exit_code == 3
    assert "rejected: unreadable: real/bomb.png: " in result.stderr
    assert said == []


def test_options_of_a_layout(scanning, clean, tmp_path):
    (clean / "sp/lama").rename(clean / "images")
    (clean / "masks/sp/lama").rename(clean / "masks2")
    (clean / "masks/sp").rmdir()
    (clean / "masks").rmdir()
    (clean / "masks2").rename(clean / "masks")
    for options in (["--variant", "fr"], ["--option", "variant=fr"]):
        result = dlprobe(*scanning, *options, "--option", "dataset=a=b")
        assert result.exit_code == 0, result.stderr
        frame = pd.read_parquet(tmp_path / "m.parquet")
        assert set(frame["variant"]) == {"fr"}
        assert set(frame["dataset"]) == {"a=b"}
    refused(dlprobe(*scanning, "--option", "variant"), "NAME=VALUE")
    refused(dlprobe(*scanning, "--option", "=fr"), "NAME=VALUE")
    refused(dlprobe(*scanning, "--option", "colour=red"), "folder has no option 'colour'", "variant, dataset")
    refused(dlprobe(*scanning, "--option", "sample=3"), "sample is no option of a layout")
    refused(dlprobe(*scanning, "--option", "variant=fr", "--variant", "sp"), "variant is given twice")
    refused(dlprobe(*scanning, "--option", "variant=fake"), "no variant 'fake'")


def test_a_report_is_written_on_wish(scanning, clean, tmp_path):
    mask = clean / "masks/sp/lama/1.png"
    save(mask, 255 - np.asarray(Image.open(mask)))
    result = dlprobe(*scanning, "--report", tmp_path / "new/r.html")
    assert result.exit_code == 0, result.stderr
    assert f"report: {tmp_path / 'new/r.html'}" in result.stderr
    html = (tmp_path / "new/r.html").read_text()
    assert "mask-inverted" in html
    assert html.count("data:image/jpeg") == 4
    refused(dlprobe(*scanning, "--report", tmp_path), "no report can be written")
    photograph = (clean / "real/1.png").read_bytes()
    refused(dlprobe(*scanning, "--report", clean / "real/1.png"), "no report can be written", ".html")
    assert (clean / "real/1.png").read_bytes() == photograph


def test_nothing_of_the_users_own_is_replaced_by_a_manifest(clean, tmp_path):
    own = clean / "manifest.csv"
    own.write_text("path,variant,mask,remark\nreal/1.png,real,,mine\n")
    for name, words in {"manifest.csv": "not written by dlprobe", "real/1.png": ".parquet"}.items():
        before = (clean / name).read_bytes()
        refused(dlprobe("scan", clean, "-o", clean / name, "--layout", "folder"), name, words)
        assert (clean / name).read_bytes() == before
    (tmp_path / "file").write_text("")
    refused(dlprobe("scan", clean, "-o", tmp_path / "file/m.parquet", "--layout", "folder"), "no manifest can be")
    own.unlink()
    for _ in range(2):  # its own manifest is replaced
        assert dlprobe("scan", clean, "-o", own, "--layout", "folder").exit_code == 0


FORMATS = {
    "png": {},
    "jpeg": {},
    "jpeg progressive": {"progressive": True},
    "webp": {},
    "tiff": {},
    "tiff lzw": {"compression": "tiff_lzw"},
    "tiff jpeg": {"compression": "jpeg"},
    "bmp": {},
    "gif": {},
}
MOST_PIXELS = 4 * SIDE**2


def damaged(content, rng):
    """Return a file cut off, with flipped bits, with another header, or with bytes lost and put in."""
    content, place = bytearray(content), int(rng.integers(len(content)))
    match rng.integers(4):
        case 0:
            del content[place:]
        case 1:
            for bit in rng.integers(len(content) * 8, size=rng.integers(1, 9)):
                content[bit // 8] ^= 1 << (bit % 8)
        case 2:
            place %= 64
            content[place : place + 4] = rng.bytes(4)
        case _:
            content[place : place + int(rng.integers(1, 20))] = rng.bytes(rng.integers(20))
    return bytes(content)


def test_damaged_files_never_crash_a_scan_or_an_extraction(tmp_path):
    """378 files in nine encodings; `tests/data/test_damaged_images.py` reads 2,048 more."""
    root, rng = tmp_path / "data", np.random.default_rng(11)
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[8:24, 8:24] = 255
    for kind, options in FORMATS.items():
        for variant, count in (("real", 30), ("sp", 12)):
            for number in range(count):
                name = f"{kind.replace(' ', '-')}-{number}.png"
                for folder, pixels in ((variant, photograph()), ("masks/sp", white)):
                    path = root / folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if folder != "masks/sp" or variant == "sp":
                        Image.fromarray(pixels).save(path, kind.split()[0].upper(), **options)
                victim = root / ("masks/sp" if variant == "sp" else "real") / name
                victim.write_bytes(damaged(victim.read_bytes(), rng))
    manifest, cache = tmp_path / "m.parquet", tmp_path / "cache"
    limit = ("--max-pixels", MOST_PIXELS)
    result = dlprobe("scan", root, "-o", manifest, "--layout", "folder", "--sample", "all", "--json", *limit)
    assert result.exit_code == 3, result.exception
    found = rows(result)
    assert all(row["reason"] and "\n" not in row["reason"] for row in found if row["kind"] == "reject")
    sums = found[-1]
    assert sums["files"] == 9 * (30 + 2 * 12) == sums["records"] + sums["rejects"] + sums["ignored"]
    assert min(sums["records"], sums["rejects"]) > 50  # damage of both kinds: seen in the header, and beyond it

    extracting = ("extract", manifest, "-o", cache, "--backbone", "residual:srm", "--window", 28, "--stride", 28)
    result = dlprobe(*extracting, *limit)
    assert result.exit_code == 3, result.exception
    rejected = set(re.findall(r"^rejected: (\S+): \S", result.stderr, re.MULTILINE))
    opened = open_cache(cache)
    assert opened.verify() == []
    assert set(opened.windows["path"]) > rejected
    assert len(set(opened.windows["path"])) == sums["records"]
    assert len(rejected) > 20
    void = opened.windows["path"].isin(rejected).to_numpy()
    assert np.isfinite(opened.read(np.flatnonzero(~void)).embeddings).all()
    for window in np.flatnonzero(void):
        with pytest.raises(CacheError, match="was rejected"):
            opened.read([window])
