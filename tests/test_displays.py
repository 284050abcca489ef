"""Every result has a table and a picture of it, drawn on the caller's axes or on new ones."""

import inspect
import tomllib
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from dlprobe import plotting
from dlprobe.cache import parity
from dlprobe.data.synthesis import SynthesisReport
from dlprobe.errors import MetricError
from dlprobe.extraction import RepairReport, extract
from dlprobe.localization import score_map
from dlprobe.metrics import PairedDifference, reliability_curve
from dlprobe.probes import Probe, make_card
from dlprobe.studies import CacheComparison, Evaluation, FinetuneResult, read_run
from dlprobe.studies.designs import STUDIES
from dlprobe.studies.displays import plot_robustness

RNG = np.random.default_rng(0)
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
#: What public functions return that is no result: things to work with, and single numbers with their ends.
NO_RESULTS = {
    "BackboneListing",
    "Block",
    "BestF1",
    "Bounds",
    "Box",
    "Counts",
    "Damage",
    "DemoResult",  # a text, and where the page is
    "Difference",
    "DinoLizerHead",
    "FeatureCache",
    "Finding",
    "FittedHead",
    "Guarantee",
    "HeadSpec",
    "Interval",
    "LinearFit",
    "Localization",  # where the files of one image are; its map is a `ScoreMap`
    "LogisticFit",
    "LogisticSolution",
    "Manifest",
    "NearestPatches",
    "PairedDifference",
    "Plan",
    "Preset",
    "Probe",
    "Protocol",
    "Ranking",
    "Sample",
    "SeedSpread",
    "Study",
    "Temperature",
    "Verdict",
    "WindowsOfImage",
}


@pytest.fixture
def displays(tiny, tiny_fit, tiny_cache, tiny_backbone, tiny_manifest):
    """Return every result object by name."""
    from dlprobe.data import scan

    card = make_card(model=None, scheme="", objective="", classes=["INPAINTED"], threshold=0.5, threshold_policy="")
    probe = Probe(RNG.normal(size=(1, tiny_backbone.width)) / 50, np.zeros(1), card)
    image = RNG.integers(0, 256, (120, 150, 3), dtype=np.uint8)
    truth = RNG.random(300) < 0.5
    return {
        "fit": tiny_fit,
        "run": read_run(tiny_fit.out),
        "scan": scan(tiny / "data"),
        "extraction": extract(tiny_manifest, tiny_backbone, tiny_cache, stride_px=112, block_windows=16),
        "parity": parity(tiny_cache, tiny_cache),
        "comparison": comparison(parity(tiny_cache, tiny_cache)),
        "no comparison": CacheComparison(parity(tiny_cache, tiny_cache), None, None, "no probe"),
        "repair": RepairReport(tiny_cache, ("spec.json",), (0, 3), (3,)),
        "synthesis": SynthesisReport(tiny, tiny_manifest, []),
        "adaptation": FinetuneResult(tiny, tiny_fit.results, tiny_fit.comparisons, tiny_fit.images, {}, [], {}),
        "evaluation": evaluation(),
        "map": score_map(image, tiny_backbone, probe, stride_px=56),
        "reliability": reliability_curve(RNG.random(300), truth, RNG.integers(0, 10, 300)),
    }


def comparison(embeddings):
    return CacheComparison(embeddings, 0.31, 0.3, "", PairedDifference(-0.01, -0.02, 0.004, 0.2, 9))


def evaluation():
    results = pd.DataFrame({"kind": ["sp", "fr"], "metric": "own.iou", "value": [0.3, 0.2], "everything": 0.1})
    results = results.assign(low=results["value"] - 0.1, high=results["value"] + 0.1)
    overview = pd.DataFrame({"metric": ["own.iou (oracle)"]})
    return Evaluation(Path(), {"overview": overview, "results": results}, [], {}, {})


def returned_classes():
    """Yield every class of ours that a public function returns, alone or among others."""
    for package in tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["packages"]:
        module = import_module(package) if package.startswith("dlprobe.") else None
        functions = [getattr(module, name) for name in getattr(module, "__all__", ())]
        for function in filter(inspect.isfunction, functions):
            home = import_module(function.__module__)
            words = set(str(inspect.signature(function).return_annotation).replace("[", " ").replace("]", " ").split())
            found = [getattr(home, word, None) or getattr(module, word, None) for word in words]
            yield from (kind for kind in found if inspect.isclass(kind) and kind.__module__.startswith("dlprobe"))


def test_every_public_result_has_a_table_and_a_picture():
    kinds = {kind for kind in returned_classes() if is_dataclass(kind) or issubclass(kind, tuple)}
    results = {kind for kind in kinds if kind.__name__ not in NO_RESULTS}
    names = {kind.__name__ for kind in results}
    assert {"FitResult", "FinetuneResult", "CacheComparison", "RepairReport", "SynthesisReport", "Evaluation"} <= names
    assert {"Separability", "StudyResult", "ScanResult", "ExtractionReport", "ScoreMap"} <= names
    lacking = {kind.__name__ for kind in results if not (hasattr(kind, "frame") and hasattr(kind, "plot"))}
    assert lacking == set()
    for kind in results:
        assert inspect.signature(kind.plot).parameters["ax"].default is None, kind


def test_the_change_between_two_caches_is_drawn_with_its_interval(displays):
    ax = displays["comparison"].plot()
    drawn = {float(x) for line in ax.lines for x in line.get_xdata()}
    drawn |= {float(x) for part in ax.collections for segment in part.get_segments() for x in segment[:, 0]}
    assert {-0.02, -0.01, 0.004} <= drawn
    assert displays["comparison"].frame()["iou_change_low"].iloc[0] == -0.02
    with pytest.raises(MetricError, match=r"own\.iou"):
        displays["evaluation"].plot(metric="nonsense")


def test_each_is_drawn_on_the_axes_given_or_on_new_ones(displays):
    for name, display in displays.items():
        own = plotting.axes()
        assert display.plot(own) is own, name
        new = display.plot()
        assert new is not own, name
        assert plotting.png(new).startswith(b"\x89PNG"), name
        assert new.get_xlabel(), name
        assert display.frame().shape[1] > 2, name


def test_a_fits_picture_shows_the_numbers_of_its_table(displays):
    fit = displays["fit"]
    scheme = "autoencoded-fake"
    rows = fit.frame().query(f"metric == 'iou@patch' and scheme == '{scheme}' and method == 'dice'")
    ax = fit.plot(scheme=scheme)
    drawn = {float(x) for line in ax.lines for x in line.get_xdata()}
    assert set(rows["value"]) <= drawn
    assert [text.get_text() for text in ax.get_yticklabels()] == list(dict.fromkeys(rows["kind"]))
    assert len(fit.plot_comparisons().get_yticklabels()) == len(fit.comparisons)
    with pytest.raises(MetricError, match="autoencoded-pristine"):
        fit.plot(scheme="nonsense")


def test_a_scans_picture_counts_photographs(displays):
    ax = displays["scan"].plot()
    counted = displays["scan"].manifest.frame.groupby(["variant", "generator"])["source_id"].nunique()
    assert [bar.get_width() for bar in ax.patches] == counted.tolist()
    assert list(displays["scan"].frame()["name"]) == [finding.name for finding in displays["scan"].findings]


def test_a_maps_picture_has_its_pixels_and_a_bar_from_0_to_1(displays):
    drawn = displays["map"]
    ax = drawn.plot()
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), drawn.inpainted)
    assert image.get_clim() == (0, 1)
    assert len(plotting.figure_of(ax).axes) == 2
    row = drawn.frame().iloc[0]
    assert (row["height_px"], row["width_px"]) == (120, 150)
    assert row["area"] == pytest.approx((drawn.working_scores >= 0.5).mean())


def test_a_reliability_curve_is_scikit_learns_with_intervals_over_sources():
    p = RNG.beta(0.7, 0.7, 4000)
    sources = RNG.integers(0, 12, 4000).astype(str)
    truth = RNG.random(4000) < p
    table = reliability_curve(p, truth, sources, bins=10).frame()
    frequency, mean = calibration_curve(truth, p, n_bins=10)
    np.testing.assert_allclose(table["frequency"], frequency)
    np.testing.assert_allclose(table["probability"], mean)
    assert (table["low"] < table["frequency"]).all()
    assert (table["frequency"] < table["high"]).all()
    assert table["n"].sum() == 4000
    assert reliability_curve(p[:5], truth[:5], sources[:5]).frame()["low"].isna().all()
    with pytest.raises(MetricError, match="source_id"):
        reliability_curve(p, truth, sources[:-1])
    with pytest.raises(MetricError, match="not logits"):
        reliability_curve(p + 1, truth, sources)


def test_a_matrix_of_generators_has_an_interval_in_each_cell():
    rows = [("a", "a", 0.3, 0.2, 0.4), ("a", "b", 0.1, np.nan, np.nan), ("b", "b", 0.6, 0.5, 0.7)]
    matrix = pd.DataFrame(rows, columns=["trained", "tested", "value", "low", "high"]).assign(variant="sp")
    ax = STUDIES["generators"].plot({"matrix": matrix}, None)
    assert [text.get_text() for text in ax.texts] == ["0.30\n[0.20, 0.40]", "0.10", "0.60\n[0.50, 0.70]"]


def test_robustness_at_one_strength_names_it_and_at_several_has_an_axis():
    rows = [
        ("clean", "clean", 0.0, 0.5),
        ("jpeg:quality=60", "a", 1.0, 0.4),
        ("blur", "b", 1.0, 0.3),
        ("blur", "c", 2.0, 0.2),
        ("limit-2048", "d", 80.0, 0.1),
    ]
    curves = pd.DataFrame(rows, columns=["degradation", "chain", "strength", "value"])
    curves = curves.assign(variant="sp", metric="iou", low=np.nan, high=np.nan)
    one, several, named = plotting.figure_of(plot_robustness(curves, "iou")).axes
    assert (one.get_xlabel(), list(one.get_xticks())) == ("jpeg:quality=60", [])
    assert several.get_xlabel() == "strength of blur"
    assert (named.get_xlabel(), list(named.get_xticks())) == ("limit-2048, strength 80", [])
    assert len(several.get_xticks()) > 1
