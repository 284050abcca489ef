"""Importing has no effects, and the light half of the library loads nothing heavy."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
LIGHT = [name for name in LISTED if name == "dlprobe" or name.startswith(("dlprobe.data", "dlprobe.metrics"))]
HEAVY = ["torch", "torchvision", "timm", "transformers", "typer", "rich"]

#: Imports each name in turn and reports what it did to the world: the audit hook sees every socket, process and write.
WATCH = """
import importlib, json, logging, os, random, sys, threading, warnings
effects, current = [], ""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def hook(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        if str(args[0]) != os.devnull:
            effects.append(f"{current}: opens {args[0]} for writing")
    elif event.startswith(("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename", "os.putenv", "os.fork",
                           "os.exec", "os.system", "shutil.", "tempfile.", "urllib.", "http.")):
        effects.append(f"{current}: {event} {args}")

import numpy, pandas, PIL.Image, ctypes.util, platform, uuid
if os.environ.get("PRELOAD"):  # third parties' own doings are theirs
    import cv2, matplotlib, scipy.ndimage, skimage, sklearn, torch, zarr
def world():
    return {
        "threads": threading.active_count(),
        "cwd": os.getcwd(),
        "environment": sorted(os.environ.items()),
        "log handlers": len(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "random": hash(random.getstate()),
        "numpy.random": hash(numpy.random.get_state()[1].tobytes()),
        "numpy.errstate": sorted(numpy.geterr().items()),
        "pixel limit": PIL.Image.MAX_IMAGE_PIXELS,
        "path": list(sys.path),
        "excepthook": repr(sys.excepthook),
    }

sys.addaudithook(hook)
for current in sys.argv[1:]:
    before = world()
    importlib.import_module(current)
    after = world()
    effects += [f"{current}: changes {key}" for key in before if before[key] != after[key]]
print(json.dumps({"effects": effects, "modules": sorted(sys.modules)}))
"""


def imported(names, home, preload=""):
    env = {**os.environ, "PRELOAD": preload, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:dlprobe", "-c", WATCH, *names],
        capture_output=True,
        text=True,
        cwd=home,
        env=env,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    report = json.loads(run.stdout)  # nothing else may stand on stdout
    assert preload or list(home.iterdir()) == []
    return report


def test_importing_each_package_has_no_effects(tmp_path):
    report = imported(LISTED, tmp_path, preload="yes")
    assert report["effects"] == []
    assert set(LISTED) <= set(report["modules"])


def test_the_light_packages_load_nothing_heavy(tmp_path):
    report = imported([*LIGHT, "dlprobe.spec", "dlprobe.registry", "dlprobe.publish", "dlprobe.errors"], tmp_path)
    assert [name for name in HEAVY if name in report["modules"]] == []


@pytest.mark.parametrize("snippet", ["open('left', 'w')", "__import__('os').environ.__setitem__('X', '1')"])
def test_the_watch_sees_effects(tmp_path, snippet):
    folder, home = tmp_path / "code", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "guilty.py").write_text(snippet)
    run = subprocess.run(
        [sys.executable, "-c", WATCH, "guilty"],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=60,
    )
    assert "guilty: " in "".join(json.loads(run.stdout)["effects"])
