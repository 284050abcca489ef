"""What a study says of its tables: sure, not settled, or nothing; and that numbers are what they are called."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dlprobe.metrics import bootstrap_mean
from dlprobe.studies.designs.kinds.comparing import _in_order, _of_method, _plot_by
from dlprobe.studies.designs.kinds.robustness import _answer, _beyond_everything, _curves, _little_to_lose
from dlprobe.studies.designs.kinds.robustness import _plot as plot_curves
from dlprobe.studies.designs.kinds.scale import _half_row, _told
from dlprobe.studies.designs.kinds.scale import _plot as plot_scale
from dlprobe.studies.designs.kinds.transfer import _distinct, _Size
from dlprobe.studies.designs.kinds.transfer import _plot_growth as plot_growth
from dlprobe.studies.designs.pairing import on_same_scores
from dlprobe.studies.designs.telling import ahead, banner, shown_name, tell, told_p
from dlprobe.studies.designs.workshop import known_generators
from dlprobe.studies.fit import _names
from dlprobe.studies.results import losses_to_everything, lost_to_everything


def difference(kind, ends, p_holm, metric="iou@patch"):
    return {
        "comparison": "a - b",
        "kind": kind,
        "metric": metric,
        **dict(zip(("difference", "low", "high"), ends, strict=True)),
        "p_holm": p_holm,
        "n_sources": 16,
    }


def test_sure_differences_come_first_and_an_interval_alone_settles_nothing():
    table = pd.DataFrame(
        [
            difference("ae", (0.46, 0.09, 0.66), 0.07, "false_area@patch"),
            difference("sp", (-0.2, -0.3, -0.1), 0.004),
            difference("fr", (0.05, -0.1, 0.2), 1.0),
        ]
    )
    more = "0.460 [0.090, 0.660] more of the authentic area than b"
    assert tell(table) == [
        "On sp, b is ahead of a by 0.200 [0.100, 0.300] of IoU (16 photographs, p .004 after Holm).",
        f"On ae, a marks {more} (16 photographs, p .070 after Holm: not settled).",
        "No difference on fr is sure.",
    ]
    assert tell(table.head(0)) == ["Nothing could be compared."]


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (["sp"], "1 of 4 kinds of fake, where .*: sp \\(-0.100 \\[-0.200, \\+0.000\\]\\)$"),
        (
            ["sp", "sp telea", "fr mask 1 to 5 %"],
            r"3 of 4 kinds .*\]\) and 2 narrower kinds, which",
        ),
        (["sp telea"], "1 of 4 kinds .*below: 1 narrower kind, which comparisons.csv names$"),
        ([], ""),
    ],
)
def test_of_kinds_lost_to_marking_everything_whole_variants_are_named_and_others_counted(lost, words):
    kinds = ["sp", "sp telea", "fr", "fr mask 1 to 5 %"]
    table = pd.DataFrame(
        {
            "model": "m",
            "comparison": "dice - everything",
            "kind": kinds,
            "difference": [-0.1 if kind in lost else 0.2 for kind in kinds],
            "low": [-0.2 if kind in lost else 0.1 for kind in kinds],
            "high": [0.0 if kind in lost else 0.3 for kind in kinds],
        }
    )
    said = losses_to_everything(pd.concat([table, table.assign(comparison="dice - ridge", low=-1.0)]))
    assert len(said) == bool(lost)
    assert all(re.match(f"m: does not surely beat marking everything on {words}", line) for line in said)
    assert lost_to_everything(table)["kind"].tolist() == [kind for kind in kinds if kind in lost]


@pytest.mark.parametrize(("more", "line"), [(1, "One more difference is sure"), (2, "2 more differences are sure")])
def test_sure_differences_that_get_no_sentence_are_counted(more, line):
    rows = [difference(f"k{i}", (0.2, 0.1, 0.3), 0.001) for i in range(2 + more)]
    assert tell(pd.DataFrame(rows))[2].startswith(line)


def test_kinds_that_hold_a_comma_are_told_apart():
    quiet = [difference(kind, (0.0, -0.1, 0.1), 1.0) for kind in ("sp, known", "sp, held out", "real")]
    assert tell(pd.DataFrame(quiet)) == ["No difference on sp, known; sp, held out; or real is sure."]


def test_iou_at_another_threshold_is_no_marked_area():
    [line] = tell(pd.DataFrame([difference("sp", (0.1, 0.05, 0.15), 0.01, "iou_val@patch")]))
    assert "a is ahead of b by 0.100 [0.050, 0.150] of IoU at the threshold of validation" in line


@pytest.mark.parametrize(("p", "text"), [(0.0001, "p < .001"), (0.032, "p .032"), (0.43, "p .43"), (1.0, "p 1.00")])
def test_p_is_told_as_in_print(p, text):
    assert told_p(p) == text


def test_weights_that_were_never_trained_are_named():
    assert shown_name("timm:vit", "random:0") == "timm:vit (random:0)"
    assert shown_name("timm:vit", "pretrained") == "timm:vit"
    assert shown_name("timm:vit (random:1)", "random:1") == "timm:vit (random:1)"
    assert banner([]) == ""
    assert banner(["a", "b"]) == "a and b: backbones with random weights, a floor, not a finding."


def pool(backbone, weights, layers=(11,), print_="abcdef"):
    spec = SimpleNamespace(backbone=backbone, layers=layers, window_px=504, fingerprint=print_ * 8)
    return SimpleNamespace(model_spec=spec, caches=[SimpleNamespace(origin={"weights": weights})])


def test_models_of_one_architecture_are_named_by_what_differs():
    assert _names([pool("v", "pretrained"), pool("r", "none")]) == ["v", "r"]
    assert _names([pool("v", "pretrained"), pool("v", "/data/bfree.pth")]) == ["v (pretrained)", "v (bfree.pth)"]
    layers = [pool("v", "pretrained", (5,), "a" * 6), pool("v", "pretrained", (11,), "b" * 6)]
    assert _names(layers) == ["v layers 5 window 504 aaaaaa", "v layers 11 window 504 bbbbbb"]


def test_generators_that_are_not_there_are_left_out_with_a_note():
    frame = pd.DataFrame({"generator": ["", "sd2", "lama"]})
    known, [note] = known_generators(("telea+sr", "sd2"), [frame])
    assert known == ("sd2",)
    assert "telea+sr" in note
    assert "lama, sd2" in note
    assert known_generators(("sd2",), [frame]) == (("sd2",), [])


def test_heads_on_a_layer_alone_are_rows_of_their_own():
    columns = ("kind", "model", "scheme")
    rows = [
        {**dict.fromkeys(columns, "x"), "method": m, "metric": "iou@patch", "value": 0.5}
        for m in ("dice", "dice@3", "ridge")
    ]
    more = dict.fromkeys(("low", "high", "everything", "n_sources", "n_images"), 1)
    run = SimpleNamespace(tables={"results": pd.DataFrame(rows).assign(**more)})
    assert list(_of_method(run, "dice")["method"]) == ["dice", "dice@3"]


def test_rows_stand_as_the_file_names_them_whole_variants_first_and_fakes_before_the_others():
    schemes = ["autoencoded-pristine", "autoencoded-fake", "autoencoded-ignored"]
    kinds = ["ae", "real", "sp telea", "fr, generators held out", "sp", "fr"]
    found = [
        {"kind": kind, "metric": f"{metric}@patch", "scheme": scheme}
        for kind in kinds
        for metric in (("iou", "ap") if kind[:2] in {"sp", "fr"} else ("false_area",))
        for scheme in sorted(schemes)
    ]
    table = _in_order(pd.DataFrame(found), "scheme", schemes)
    ordered = ["sp", "fr, generators held out", "fr", "real", "ae", "sp telea"]
    assert list(dict.fromkeys(table["kind"])) == ordered
    assert table["scheme"].tolist() == schemes * (len(table) // 3)
    assert table.loc[table["kind"] == "sp", "metric"].tolist() == ["iou@patch"] * 3 + ["ap@patch"] * 3
    scores = table.assign(value=0.5, low=0.4, high=0.6, everything=0.1)
    ax = _plot_by("scheme", {"results": scores}, None)
    assert [label for label in ax.get_legend_handles_labels()[1] if label != "marking everything"] == schemes
    assert [text.get_text().partition(":")[0] for text in ax.get_yticklabels()] == ordered[:5]


def test_sizes_that_trained_on_the_same_photographs_are_one():
    two, four = frozenset("ab"), frozenset("abcd")
    kept, lines = _distinct([_Size(2, (two, two), None), _Size(3, (two, two), None), _Size(4, (four, two), None)])
    assert [(size.asked, size.count, size.mean) for size in kept] == [(2, "2", 2), (4, "2 to 4", 3)]
    assert any("3 photographs are those of 2" in line for line in lines)


def sized(hits):
    names = np.repeat([f"p{i}" for i in range(10)], len(hits) // 10)
    return pd.DataFrame({"size": np.geomspace(0.005, 0.6, len(hits)), "hit": hits, "source_id": names})


def test_a_half_outside_the_sizes_looked_at_is_none_and_ends_stay_inside():
    always = _half_row("sp", sized(np.ones(40, bool)), 0)
    assert np.isnan(always["half_share"])
    text = _told(pd.DataFrame([always]).iloc[0], 0.3)
    assert "within 0.5-60.0 %" in text
    assert "100% detected" in text
    assert "falls" not in text
    rng = np.random.default_rng(0)
    size = np.tile(np.geomspace(0.005, 0.6, 8), 10)
    hit = rng.random(80) < 1 / (1 + np.exp(-1.5 * (np.log2(size) - np.log2(0.06))))
    table = pd.DataFrame({"size": size, "hit": hit, "source_id": np.repeat([f"p{i}" for i in range(10)], 8)})
    found = _half_row("sp", table, 0)
    assert 0.005 <= found["half_share_low"] < found["half_share"] < found["half_share_high"] <= 0.6
    assert "falls to half at" in _told(pd.DataFrame([found]).iloc[0], 0.3)


def test_the_figure_of_scale_says_what_a_detection_is_and_what_marking_everything_gets():
    halves = pd.DataFrame([_half_row("sp", sized(np.arange(40) > 20), 0)]).assign(hit_iou=0.3)
    sizes = pd.DataFrame(
        {
            "variant": "sp",
            "metric": "detected",
            "size": [0.01, 0.1, 0.5],
            "rung": [0.01, 0.1, 0.5],
            "value": [0.1, 0.5, 0.9],
            "low": [0.0, 0.4, 0.8],
            "high": [0.2, 0.6, 1.0],
            "everything": [0.0, 0.0, 1.0],
        }
    )
    ax = plot_scale({"sizes": sizes, "halves": halves}, None)
    assert "IoU >= 0.3" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "10", "100"]
    assert "marking everything" in ax.get_legend_handles_labels()[1]
    fitted = [line for line in ax.lines if len(line.get_xdata()) == 200]
    assert fitted
    assert all(line.get_marker() in {"", "None"} for line in fitted)


def test_the_figure_of_growth_shows_what_marking_everything_gets():
    rows = [
        {"kind": kind, "metric": metric, "photographs": str(n), "photographs_mean": n, "everything": everything}
        for kind, metric, everything in (("sp", "iou@patch", 0.141), ("real", "false_area@patch", 1.0))
        for n in (2, 4)
    ]
    growth = pd.DataFrame(rows).assign(value=0.5, low=0.4, high=0.6)
    left, right = plot_growth({"growth": growth}, None).figure.axes
    [line] = [line for line in left.lines if line.get_label() == "marking everything"]
    assert list(line.get_ydata()) == [0.141, 0.141]
    assert [text.get_text() for text in left.get_xticklabels()] == ["2", "4"]
    assert "marking everything" not in right.get_legend_handles_labels()[1]


def test_what_marking_everything_gets_has_the_colour_of_its_kind_where_kinds_differ():
    rows = [
        {"kind": kind, "metric": "iou@patch", "photographs": str(n), "photographs_mean": n, "everything": everything}
        for kind, everything in (("fr", 0.2), ("sp", 0.1))
        for n in (2, 4)
    ]
    ax = plot_growth({"growth": pd.DataFrame(rows).assign(value=0.5, low=0.4, high=0.6)}, None)
    drawn = {line.get_label(): line for line in ax.lines}
    for kind, level in (("fr", 0.2), ("sp", 0.1)):
        line = drawn[f"marking everything, {kind}"]
        assert list(line.get_ydata()) == [level, level]
        assert line.get_color() == drawn[kind].get_color()
    assert drawn["fr"].get_color() != drawn["sp"].get_color()


@pytest.fixture
def degraded():
    """Return scores of a fake and a photograph of each source, clean and under JPEG of two strengths."""
    rows = []
    for variant, metric in (("sp", "dlprobe.original_px.iou"), ("real", "dlprobe.original_px.marked_share")):
        for number in range(10):
            for degradation, strength, change in (("clean", 0.0, 0.0), ("jpeg", 80.0, -0.1), ("jpeg", 60.0, -0.2)):
                score = 0.5 + 0.01 * number + change
                rows.append(
                    {
                        "variant": variant,
                        "source_id": f"p{number}",
                        "degradation": degradation,
                        "strength": strength,
                        "mask_share": 0.3 if variant == "sp" else 0.0,
                        metric: score,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture
def curves(degraded):
    return _curves(degraded, 0)


def test_clean_images_are_not_compared_with_themselves(curves):
    clean = curves["degradation"] == "clean"
    assert curves.loc[clean, ["difference", "difference_low", "difference_high"]].isna().all(axis=None)
    assert curves.loc[~clean, "difference"].notna().all()


def test_the_largest_loss_is_called_a_selection_and_is_no_improvement(curves):
    fake, real = _answer(curves)
    assert "of 2 conditions the largest loss, a selection, is -0.200" in fake
    assert "under jpeg 60" in fake
    assert real.endswith("none of 2 conditions makes it worse on average.")
    assert len(plot_curves({"curves": curves}, None).figure.axes) == 2


def test_what_is_lost_is_read_against_marking_everything(degraded, curves):
    clean = _beyond_everything(degraded, 0)
    assert clean["kind"].tolist() == ["sp"]
    said = ahead(clean.iloc[0])
    assert said.startswith("On sp, the probe on clean images is ahead of marking everything by 0.245 [")
    assert said.endswith("(10 photographs, p .002 after Holm).")
    worse = degraded.assign(**{"dlprobe.original_px.iou": degraded["dlprobe.original_px.iou"] - 0.4})
    assert ahead(_beyond_everything(worse, 0).iloc[0]).startswith("On sp, marking everything is ahead of the probe on")
    assert curves.groupby("variant")["everything"].unique().map(list).to_dict() == {
        "sp": [pytest.approx(0.3)],
        "real": [1.0],
    }
    for ax, level in zip(plot_curves({"curves": curves}, None).figure.axes, (0.3, 1.0), strict=True):
        [line] = [line for line in ax.lines if line.get_label() == "marking everything"]
        assert line.get_ydata()[0] == pytest.approx(level)


def test_where_marking_everything_is_not_surely_beaten_there_is_little_to_lose(degraded):
    clean = _beyond_everything(degraded, 0)
    assert _little_to_lose(clean) == []
    for worse in (clean.assign(p_holm=0.05), clean.assign(difference=-clean["difference"])):
        [line] = _little_to_lose(worse)
        assert line.startswith("On sp marking everything is not surely beaten even on clean images")
    assert _little_to_lose(clean.head(0)) == []


def test_an_interval_of_scores_that_do_not_vary_is_explained_and_only_there():
    flat = bootstrap_mean(np.zeros(8), bounds=(0, 1))
    assert flat.high > 0.3
    rows = [{"value": flat.estimate, "low": flat.low, "high": flat.high, "n_sources": 8}]
    told = on_same_scores([pd.DataFrame(rows)])
    assert f"8 tested photographs cannot rule out that up to {flat.high:.0%} of photographs" in told
    varied = [{"value": 0.2, "low": 0.1, "high": 0.4, "n_sources": 8}]
    assert on_same_scores([pd.DataFrame(varied), pd.DataFrame({"p": [0.1]})]) == ""
