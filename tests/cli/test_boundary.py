"""A command line that cannot be read is one line that says what may have been meant and where to look."""

from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()


def dlprobe(*arguments):
    return CliRunner().invoke(APP, list(arguments))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scan x --layuot csv", "no such option: --layuot; did you mean --layout? see `dlprobe scan --help`"),
        ("scan x -x", "no such option: -x; see `dlprobe scan --help`"),
        ("scan", "missing argument 'root'; see `dlprobe scan --help`"),
        ("scan x", "missing option '--out' / '-o'; see `dlprobe scan --help`"),
        ("scan x y -o m.csv", "got unexpected extra argument(s) (y); see `dlprobe scan --help`"),
        ("scan x --layout", "option '--layout' requires an argument; see `dlprobe scan --help`"),
        ("scan x -o m.csv --seed=-1", "invalid value for '--seed': "),
        ("scam", "no such command 'scam'; did you mean 'scan'? see `dlprobe --help`"),
        ("cache inf x", "no such command 'inf'; did you mean 'info'? see `dlprobe cache --help`"),
        ("cache info --jsn", "no such option: --jsn; did you mean --json? see `dlprobe cache info --help`"),
        ("--versoin", "no such option: --versoin; did you mean --version? see `dlprobe --help`"),
        ("cache verify x --deep 1", "--deep reads images; name the cache's manifest with --manifest; see"),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_in_one_line(line, said):
    result = dlprobe(*line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    (answer,) = result.stderr.splitlines()
    assert answer.startswith(f"error: {said}")


@pytest.mark.parametrize("line", ["", "cache", "study"])
def test_a_group_without_a_command_shows_its_help(line):
    result = dlprobe(*line.split())
    assert "Usage: dlprobe" in result.output
    assert "error" not in result.output.lower().splitlines()[0]


@pytest.mark.parametrize("command", ["fit", "separate", "cache info", "cache verify"])
def test_a_file_where_a_cache_should_be(command, tmp_path):
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"x")
    out = ["-o", str(tmp_path / "out")] if " " not in command else []
    result = dlprobe(*command.split(), str(path), *out)
    assert result.exit_code == 2, result.exception
    assert (
        result.stderr.strip()
        == f"error: {path} is a file; give a cache, which is a folder that `dlprobe extract` wrote"
    )


def test_a_folder_where_a_file_should_be(tmp_path):
    probes = tmp_path / "run" / "probes" / "m"
    (probes / "b").mkdir(parents=True)
    (probes / "b" / "a.safetensors").touch()
    (probes / "c.safetensors").touch()
    result = dlprobe("localize", str(tmp_path / "run"), "x.png", "-o", str(tmp_path / "out"))
    assert result.stderr.strip() == (
        f"error: {tmp_path / 'run'} is a folder; give one of its probes, such as {probes / 'c.safetensors'}"
    )
    result = dlprobe("localize", str(probes.parent.parent.parent / "nothing"), "x.png", "-o", str(tmp_path / "out"))
    assert "no probe at" in result.stderr
    result = dlprobe("extract", str(tmp_path), "-o", str(tmp_path / "out"), "--backbone", "residual:srm")
    assert result.stderr.startswith(
        f"error: {tmp_path} is a folder; give the file of its manifest, which `dlprobe scan"
    )
