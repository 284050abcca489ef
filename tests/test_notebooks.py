"""Each notebook runs from top to bottom on one small data set, shows a figure, and defines no functions."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = [
    "01_first_probe",
    "02_labelling_schemes",
    "03_backbones_dinov2_dinov3",
    "04_separability",
    "05_how_small_is_too_small",
    "06_localize_an_image",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the folder that all notebooks keep their data in."""
    return tmp_path_factory.mktemp("notebooks")


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_asks_answers_and_says_what_real_weights_would_change(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source.replace("%matplotlib inline", "") for cell in cells if cell.cell_type == "code"]
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for source in code:
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(source)))
        private = [
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr[0] == "_"
        ]
        assert private == []
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "clear the outputs"
    assert "**Question.**" in text[0]
    assert text[-1].startswith("**Answer.**")
    assert "**On real weights**" in text[-1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of jupyter_client and zmq, 2026-11
def test_runs_and_shows_a_figure_and_a_sentence_with_an_interval(path, shared, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DLPROBE_NOTEBOOKS", str(shared))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=170, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert not any("Empty DataFrame" in output.get("data", {}).get("text/plain", "") for output in outputs)
    said = "".join(
        output.text for cell in notebook.cells[-2:] for output in cell.get("outputs", []) if "text" in output
    )
    assert "photographs" in said
    assert "[" in said
    assert "nan" not in said.replace("discriminant", "")
