"""Each ready study runs on the demo's photographs, made small; a second run computes nothing."""

import json
import re

import pandas as pd
import pytest
from matplotlib.text import Text

from dlprobe.data import scan
from dlprobe.data.manifest import source_groups
from dlprobe.data.synthesis import build_demo
from dlprobe.errors import DataError, OutputError
from dlprobe.reports import report_folder
from dlprobe.studies.designs import read_study_result, ready_studies, run_study
from dlprobe.studies.results import with_interval

#: What makes a ready study small: eight photographs of 128 px, windows of 112 px (128 for patches of 16 px), few heads.
SMALL = {
    "[extract]\nstride_px = 224\n\n": "",
    "window_px = 224       # small, so that the study takes minutes: leave it out with real data\n": "",
    "side_px = 336": "",
    "photographs = 12": "",
    "photographs = 8": "",
    "side_px = 298         # cut to squares, of which one window shows the middle, 57 %: all of it would take four": "",
    "side_px = 256": "",
    "demo = true": "demo = true\nphotographs = 8\nside_px = 128",
    'name = "timm:vit_small_patch16_dinov3"\nweights = "random:0"\nwindow_px = 224': (
        'name = "timm:vit_tiny_patch16_224"\nweights = "random:0"\nwindow_px = 128'
    ),
    'name = "residual:srm"\nwindow_px = 224': 'name = "residual:srm"',
    'name = "residual:srm"': 'name = "residual:srm"\nwindow_px = 112',
    "vit_small_patch14_dinov2": "vit_tiny_patch16_224",
    "learning_rates = [0.03, 0.1, 0.3]": "learning_rates = [1.0]\nepochs = 2\nn_folds = 4",
    "weight_decays = [0.01, 0.1]": "weight_decays = [0.01]",
    "stride_px = 252": "stride_px = 112",
    "side_px = 448": "",
    "strides_px = [224, 112, 56]": "strides_px = [112, 56]",
    'degrade = ["dinolizer"]': 'degrade = ["jpeg:quality=60"]',
    "sources = [2, 4, 8]": "sources = [2, 4]",
    "window_px = 224": "window_px = 112",
    "stride_px = 224": "stride_px = 112",
    "epochs = 3": "epochs = 1",
    "\nfolds = 4": "\nfolds = 3",
    "[fit]": "[extract]\nstride_px = 112\n\n[fit]",
}


#: Ready studies that are not named after their kind.
KINDS = {"pretraining": "backbones"}


def small(name, tmp_path):
    text = ready_studies()[name].read_text()
    for old, new in SMALL.items():
        text = text.replace(old, new)
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module", params=list(ready_studies()))
def done(request, tmp_path_factory):
    """Return a ready study's name, its small file, and what it found."""
    folder = tmp_path_factory.mktemp(request.param)
    path = small(request.param, folder)
    return request.param, path, run_study(path, folder / "out")


def test_a_study_answers_with_a_table_sentences_and_a_figure(done):
    name, path, found = done
    assert found.answer
    assert found.record["lead"].count(" images of 8 demo photographs") == 1
    assert ("3 folds, each photograph tested once" in found.record["lead"]) == (name == "adaptation")
    assert all(line.strip().endswith(".") and "nan" not in line for line in found.answer)
    random = "random" in path.read_text()
    assert random == ("a floor, not a finding" in found.answer[0])
    assert random == ("random:0)" in found.record["lead"])
    table = found.frame()
    assert len(table)
    assert table.filter(regex="value|difference").notna().any().any()
    ax = found.plot()
    assert ax.has_data()
    ax.figure.draw_without_rendering()  # lays the figure out
    for axes in ax.figure.axes:
        for label in filter(Text.get_text, (axes.xaxis.label, axes.yaxis.label)):
            box, page = label.get_window_extent(), ax.figure.bbox
            assert page.x0 <= box.x0 <= box.x1 <= page.x1
            assert page.y0 <= box.y0 <= box.y1 <= page.y1
    findings = found.path / "findings"
    assert (findings / "figure.png").stat().st_size > 5000
    for stem in json.loads((findings / "study.json").read_text())["tables"]:
        assert {f"{stem}.parquet", f"{stem}.csv", f"{stem}.md"} <= {file.name for file in findings.iterdir()}
    assert json.loads((findings / "study.json").read_text())["study"]["kind"] == KINDS.get(name, name)


def test_a_second_run_computes_no_cell_again(done):
    _, path, found = done
    said = []
    again = run_study(path, found.path, say=said.append)
    assert not [line for line in said if line.startswith(("extracting", "fitting", "evaluating", "adapting"))]
    pd.testing.assert_frame_equal(again.frame(), found.frame())


def test_what_was_found_is_read_back(done):
    _, _, found = done
    pd.testing.assert_frame_equal(read_study_result(found.path).frame(), found.frame(), check_dtype=False)
    assert read_study_result(found.path).answer == found.answer


def test_a_study_has_a_page_with_every_value_and_its_interval(done):
    _, _, found = done
    html = report_folder(found.path).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert [head for head in re.findall(r"<th>(.*?)</th>", html) if "_" in head] == []
    assert [cell for cell in re.findall(r"<td[^>]*>(.*?)</td>", html) if re.search(r"@(patch|px)|_px", cell)] == []
    for table in found.tables.values():
        pairs = [("value", "low", "high"), ("difference", "difference_low", "difference_high")]
        pairs += [("difference", "low", "high")] if "value" not in table else []
        for name, low, high in pairs:
            if {name, low, high} <= set(table.columns):
                ends = zip(table[name], table[low], table[high], strict=True)
                assert all(with_interval(*each, signed=name == "difference") in html for each in ends)


def test_a_matrix_of_generators_has_no_kinds_of_masks(done):
    name, _, found = done
    if name != "generators":
        pytest.skip("of the study of generators")
    assert set(found.frame()["tested"]) == {"telea+pca", "ns+pca", "donor+pca", "telea+sr", "donor+sr"}


def test_labelling_schemes_stand_as_the_file_names_them(done):
    name, _, found = done
    if name != "labelling":
        pytest.skip("of the study of labelling")
    table = found.frame()
    assert list(dict.fromkeys(table["scheme"])) == list(found.record["study"]["fit"]["schemes"])
    whole = table[table["kind"].isin(["sp", "fr", "real", "ae"])]
    assert list(dict.fromkeys(whole["kind"])) == ["sp", "fr", "real", "ae"]


def test_a_sum_of_windows_is_compared_with_their_mean_at_the_smallest_stride(done):
    name, _, found = done
    if name != "localization":
        pytest.skip("of the study of localization")
    scores = found.frame()
    assert set(scores.loc[scores["part"] == "aggregation", "setting"]) == {"stride 56 px, summed"}
    assert "stride 56 px, summed - stride 56 px" in set(found.tables["differences"]["comparison"])


def test_two_weights_of_one_architecture_are_told_apart(done):
    name, _, found = done
    if name != "pretraining":
        pytest.skip("of the study of pretraining")
    names = [f"timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k (random:{seed})" for seed in (0, 1)]
    assert list(dict.fromkeys(found.frame()["model"])) == names
    assert set(found.tables["comparisons"]["comparison"]) == {" - ".join(names)}


def test_a_wider_question_computes_only_what_is_new(tmp_path):
    path = small("data-size", tmp_path)
    run_study(path, tmp_path / "out")
    path.write_text(path.read_text().replace("sources = [2, 4]", "sources = [4, 2]"))
    said = []
    run_study(path, tmp_path / "out", say=said.append)
    assert not [line for line in said if "fitting" in line]
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 1"))
    run_study(path, tmp_path / "out", say=said.append)
    assert len([line for line in said if "fitting" in line]) == 2


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no study"):
        run_study("labelling", tmp_path / "mine")
    with pytest.raises(OutputError, match="no finished study"):
        read_study_result(tmp_path)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("robustnes", "did you mean 'robustness'"),
        ("studies/labeling.toml", "did you mean 'labelling'"),
        ("zzz", "ready are adaptation, backbones"),
    ],
)
def test_a_study_that_is_not_there_is_answered_with_those_that_are_called_much_like_it(tmp_path, given, hint):
    with pytest.raises(DataError, match=hint):
        run_study(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (
            "labelling",
            '"autoencoded-pristine", "autoencoded-fake", "autoencoded-ignored", "three-class"',
            '"autoencoded-fake"',
            "at least two",
        ),
        ("generators", "[fit]", '[options]\ngenerators = ["lama"]\n[fit]', "no fake by lama"),
        ("data-size", "sources = [2, 4]", "sources = [100]", "out of range"),
        ("data-size", "sources = [2, 4]", "sources = []", "needs numbers of photographs"),
        ("scale", "[fit]", '[[backbones]]\nname = "residual:srm"\n[fit]', r"\[\[backbones\]\] 2 times"),
        ("adaptation", "[options]", "[test]\ndemo = true\n[options]", r"\[test\], which it cannot use"),
        ("adaptation", "[options]", "[fit]\nepochs = 3\n[options]", r"\[fit\], which it does not read"),
        ("labelling", "[fit]", "[finetune]\nepochs = 3\n[fit]", r"\[finetune\], which it does not read"),
        ("labelling", "[fit]", "[options]\nhit_iou = 0.3\n[fit]", r"hit_iou in \[options\]"),
        ("labelling", 'name = "residual:srm"\nwindow_px = 112', 'cache = "c"\n[test]\ndemo = true', "test_cache"),
    ],
)
def test_what_a_kind_cannot_do_is_one_line(tmp_path, name, old, new, complaint):
    path = small(name, tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=complaint):
        run_study(path, tmp_path / "out")


def test_robustness_of_a_cache_that_is_there_takes_the_weights_it_was_made_with(tmp_path):
    data = small("robustness", tmp_path).read_text()
    data = data.replace("photographs = 8", "photographs = 6").replace("n_folds = 4", "n_folds = 3")
    assert "photographs = 6" in data
    assert "n_folds = 3" in data
    old = 'name = "residual:srm"\nwindow_px = 112'
    assert old in data
    vit = 'name = "timm:vit_tiny_patch16_224"\nweights = "random:0"\nwindow_px = 112'
    path = tmp_path / "made.toml"
    path.write_text(data.replace(old, vit))
    made = run_study(path, tmp_path / "made")
    [cache] = (tmp_path / "made" / "caches").iterdir()
    [images] = [folder for folder in (tmp_path / "made" / "data").iterdir() if (folder / "manifest.csv").is_file()]
    there = data.replace(old, f'cache = "{cache}"')
    start, stop = there.index("\n[data]\n"), there.index("[[backbones]]")
    path.write_text(f'{there[:start]}\n[data]\nroot = "{images}"\n\n{there[stop:]}')
    found = run_study(path, tmp_path / "there")
    pd.testing.assert_frame_equal(found.frame(), made.frame())


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Return a folder with the manifests of six photographs to train on and of six others to test."""
    folder = tmp_path_factory.mktemp("apart")
    build_demo(folder / "data", photographs=12, side_px=128, window_px=112)
    manifest = scan(folder / "data", sample=0).manifest
    groups = source_groups(manifest.frame)
    train = groups.isin(sorted(groups.unique())[:3])
    manifest.select(train).write(folder / "train.parquet")
    manifest.select(~train).write(folder / "test.parquet")
    return folder


@pytest.mark.parametrize("name", ["robustness", "localization", "generators", "data-size"])
def test_a_data_set_that_is_tested_only_is_what_is_scored(apart, tmp_path, name):
    text = small(name, tmp_path).read_text()
    start, stop = text.index("\n[data]\n"), text.index("[[backbones]]")
    where = f'[data]\nmanifest = "{apart}/train.parquet"\n[test]\nmanifest = "{apart}/test.parquet"\n'
    path = tmp_path / "apart.toml"
    path.write_text(f"{text[:start]}\n{where}{text[stop:]}".replace("n_folds = 4\n", ""))
    found = run_study(path, tmp_path / "out")
    tested = pd.read_parquet(apart / "test.parquet")["source_id"].nunique()
    assert found.frame()["n_sources"].max() == tested
    assert "tested on" in found.record["lead"]
