import tomllib
from pathlib import Path

import pytest

from dlprobe.errors import ExtraError
from dlprobe.extras import require

ROOT = Path(__file__).resolve().parent.parent


def test_a_missing_module_is_one_line_that_names_the_extra():
    with pytest.raises(ExtraError) as caught:
        require("ray", "the runner ray", "json", "a_module_that_is_nowhere")
    assert str(caught.value) == (
        "the runner ray needs a_module_that_is_nowhere; install with pip install 'dlprobe[ray]'"
    )


def test_what_is_installed_is_not_complained_about():
    require("ray", "the runner ray", "json", "pathlib")


def test_every_extra_that_the_code_names_is_offered():
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        line.split('require("')[1].split('"')[0]
        for path in (ROOT / "dlprobe").rglob("*.py")
        if "from dlprobe.extras import" in path.read_text()
        for line in path.read_text().splitlines()
        if line.strip().startswith('require("')
    }
    assert {"diffusers", "finetune", "hf", "onnx", "openvino", "ray", "s3", "umap"} <= named <= set(offered)
