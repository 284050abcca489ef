"""A whole measurement: the numbers of one look at everything, intervals over sources, reasons where there is none."""

import json
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from typer.testing import CliRunner

from dlprobe import plotting
from dlprobe.cache import open_cache
from dlprobe.errors import IdentityError, MetricError, OutputError
from dlprobe.metrics.intervals.studentized import MIN_SOURCES
from dlprobe.probes import Probe, make_card
from dlprobe.reports.fits.sections import separability_sections
from dlprobe.separability import PatchMap, SeparabilitySettings, separate
from dlprobe.separability.gathering import entries_of
from dlprobe.separability.results import KEY, STATISTICS

SETTINGS = SeparabilitySettings(sample_per_class=60, neighbours=5)
PAIR = "PRISTINE vs INPAINTED"
(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()


def run(*arguments):
    return CliRunner().invoke(APP, ["separate", *map(str, arguments)])


def value(result, statistic, classes=PAIR, features=0):
    names = list(dict.fromkeys(result.frame()["features"]))
    return result.frame().set_index(KEY).sort_index().loc[(names[features], statistic, classes)]


def test_distances_are_those_of_all_patches_in_memory(measured, rows):
    embeddings, coverage, _ = rows
    first, second = (embeddings[coverage[:, k] > 127][:, :6] for k in (0, 2))
    scale = np.sqrt((first.var(0) + second.var(0)) / 2 + (first.mean(0) - second.mean(0)) ** 2 / 4)
    mean = (np.cov((first / scale).T, bias=True) + np.cov((second / scale).T, bias=True)) / 2
    mean = 0.99 * mean + 0.01 * np.trace(mean) / 6 * np.eye(6)
    expected = mahalanobis(first.mean(0) / scale, second.mean(0) / scale, np.linalg.inv(mean))
    found = value(measured, "mahalanobis")
    assert found["value"] == pytest.approx(expected, rel=1e-6)
    assert (found["n_sources"], found["n_patches"]) == (9, len(first) + len(second))


def test_accuracy_is_that_of_scikit_learns_lda_on_sources_that_it_did_not_see(measured, rows, paths):
    embeddings, coverage, _ = rows
    entries, groups = entries_of([open_cache(paths["plain"])], SETTINGS.groups, SETTINGS.seed)
    group = np.repeat(entries[0].groups, 36)
    classes = np.where(coverage[:, 0] > 127, 0, np.where(coverage[:, 2] > 127, 1, -1))
    hits, tested = np.zeros(2), np.zeros(2)
    for out in range(groups):
        train = (group != out) & (classes >= 0)
        first, second = (embeddings[train & (classes == k)][:, :6] for k in (0, 1))
        scale = np.sqrt((first.var(0) + second.var(0)) / 2 + (first.mean(0) - second.mean(0)) ** 2 / 4)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01, priors=[0.5, 0.5])
        lda.fit(embeddings[train][:, :6] / scale, classes[train])
        for k in (0, 1):
            held = (group == out) & (classes == k)
            hits[k] += np.sum(lda.predict(embeddings[held][:, :6] / scale) == k)
            tested[k] += held.sum()
    assert groups == 9
    assert value(measured, "lda_accuracy")["value"] == pytest.approx((hits / tested).mean(), abs=1e-12)


def test_the_size_of_blocks_changes_nothing(paths):
    small, large = (separate([paths[name]], settings=SETTINGS) for name in ("plain", "blocks"))
    for table in ("table", "effects"):
        one, other = (getattr(result, table).drop(columns="features") for result in (small, large))
        pd.testing.assert_frame_equal(one, other, rtol=1e-7, atol=1e-9)


def test_every_number_lies_in_its_bounds_with_an_interval_over_sources(measured):
    table = measured.frame()
    assert set(table["statistic"]) == set(STATISTICS)
    assert table["value"].notna().all()
    for name, part in table.groupby("statistic"):
        low, high = STATISTICS[name].bounds
        assert part["value"].between(low - 1e-9, high + 1e-9).all()
        assert (part["low"].isna() | (part["low"] >= low)).all()
    sure = table[table["low"].notna()]
    assert len(sure) > 0.7 * len(table)
    assert (sure["low"] <= sure["high"]).all()
    assert ((sure["low"] <= sure["value"]) & (sure["value"] <= sure["high"])).all()
    assert table.loc[table["low"].isna(), "reason"].str.contains("no interval").all()


def test_turning_the_features_keeps_what_is_invariant(measured):
    assert value(measured, "linear_cka", "all", 2)["value"] < 1
    table = measured.differences.set_index(["statistic", "classes"])
    # without shrinkage LDA would not see the difference; with 1 % it hardly does
    assert abs(table.loc[("lda_accuracy", PAIR), "value"]) < 0.1
    row = table.loc[("silhouette", PAIR)]
    sides = [value(measured, "silhouette", features=n)["value"] for n in (0, 1)]
    assert row["value"] == pytest.approx(sides[1] - sides[0])
    assert row["low"] <= row["high"]


def test_grids_of_different_patches_are_compared_on_a_common_one(paths):
    result = separate([paths["plain"], paths["coarse"]], settings=SETTINGS)
    row = result.frame().set_index("statistic").loc["linear_cka"]
    assert "4 x 4 cells" in row["reason"]
    assert 0.5 < row["value"] <= 1
    assert row["n_patches"] == 27 * 16


def test_effects_name_the_constant_dimension(measured):
    part = measured.effects[measured.effects["features"] == measured.effects["features"][0]]
    constant = part[part["dimension"] == 6]
    assert constant["value"].isna().all()
    assert set(constant["reason"]) == {"constant within the classes"}
    known = part[part["dimension"] < 6]
    assert (known["low"] <= known["high"]).all()


def test_few_groups_of_sources_give_values_but_no_intervals(paths):
    few = separate([paths["plain"]], settings=replace(SETTINGS, groups=4)).frame()
    assert few["value"].notna().all()
    assert few["low"].isna().all()
    assert few["reason"].str.contains(f"4 independent groups of sources, {MIN_SOURCES} are needed").all()


def test_a_class_that_is_not_there_is_said_and_not_scored(tiny_backbone, tiny_manifest, tmp_path):
    from dlprobe.data import Manifest
    from dlprobe.extraction import extract

    frame = tiny_manifest.frame
    only = Manifest(frame[frame["variant"] == "real"], tiny_manifest.root)
    extract(only, tiny_backbone, tmp_path / "real", stride_px=112)
    result = separate([tmp_path / "real"], settings=SETTINGS)
    table = result.frame().set_index(["statistic", "classes"])
    assert np.isnan(table.loc[("lda_accuracy", PAIR), "value"])
    assert table.loc[("lda_accuracy", PAIR), "reason"] == "no INPAINTED patch"
    assert table.loc[("fisher_ratio", "AUTOENCODED vs INPAINTED"), "reason"] == "no AUTOENCODED and no INPAINTED patch"
    assert table.loc[("total_variance", "PRISTINE"), "value"] > 0
    assert result.effects.empty
    result.write(tmp_path / "out")


def test_one_source_leaves_nothing_to_fit_on(tiny_backbone, tiny_manifest, tmp_path):
    from dlprobe.data import Manifest
    from dlprobe.extraction import extract

    frame = tiny_manifest.frame
    one = frame[(frame["source_id"] == frame["source_id"][0]) & (frame["donor_id"] == "")]
    extract(Manifest(one, tiny_manifest.root), tiny_backbone, tmp_path / "one", stride_px=112)
    table = separate([tmp_path / "one"], settings=SETTINGS).frame().set_index(["statistic", "classes"])
    assert np.isnan(table.loc[("lda_accuracy", PAIR), "value"])
    assert "nothing is left to fit on" in table.loc[("lda_accuracy", PAIR), "reason"]
    thin = table.loc[("mahalanobis", PAIR)]
    assert np.isnan(thin["value"])
    assert "than dimensions" in thin["reason"]
    assert np.isnan(table.loc[("knn_purity_other_sources", PAIR), "value"])


def test_probes_are_compared_with_each_other_and_must_be_of_a_model(paths, tmp_path):
    def save(name, model, weights):
        card = make_card(
            model=model, scheme="", objective="", classes=["INPAINTED"], threshold=0.5, threshold_policy=""
        )
        Probe(weights[None], np.zeros(1), card).save(tmp_path / name)
        return tmp_path / name

    spec = open_cache(paths["plain"]).model_spec
    one, other = save("a.safetensors", spec, np.eye(7)[0]), save("b.safetensors", spec, np.eye(7)[1])
    table = separate([paths["plain"]], probes=[one, other], settings=SETTINGS).frame().set_index(KEY[1:])
    row = table.loc[("direction_angle_deg", "a ~ b")]
    assert row["value"] == pytest.approx(90)
    assert row["reason"] == "no interval: the directions were given"
    with pytest.raises(IdentityError, match="another model"):
        separate([paths["coarse"]], probes=[one], settings=SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_share", 0.4), ("shrinkage", 1.1), ("sample_per_class", 3), ("neighbours", 0), ("groups", 1), ("seed", -1)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(MetricError, match=name):
        SeparabilitySettings(**{name: value})


def test_what_cannot_be_measured_is_refused_in_a_line(paths, tmp_path):
    with pytest.raises(MetricError, match="no cache"):
        separate([])
    with pytest.raises(MetricError, match="twice"):
        separate([paths["plain"], paths["plain"]])
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="was not written by"):
        separate([paths["plain"]], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_displays_draw_what_the_table_says(measured):
    ax = measured.plot()
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert PAIR in names
    assert len(ax.collections) == 2
    own = plotting.axes()
    assert measured.plot(own, "linear_cka") is own
    assert measured.plot_effects(measured.effects["features"][0], PAIR, largest=3).get_ylabel() == "dimension"
    with pytest.raises(MetricError, match="lda_accuracy"):
        measured.plot(statistic="nonsense")


def test_maps_hold_the_sample_and_are_marked_by_class_and_source(measured):
    drawn = measured.maps[0]
    frame = drawn.frame()
    assert list(frame) == ["features", "method", "x", "y", "class", "source_id"]
    assert frame["class"].value_counts().to_dict() == dict.fromkeys(["PRISTINE", "AUTOENCODED", "INPAINTED"], 60)
    assert np.linalg.norm(np.cov(drawn.points.T)[0, 1]) < 1e-9
    assert len(drawn.plot(by="class").collections) == 3
    assert len(drawn.plot(by="source").collections) == 9
    with pytest.raises(MetricError, match="'class' or 'source'"):
        drawn.plot(by="colour")


def test_random_weights_show_in_every_name(measured):
    names = set(measured.frame()["features"])
    assert all(name.endswith("(random:0)") for name in names)
    assert any("a floor, not a finding" in note for note in measured.notes)


def test_a_picture_of_other_windows_says_how_many_each_has(paths, measured, tmp_path, tiny_cache):
    assert "same windows" not in measured.plot().get_xlabel()
    apart = separate([paths["plain"], tiny_cache], settings=SETTINGS)
    assert "not on the same windows" in apart.plot().get_xlabel()
    assert apart.record["same_windows"] is False


def test_a_report_shows_what_was_measured_and_paired_differences(measured, tmp_path):
    folder = measured.write(tmp_path / "out")
    whole, paired, *_ = separability_sections(folder)
    assert "27 windows" in " ".join(whole.text)
    assert any("a floor, not a finding" in line for line in whole.text)
    assert "paired differences" in paired.title
    assert len(paired.rows) == len(measured.differences)
    (folder / "separability.json").unlink()
    with pytest.raises(OutputError, match="write it again"):
        next(separability_sections(folder))


def test_a_map_of_many_sources_names_those_with_most_patches():
    sources = np.repeat([f"s{k:02d}" for k in range(20)], np.arange(1, 21))
    drawn = PatchMap("f", "pca", np.zeros((len(sources), 2)), sources, sources, ("x", "y"))
    ax = drawn.plot(by="source")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["8 other sources", *(f"s{k:02d}" for k in range(19, 7, -1))]


def test_the_command_prints_the_table_and_writes_tables_moments_and_pictures(paths, tmp_path):
    out = tmp_path / "deep" / "out"
    result = run(paths["plain"], paths["mixed"], "-o", out, "--sample", 40, "--json")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    table = pd.read_parquet(out / "separability.parquet")
    assert [line["kind"] for line in lines].count("statistic") == len(table)
    assert {"statistic", "difference"} == {line["kind"] for line in lines}
    assert (out / "lda_accuracy.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "gaussians.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].shape[0] == 7 for name in arrays)
    record = json.loads((out / "separability.json").read_text())
    assert record["settings"]["sample_per_class"] == 40
    assert [cache["windows"] for cache in record["caches"]] == [27, 27]
    fingerprint = open_cache(paths["mixed"]).model_spec.fingerprint
    assert record["caches"][1]["model_fingerprint"] == fingerprint
    assert "random weights" in " ".join(record["notes"])
    before = (out / "separability.csv").read_bytes()
    again = run(paths["plain"], paths["mixed"], "-o", out, "--sample", 40)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.split()[0] == "features"
    assert (out / "separability.csv").read_bytes() == before


@pytest.mark.parametrize("arguments", [("nowhere",), ("{cache}", "--shrinkage", 2), ("{cache}", "--probe", "nothing")])
def test_the_command_refuses_in_one_line(paths, arguments):
    result = run(*(str(argument).format(cache=paths["plain"]) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_umap_is_the_same_twice(paths):
    pytest.importorskip("umap")
    maps = [separate([paths["plain"]], settings=replace(SETTINGS, umap=True)).maps[-1] for _ in range(2)]
    assert maps[0].method == "umap"
    np.testing.assert_array_equal(maps[0].points, maps[1].points)
