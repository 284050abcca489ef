"""What a user installs: complete, typed, citable, and of use without any extra."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COPIED = ("dlprobe", "cli", "docs", "tests", "benchmarks", "notebooks")
FILES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "Makefile",
    "mkdocs.yml",
)


def files_below(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return source distribution and wheel, built from a copy and without a network; the wheel from the former."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in COPIED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "studies").symlink_to(Path("dlprobe/studies/ready"))  # as in the repository
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0, said[-2000:]
    told = [line for line in said.splitlines() if re.search("warning|deprecat", line, re.IGNORECASE)]
    assert [line for line in told if "byte-compiling is disabled" not in line] == []
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_the_packages_as_they_are_on_disk(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    info = f"dlprobe-{PROJECT['version']}.dist-info/"
    wanted = {f"dlprobe/{name}" for name in files_below(ROOT / "dlprobe")}
    wanted |= {f"dlprobe_cli/{name}" for name in files_below(ROOT / "cli")}
    assert {name for name in names if not name.startswith(info)} == wanted
    assert {"dlprobe/py.typed", "dlprobe/studies/ready/scale.toml", "dlprobe/reports/templates/report.html"} <= wanted
    assert {f"{info}licenses/LICENSE", f"{info}entry_points.txt"} <= names


def test_the_metadata_says_what_pyproject_says(built):
    archive = zipfile.ZipFile(built[1])
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert all(f"Programming Language :: Python :: 3.{minor}" in text for minor in (11, 12, 13))
    assert all(f"Provides-Extra: {extra}" in text for extra in PROJECT["optional-dependencies"])


def test_the_source_distribution_can_be_tested_and_documented(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "benchmarks"):
        assert {f"{folder}/{name}" for name in files_below(ROOT / folder)} <= names
    assert {name for name in FILES if name != "MANIFEST.in"} <= names
    assert {f"studies/{path.name}" for path in (ROOT / "dlprobe/studies/ready").glob("*.toml")} <= names


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text


def test_completion_knows_commands_and_options():
    environment = {**os.environ, "_DLPROBE_COMPLETE": "complete_bash", "OMP_NUM_THREADS": "1"}

    def completed(words):
        run = subprocess.run(
            [sys.executable, "-c", "from dlprobe_cli.main import app; app(prog_name='dlprobe')"],
            env={**environment, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.split()

    assert completed("dlprobe ex") == ["extract", "export"]
    assert completed("dlprobe cache me") == ["merge"]
    assert "--objective" in completed("dlprobe fit --ob")


PERSON = {
    "family-names",
    "given-names",
    "name-particle",
    "name-suffix",
    "affiliation",
    "orcid",
    "email",
    "website",
    "alias",
}
ENTITY = {"name", "website", "email", "orcid", "date-start", "date-end", "location", "address", "city", "country"}
TOP = {"cff-version", "message", "title", "authors", "type", "abstract", "version", "license", "keywords", "url"}
TOP |= {
    "preferred-citation",
    "references",
    "identifiers",
    "date-released",
    "doi",
    "repository-code",
    "contact",
    "commit",
}
REFERENCE = {"type", "title", "authors", "year", "month", "journal", "url", "identifiers", "doi", "notes", "volume"}
TYPES = {"article", "generic", "conference-paper", "unpublished", "report"}


def test_the_citation_file_is_cff_1_2():
    """The rules of the Citation File Format 1.2.0 for the fields that are used."""
    text = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert text["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= text.keys() <= TOP
    assert text["type"] == "software"
    assert (text["version"], text["license"]) == (PROJECT["version"], PROJECT["license"])
    paper = text["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys() <= REFERENCE
    assert paper["type"] in TYPES
    assert isinstance(paper["year"], int)
    assert paper["month"] in range(1, 13)
    for author in (*text["authors"], *paper["authors"]):
        assert author
        assert author.keys() <= PERSON or ("name" in author and author.keys() <= ENTITY)
        assert all(isinstance(value, str) for value in author.values())
    for identifier in paper["identifiers"]:
        assert {"type", "value"} <= identifier.keys() <= {"type", "value", "description"}
        assert identifier["type"] in {"doi", "url", "swh", "other"}
    assert "2511.20722" in paper["url"]
    readme = (ROOT / "README.md").read_text()
    assert ", ".join(author["family-names"] for author in paper["authors"]) in readme


def add_required(line, seen):
    """Add to `seen` the distribution that a requirement names, and all that it brings along in turn."""
    asked = Requirement(line)
    key = (canonicalize_name(asked.name), frozenset(asked.extras))
    if key in seen:
        return
    seen[key] = distribution(asked.name)
    for wanted in map(Requirement, seen[key].requires or ()):
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)):
            wanted.marker = None
            add_required(str(wanted), seen)


def link_files(found, site):
    """Link every file of a distribution; some share a namespace's folder, so folders are made."""
    for file in found.files or ():
        top = file.parts[0]
        if top in {"..", "/"} or file.suffix == ".pth" or top.startswith("__pycache__"):
            continue
        source = Path(found.locate_file(file))
        target = site.joinpath(*file.parts)
        if not source.is_file() or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    """Return the folder of an environment with the wheel and what it requires, without any extra."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-compile", built[1]], check=True, timeout=120)
    shared = folder / "shared"
    shared.mkdir()
    brought = {}
    for line in PROJECT["dependencies"]:
        add_required(line, brought)
    for found in brought.values():
        link_files(found, shared)
    (site / "shared.pth").write_text(f"{shared}\n")
    return folder


@pytest.fixture(scope="module")
def beside(built, tmp_path_factory):
    """Return the folder of an environment with the wheel; it sees what else is installed here, but not our source."""
    folder = tmp_path_factory.mktemp("beside")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-compile", built[1]], check=True, timeout=120)
    here = Path(yaml.__file__).parents[1]
    (site / "shared.pth").write_text(f"{here}\n")
    return folder


def test_the_installed_wheel_runs_and_names_a_missing_extra(beside, tmp_path):
    """The quick core of what the slow tests below do in an environment without any extra."""
    code = "import dlprobe, dlprobe_cli.main; from dlprobe.studies.designs import ready_studies"
    found = inside(beside, "python", "-c", f"{code}; print(dlprobe.__file__, *ready_studies())", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    place, *studies = found.stdout.split()
    assert place.startswith(str(beside))
    assert {"labelling", "scale"} <= set(studies)
    missing = "from dlprobe_cli.main import app; import sys; sys.modules['umap'] = None; app()"
    run = inside(beside, "python", "-c", missing, "separate", "cache", "--umap", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "dlprobe[umap]" in line


def inside(folder, *words, cwd):
    """Run a program of the environment, which sees nothing of ours."""
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [folder / "bin" / words[0], *map(str, words[1:])],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
        timeout=300,
    )


#: Imports every module of the installed wheel, and says what of an extra is there after all.
EVERYTHING = """
import importlib, json, pkgutil, sys
import dlprobe, dlprobe_cli.main
packages = (dlprobe, __import__("dlprobe_cli"))
names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"names": names, "file": dlprobe.__file__}))
"""


@pytest.mark.slow
def test_the_wheel_works_without_extras(bare, tmp_path):
    found = inside(bare, "python", "-c", EVERYTHING, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["file"].startswith(str(bare))
    assert len(told["names"]) > 150
    for module in (
        "transformers",
        "openvino",
        "obstore",
        "ray",
        "diffusers",
        "peft",
        "accelerate",
        "onnxruntime",
        "umap",
    ):
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is not None)"
        assert inside(bare, "python", "-c", code, cwd=tmp_path).returncode == 0, f"{module} is there: proves nothing"
    shown = inside(bare, "dlprobe", "--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "synthesize" in shown.stdout
    listed = inside(bare, "dlprobe", "study", "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert {json.loads(line)["name"] for line in listed.stdout.splitlines()} >= {"labelling", "scale"}


def needing_extras(manifest, cache, probe, photographs):
    """Return, for each extra, a command that needs it."""
    extract = ("extract", manifest, "--window", 112, "--stride", 112)
    vit = ("--backbone", "timm:vit_tiny_patch16_224", "--weights", "random:0")
    return {
        "hf": (*extract, "-o", "hf", "--backbone", "hf:facebook/dinov2-base"),
        "openvino": (*extract, "-o", "openvino", *vit, "--engine", "openvino"),
        "ray": (*extract, "-o", "ray", "--backbone", "residual:srm", "--runner", "ray"),
        "s3": (*extract, "-o", "s3://bucket/cache", "--backbone", "residual:srm"),
        "onnx": ("export", probe, "-o", "head.onnx"),
        "umap": ("separate", cache, "-o", "separable", "--umap"),
        "diffusers": ("synthesize", photographs, "-o", "set", "--backend", "diffusers", "--model", "none"),
        "finetune": ("finetune", manifest, "-o", "tuned", *vit, "--window", 112, "--stride", 112),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_fit")
def test_what_needs_an_extra_says_which_in_one_line(bare, tiny, tiny_manifest, tmp_path):
    tiny_manifest.write(tmp_path / "manifest.parquet")
    probe = tiny / "run/probes/residual-srm/dice-autoencoded-pristine.safetensors"
    photographs = tiny / "data" / "astronaut"
    cases = needing_extras(tmp_path / "manifest.parquet", tiny / "cache", probe, photographs)
    assert cases.keys() == PROJECT["optional-dependencies"].keys() - {"dev", "docs"}
    before = files_below(tmp_path)
    for extra, words in cases.items():
        run = inside(bare, "dlprobe", *words, cwd=tmp_path)
        assert (run.returncode, run.stdout) == (2, ""), (extra, run.stderr[-2000:])
        (line,) = run.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert f"dlprobe[{extra}]" in line
    assert files_below(tmp_path) == before
