"""A study's file is checked key by key, and each complaint names the key and what to write."""

import pytest

from dlprobe.errors import DataError
from dlprobe.studies.designs import STUDIES, read_study, ready_studies

WHOLE = """
kind = "labelling"
title = "t"
question = "q"
[data]
demo = true
[[backbones]]
name = "residual:srm"
layers = [1, 2]
[fit]
learning_rates = [1, 0.5]
"""


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_a_whole_file_becomes_frozen_records(tmp_path):
    study, base = read_study(written(tmp_path, WHOLE))
    assert base == tmp_path
    assert study.fit.learning_rates == (1.0, 0.5)
    assert study.backbones[0].layers == (1, 2)
    assert study.extract.stride_px == 504
    with pytest.raises(AttributeError):
        study.kind = "scale"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("title = ", "titel = "), "has no setting 'titel'; did you mean title"),
        (("demo = true", "demo = 1"), r"data: demo is 1, where a bool is wanted"),
        (("[1, 2]", "[1, 'x']"), r"layers\[1\] is 'x', where a int is wanted"),
        (("[1, 2]", "3"), "layers is 3, where a list is wanted"),
        (("[1, 0.5]", "[]"), "learning_rates are"),
        (("demo = true", "demo = true\nmanifest = 'm'"), "has demo and manifest"),
        (("demo = true", ""), "has none"),
        (('name = "residual:srm"', ""), "needs either name or cache"),
        (('question = "q"', ""), "lacks the setting 'question'"),
        (("[fit]", "[extract]\ndtype = 'int4'\n[fit]"), "dtype is 'int4'; write one of float16, float32, int8"),
        (('kind = "labelling"', "kind = "), "is no readable TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, complaint):
    text = WHOLE.replace(*change)
    assert text != WHOLE
    with pytest.raises(Exception, match=complaint) as caught:
        read_study(written(tmp_path, text))
    assert "\n" not in str(caught.value).replace(str(tmp_path), "")


def test_a_missing_file_says_what_there_is(tmp_path):
    with pytest.raises(DataError, match="dlprobe study list"):
        read_study(tmp_path / "nothing.toml")


@pytest.mark.parametrize("kind", [name for name in STUDIES if "scheme" in STUDIES[name].reads])
def test_a_kind_that_looks_at_one_scheme_fits_that_one_and_refuses_others(tmp_path, kind):
    text = WHOLE.replace("labelling", kind)
    assert read_study(written(tmp_path, text))[0].fit.schemes == ("autoencoded-pristine",)
    text += "[options]\nscheme = 'autoencoded-fake'\n"
    assert read_study(written(tmp_path, text))[0].fit.schemes == ("autoencoded-fake",)
    same = text.replace("[fit]", "[fit]\nschemes = ['autoencoded-fake']")
    assert read_study(written(tmp_path, same))[0].fit.schemes == ("autoencoded-fake",)
    asked = "['autoencoded-pristine', 'autoencoded-fake', 'autoencoded-ignored']"  # those of a fit that names none
    with pytest.raises(DataError, match=f"{kind} looks at one scheme, which is autoencoded-fake in .options. scheme"):
        read_study(written(tmp_path, text.replace("[fit]", f"[fit]\nschemes = {asked}")))


def test_a_kind_that_compares_schemes_fits_those_of_the_file(tmp_path):
    asked = WHOLE.replace("[fit]", "[fit]\nschemes = ['autoencoded-fake', 'three-class']")
    assert read_study(written(tmp_path, asked))[0].fit.schemes == ("autoencoded-fake", "three-class")
    assert len(read_study(written(tmp_path, WHOLE))[0].fit.schemes) == 3


@pytest.mark.parametrize("name", ready_studies())
def test_every_study_that_is_ready_reads_and_has_a_kind(name):
    study, _ = read_study(ready_studies()[name])
    assert study.kind in STUDIES
    assert study.question.endswith("?")
    assert study.real
