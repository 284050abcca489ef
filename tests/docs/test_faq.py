"""Each question stands under a heading that can be linked to, has one answer with a link, and says who asked."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "faq.md").read_text(encoding="utf-8")
ANSWERS = {part.partition("\n")[0]: part.partition("\n")[2] for part in TEXT.split("\n## ")[1:]}
#: An issue of each of the complaints that comparable tools' users had.
COMPLAINTS = [
    "TRIDENT#213",
    "clip-retrieval#368",
    "eva#537",
    "eva#504",
    "zarr-python#486",
    "pytorch#11929",
    "dinov2#385",
    "dinov2#232",
    "sklearn#8769",
    "dinov2#345",
    "torchgeo-bench#206",
    "RIAWELC#2",
    "dsmil-wsi#19",
    "thunder#11",
    "micro-sam#285",
]


@pytest.mark.parametrize("question", ANSWERS)
def test_every_question_has_an_answer_with_a_link(question):
    assert re.search(r"\]\([\w/-]+\.md(#[\w-]+)?\)", ANSWERS[question])


def test_every_complaint_is_answered_once_and_cited():
    cited = re.findall(r"[\w-]+#\d+", "\n".join(re.findall(r"Asked in: ([^.]+)\.", TEXT)))
    assert sorted(set(COMPLAINTS) - set(cited)) == []
    assert len(cited) == len(set(cited))
