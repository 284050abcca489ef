"""The command evaluate: a table on stdout, talk on stderr, exit 3 with rejects, 2 for what the user can mend."""

import json
import shutil
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from dlprobe.data import Manifest

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()


def dlprobe(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tiny_manifest, tiny_fit, tmp_path_factory):
    """Return a folder with a probe and a manifest of three images, one of them damaged."""
    folder = tmp_path_factory.mktemp("evaluate")
    frame = tiny_manifest.frame
    some = frame[(frame["source_id"] == frame["source_id"].min()) & frame["generator"].isin(["", "telea+pca"])]
    for name in [*some["path"], *some["mask"].loc[lambda masks: masks != ""]]:
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_manifest.root / name, folder / "data" / name)
    (folder / "data" / some.query("variant == 'fr'")["path"].iloc[0]).write_bytes(b"no image")
    Manifest(some, folder / "data").write(folder / "manifest.parquet")
    tiny_fit.probes["residual-srm/dice-autoencoded-pristine"].save(folder / "probe.safetensors")
    return folder


def test_a_table_an_account_and_an_exit_status(place):
    arguments = (place / "probe.safetensors", place / "manifest.parquet", "-o", place / "out", "--stride", 56)
    result = dlprobe("evaluate", *arguments, "--seen", "keep", "--protocol", "dlprobe", "--protocol", "tgif")
    assert result.exit_code == 3, result.stderr
    assert "tgif.original_px.f1" in result.stdout
    assert "everything" in result.stdout.splitlines()[0]
    assert "3 images in = 2 scored + 1 rejected + 0 ignored" in result.stderr
    assert "rejected: image" in result.stderr
    again = dlprobe("evaluate", *arguments, "--seen", "keep", "--protocol", "mvss", "--json")
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert {row["protocol"] for row in rows} == {"mvss"}
    assert "0 score maps computed, 2 found" in again.stderr
    report = dlprobe("report", place / "out")
    assert report.stdout.strip() == str(place / "out" / "report.html")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--seen keep"),
        (("--protocol", "tgiff"), "did you mean tgif"),
        (("--degrade", "jpegg"), "jpegg"),
        (("--threshold", "1"), "between 0 and 1"),
        (("--split", "tset"), "write one of train, val, test"),
    ],
)
def test_what_the_user_can_mend_is_one_line(place, tmp_path, options, words):
    result = dlprobe(
        "evaluate", place / "probe.safetensors", place / "manifest.parquet", "-o", tmp_path / "x", *options
    )
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
