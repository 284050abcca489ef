"""The benchmarks still run; what they measure so small says nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
#: A command, and how many of its lines hold a measurement.
COMMANDS = {
    "extract.py --quick --engine torch": 3,
    "growth.py --windows 1 2": 4,
    "read.py --windows 8 --repeats 1": 8,
    "fit.py --only logistic --windows 2 --logistic-rows 1000 --threads 1": 1,
    "tables.py --photographs 20 --rows 2": 3,
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_it_runs(command, tmp_path):
    script, *options = command.split()
    run = subprocess.run(
        [sys.executable, BENCHMARKS / script, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^(?=\|? *[a-zA-Z0-9:]).*\d\.\d.*$", run.stdout, re.MULTILINE)) >= COMMANDS[command]
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")]  # torch's own cache
    assert left == []
