"""Every ready study has a page, and every key of a study's file is explained where a reader looks for it."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from dlprobe.finetune import FinetuneSettings
from dlprobe.studies import FitSettings
from dlprobe.studies.designs import BackboneSource, DataSource, Extraction, Question, Study, ready_studies

DOCS = Path(__file__).parents[2] / "docs"
OWN = (Study, DataSource, BackboneSource, Extraction, Question)
PARTS = ("## How to read the figure", "## What a result means", "## What would change on real weights", "```toml")


@pytest.mark.parametrize("name", ready_studies())
def test_every_ready_study_has_a_page_that_is_reached(name):
    page = (DOCS / "studies" / f"{name}.md").read_text(encoding="utf-8")
    assert f"$ dlprobe study run {name} -o" in page
    assert [part for part in PARTS if part not in page] == []
    assert f"studies/{name}.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"]({name}.md)" in (DOCS / "studies" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", [*OWN, FitSettings, FinetuneSettings])
def test_every_key_is_explained_in_the_reference(record):
    documented = re.findall(r"^(\w[\w, ]*)(?: : |$)", inspect.getdoc(record), re.MULTILINE)
    named = {name.strip() for line in documented for name in line.split(",")}
    assert {entry.name for entry in fields(record)} <= named


def test_every_key_of_a_study_is_named_on_its_page():
    page = (DOCS / "studies" / "index.md").read_text(encoding="utf-8")
    keys = {entry.name for record in OWN for entry in fields(record)}
    assert sorted(key for key in keys if not re.search(rf"`\[*{key}\]*`", page)) == []
