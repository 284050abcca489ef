"""Every result has a table and a picture of it, drawn on the caller's axes or on new ones."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from dlprobe import plotting
from dlprobe.cache import parity
from dlprobe.errors import MetricError
from dlprobe.extraction import extract
from dlprobe.localization import score_map
from dlprobe.metrics import reliability_curve
from dlprobe.probes import Probe, make_card
from dlprobe.studies import read_run

RNG = np.random.default_rng(0)


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
        "map": score_map(image, tiny_backbone, probe, stride_px=56),
        "reliability": reliability_curve(RNG.random(300), truth, RNG.integers(0, 10, 300)),
    }


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
