"""What an evaluation computes, keeps, leaves out and says, on a small data set, by the path that a user takes."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import logit

from dlprobe.data import Manifest, Provenance
from dlprobe.data.degrade import PRESETS
from dlprobe.data.images import read_image, read_mask
from dlprobe.errors import CacheError, DataError, OutputError, RegistryError
from dlprobe.localization import SlidingSettings, masks_by_step, score_map
from dlprobe.localization.outputs import SATURATED_AREA
from dlprobe.metrics import PROTOCOLS, bootstrap_mean, evaluate_map, source_means
from dlprobe.probes import Probe
from dlprobe.spec import sha256_of_file
from dlprobe.studies import EvaluateSettings, evaluate, read_evaluation
from dlprobe.studies.evaluation.maps import MapStore, degraded, map_identity, moved_regions
from dlprobe.studies.evaluation.settings import Condition, conditions, yardsticks
from dlprobe.studies.evaluation.subjects import choose_subjects

SLIDE = SlidingSettings(stride_px=56)
GENERATORS = ["", "pca", "telea+pca"]
CROP = "crop:keep=0.75,y=0.0,x=0.0"
JPEG = "jpeg:quality=50"


@pytest.fixture(scope="module")
def manifest(tiny_manifest):
    return tiny_manifest.select(tiny_manifest.frame["generator"].isin(GENERATORS))


@pytest.fixture(scope="module")
def probe(tiny_fit):
    return tiny_fit.probes["residual-srm/folds/dice-autoencoded-pristine-0"]


@pytest.fixture(scope="module")
def inputs(manifest, tiny_backbone, probe):
    return manifest, tiny_backbone, probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation") / "out"


@pytest.fixture(scope="module")
def found(manifest, tiny_backbone, probe, folder):
    settings = EvaluateSettings(seen="keep", degrade=(JPEG, CROP))
    return evaluate(manifest, tiny_backbone, probe, folder, settings=settings, sliding=SLIDE)


def truth_of(manifest, row):
    mask = np.zeros((row.height, row.width), bool)
    if row.mask:
        mask = read_mask(manifest.root / row.mask, (row.height, row.width))
    return mask


def own_threshold(found):
    """A Python float: NumPy would compare scores of 32 bits to its own float64 in 64."""
    return float(found.tables["results"].query("protocol == 'dlprobe'")["threshold"].iloc[0])


def test_every_image_is_accounted_for_and_the_folder_reads_back(found, manifest, folder, probe):
    assert found.accounting == {
        "images": len(manifest),
        "scored": len(manifest),
        "rejected": 0,
        "ignored": 0,
        "maps_computed": 3 * len(manifest),
        "maps_kept": 0,
    }
    run = read_evaluation(folder)
    pd.testing.assert_frame_equal(run.tables["results"], found.tables["results"], check_dtype=False)
    assert run.record["probe"]["sha256"] == probe.sha256
    assert run.record["backbone"]["model_fingerprint"] == probe.card["model_fingerprint"]
    assert run.record["manifest"]["sha256"] == manifest.sha256
    assert run.record["sliding"]["stride_px"] == 56
    assert run.record["software"]["numpy"] == np.__version__
    assert (folder / "results.md").read_text().startswith("| kind |")
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".csv", ".parquet", ".md", ".json"}


def test_rows_are_what_the_protocols_say_of_the_maps_of_localize(found, manifest, tiny_backbone, probe):
    images = found.tables["images"].query("chain == 'clean'").set_index("path")
    for variant in ("sp", "real", "ae"):
        row = next(manifest.frame.query("variant == @variant").itertuples())
        mask = truth_of(manifest, row)
        live = score_map(read_image(manifest.root / row.path), tiny_backbone, probe, stride_px=56)
        for ruler in yardsticks(EvaluateSettings(), probe.threshold, ""):
            score = live.inpainted
            if ruler.protocol.name == "mvss":
                score = (score * 255).astype(np.uint8)
            expected = evaluate_map(score, mask, ruler.protocol.name, ruler.threshold)
            for name in ("f1", "iou", "auc", "marked_share", "mask_share"):
                if name in expected:
                    value = images.loc[row.path, ruler.column(name)]
                    assert value == pytest.approx(expected[name], abs=2e-3, nan_ok=True), (variant, ruler.label, name)
        assert images.loc[row.path, "image_score"] == np.percentile(live.working_scores, 99)


def test_kept_maps_are_rounded_and_keep_0_one_half_and_1(found, inputs, folder, tmp_path):
    manifest, tiny_backbone, probe = inputs
    row = found.tables["images"].iloc[0]
    store = MapStore(folder / "maps", {}, 112)
    live = score_map(read_image(manifest.root / row.path), tiny_backbone, probe, stride_px=56)
    kept = store.read(folder / "maps" / row["map"])
    for cut in (1e-6, 0.02, 0.5, 0.98, 1 - 1e-6):
        sure = np.abs(logit(live.inpainted) - logit(cut)) > (abs(logit(cut)) + 1e-3) / 2048
        np.testing.assert_array_equal((kept.original >= cut)[sure], (live.inpainted >= cut)[sure])
        assert sure.mean() > 0.99
    exact = np.array([[0, 0.5, 1.0]], np.float32)

    class Exact:
        inpainted = exact
        working_scores = np.repeat(exact, 2, axis=0)

    store.write(tmp_path / "x.npz", Exact)
    np.testing.assert_array_equal(store.read(tmp_path / "x.npz").original, exact)
    assert store.read(tmp_path / "x.npz").working.shape == (2, 3)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:60])
    with pytest.raises(CacheError, match=r"x\.npz is missing or damaged; remove"):
        store.read(tmp_path / "x.npz")


def test_another_protocol_or_threshold_computes_no_map(found, inputs, folder, tmp_path):
    manifest, tiny_backbone, probe = inputs
    shutil.copytree(folder, tmp_path / "out")
    settings = EvaluateSettings(seen="keep", protocols=("tgif", "dlprobe"), threshold=0.7)
    again = evaluate(manifest, tiny_backbone, probe, tmp_path / "out", settings=settings, sliding=SLIDE)
    assert (again.accounting["maps_computed"], again.accounting["maps_kept"]) == (0, len(manifest))
    assert set(again.tables["results"]["protocol"]) == {"tgif", "dlprobe", "dlprobe@0.5"}
    assert set(again.tables["results"].query("protocol == 'dlprobe'")["threshold"]) == {0.7}
    other = evaluate(
        manifest.select(manifest.frame.index < 3),
        tiny_backbone,
        probe,
        tmp_path / "out",
        settings=settings,
        sliding=SlidingSettings(stride_px=16),
    )
    assert other.accounting["maps_computed"] == 3


def test_a_run_that_was_stopped_goes_on_where_it_stopped(manifest, tiny_backbone, probe, tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    some = manifest.select(manifest.frame["source_id"] == manifest.frame["source_id"].min())
    options = {"settings": EvaluateSettings(seen="keep", degrade=(CROP,)), "sliding": SLIDE}
    whole = evaluate(some, tiny_backbone, probe, tmp_path / "whole", **options)
    arguments = (some, tiny_backbone, probe, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, **options, progress=stop)
    with pytest.raises(OutputError, match="no finished evaluation"):
        read_evaluation(tmp_path / "out")
    half = tmp_path / "out" / "maps" / "00" / ".dlprobe-scratch-of-a-killed-process"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    again = evaluate(*arguments, **options)
    assert (again.accounting["maps_kept"], again.accounting["maps_computed"]) == (5, 2 * len(some) - 5)
    assert not half.exists()
    for name in ("results", "curves", "prior"):
        pd.testing.assert_frame_equal(again.tables[name], whole.tables[name])


def test_images_that_cannot_be_scored_are_counted_and_named(manifest, tiny_backbone, probe, tmp_path):
    rows = manifest.frame.groupby("variant").head(2).copy()
    shutil.copytree(manifest.root, tmp_path / "data")
    fakes = rows.query("variant == 'sp'")
    (tmp_path / "data" / fakes["path"].iloc[0]).write_bytes(b"no image")
    height, width = fakes[["height", "width"]].iloc[1]
    Image.new("L", (int(width), int(height))).save(tmp_path / "data" / fakes["mask"].iloc[1])
    whole = tmp_path / "data" / rows.query("variant == 'ae'")["path"].iloc[0]
    whole.write_bytes(whole.read_bytes()[:-200])
    result = evaluate(
        Manifest(rows, tmp_path / "data"),
        tiny_backbone,
        probe,
        tmp_path / "out",
        settings=EvaluateSettings(seen="keep"),
        sliding=SLIDE,
    )
    of = result.accounting
    emptied = int((rows["mask"] == fakes["mask"].iloc[1]).sum())
    assert (of["images"], of["rejected"], of["ignored"]) == (len(rows), 2, emptied)
    assert of["images"] == of["scored"] + of["rejected"] + of["ignored"]
    assert result.ignored == {"a fake without an inpainted pixel": emptied}
    reasons = dict(result.tables["rejects"][["path", "reason"]].to_numpy().tolist())
    assert "damaged" in reasons[fakes["path"].iloc[0]]
    only = Manifest(fakes.head(1), tmp_path / "data")
    with pytest.raises(DataError, match="not one of 1 images can be scored"):
        evaluate(only, tiny_backbone, probe, tmp_path / "none", settings=EvaluateSettings(seen="keep"), sliding=SLIDE)


def test_sources_that_trained_the_probe_are_left_out_and_said(manifest, tiny_backbone, probe, tmp_path):
    trained = set(probe.card["data"]["train_sources"])
    assert trained
    assert trained < set(manifest.frame["source_id"])
    result = evaluate(manifest, tiny_backbone, probe, tmp_path / "out", sliding=SLIDE)
    scored = result.tables["images"]
    assert not trained & set(scored["source_id"])
    assert result.ignored["of a source that trained or chose the probe"] == len(manifest) - len(scored)
    assert any(note.startswith("left out: ") for note in result.notes)
    with pytest.raises(DataError, match="--seen leave-out"):
        evaluate(manifest, tiny_backbone, probe, tmp_path / "x", settings=EvaluateSettings(seen="refuse"))
    own = manifest.select(manifest.frame["source_id"].isin(trained))
    with pytest.raises(DataError, match="--seen keep"):
        evaluate(own, tiny_backbone, probe, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_photographs_that_trained_the_probe_are_known_under_other_names(manifest, probe):
    renamed = {name: manifest.frame[name].replace("^(?=.)", "my ", regex=True) for name in ("source_id", "donor_id")}
    other = Manifest(manifest.frame.assign(**renamed), manifest.root)
    own, found = (choose_subjects(each, probe, EvaluateSettings(split="all")) for each in (manifest, other))
    assert len(found.frame) == len(own.frame) < len(manifest)
    assert set(found.frame["path"]) == set(own.frame["path"])
    words = "known by the bytes of a file alone: my "
    assert [note for note in found.notes if words in note]
    assert not [note for note in own.notes if words in note]
    with pytest.raises(DataError, match=words):
        choose_subjects(other, probe, EvaluateSettings(split="all", seen="refuse"))


def test_a_file_of_another_split_and_a_donor_tell_of_a_whole_group(manifest, probe, tmp_path):
    for number, name in enumerate("abcd"):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{name}.png")
    frame = pd.DataFrame(
        {
            "path": ["a.png", "b.png", "c.png", "d.png"],
            "variant": "real",
            "source_id": ["X", "X", "Q", "Z"],
            "donor_id": ["", "", "X", ""],
            "split": ["train", "test", "test", "test"],
        }
    )
    data = {"train_sources": ["P"], "train_files": [sha256_of_file(tmp_path / "a.png")[:16]]}
    seen = replace(probe, card={**probe.card, "data": data})
    found = choose_subjects(Manifest(frame, tmp_path), seen, EvaluateSettings())
    assert list(found.frame["path"]) == ["d.png"]
    assert "(known by the bytes of a file alone: X)" in found.notes[-1]
    silent = replace(probe, card={**probe.card, "data": {"train_files": []}})
    found = choose_subjects(Manifest(frame, tmp_path), silent, EvaluateSettings())
    assert "names no training sources" in found.notes[-1]


def test_a_card_without_lists_of_files_is_taken_by_its_names_and_lost_files_are_rejects(manifest, probe, tmp_path):
    lists = {name: value for name, value in probe.card["data"].items() if not name.endswith("_files")}
    assert len(lists) < len(probe.card["data"])
    bare = replace(probe, card={**probe.card, "data": lists})
    settings = EvaluateSettings(split="all")
    expected = choose_subjects(manifest, probe, settings)
    assert list(choose_subjects(manifest, bare, settings).frame["path"]) == list(expected.frame["path"])
    nowhere = Manifest(manifest.frame, tmp_path)
    assert list(choose_subjects(nowhere, probe, settings).frame["path"]) == list(expected.frame["path"])


def test_a_donor_that_trained_the_probe_takes_its_receivers_along(manifest, tiny_backbone, probe, tmp_path):
    trained = probe.card["data"]["train_sources"]
    free = manifest.frame[~manifest.frame["source_id"].isin(trained)]
    assert len(free)
    frame = free.assign(donor_id=["" if variant != "sp" else trained[0] for variant in free["variant"]])
    with pytest.raises(DataError, match=f"all {len(free)} images"):
        evaluate(Manifest(frame, manifest.root), tiny_backbone, probe, tmp_path / "x", sliding=SLIDE)


def test_a_card_without_sources_is_said(manifest, tiny_backbone, probe, tmp_path):
    bare = Probe(probe.weights, probe.bias, {**probe.card, "data": {}})
    some = manifest.select(manifest.frame.index < 4)
    result = evaluate(some, tiny_backbone, bare, tmp_path / "out", sliding=SLIDE)
    assert any("names no training sources" in note for note in result.notes)


def test_the_split_test_is_the_default_where_there_is_one(manifest, tiny_backbone, probe, tmp_path):
    sources = sorted(manifest.frame["source_id"].unique())
    split = manifest.frame["source_id"].map(lambda source: "test" if source in sources[:2] else "train")
    named = Manifest(manifest.frame.assign(split=split), manifest.root)
    settings = EvaluateSettings(seen="keep")
    result = evaluate(named, tiny_backbone, probe, tmp_path / "out", settings=settings, sliding=SLIDE)
    assert set(result.tables["images"]["source_id"]) == set(sources[:2])
    assert result.ignored == {"not in split test": int((split == "train").sum())}
    with pytest.raises(DataError, match="no image in split val"):
        evaluate(named, tiny_backbone, probe, tmp_path / "x", settings=EvaluateSettings(split="val"))


def test_marking_everything_stands_beside_every_score(found, manifest):
    results = found.tables["results"].set_index(["kind", "metric"])["everything"]
    shares = {
        kind: [truth_of(manifest, row).mean() for row in manifest.frame.query("variant == @kind").itertuples()]
        for kind in ("sp", "fr")
    }
    for kind, share in shares.items():
        p = np.array(share)
        assert results[kind, "dlprobe.original_px.iou_macro"] == pytest.approx(p.mean())
        assert results[kind, "dlprobe.original_px.ap_macro"] == pytest.approx(p.mean())
        assert results[kind, "tgif.original_px.f1"] == pytest.approx((2 * p / (1 + p)).mean())
        assert results[kind, "dlprobe.original_px.image_auc"] == 0.5
    assert results["real", "dlprobe.original_px.false_area"] == 1
    assert results["ae", "dlprobe.original_px.image_fpr"] == 1
    assert not found.tables["results"]["everything"].isna().any()


def test_kinds_hold_their_own_images_and_authentic_ones_stand_apart(found):
    table, images = found.tables["results"], found.tables["images"].query("chain == 'clean'")
    value = table.set_index(["kind", "metric"])["value"]
    own = images.query("variant == 'sp'")["dlprobe.original_px.iou"]
    assert value["sp", "dlprobe.original_px.iou_macro"] == pytest.approx(own.mean())
    fakes = images.query("variant in ('sp', 'fr')")["dlprobe.original_px.iou"]
    assert value["all", "dlprobe.original_px.iou_macro"] == pytest.approx(fakes.mean())
    for kind in ("real", "ae"):
        share = images.query("variant == @kind")["dlprobe.original_px.marked_share"]
        assert value[kind, "dlprobe.original_px.false_area"] == pytest.approx(share.mean())
        assert (kind, "dlprobe.original_px.iou_macro") not in value
    published = images.query("variant in ('sp', 'fr', 'real')")["imdlbenco.input_px.f1"]
    assert value["all", "imdlbenco.input_px.f1"] == pytest.approx(published.mean())
    assert set(table[table["oracle"]]["metric"].str.split(".").str[-1]) == {"oracle_best_f1_macro", "best_f1"}
    assert {name.split(" ")[0] for name in table["kind"]} == {"all", "sp", "fr", "real", "ae"}


def test_curves_are_paired_with_the_clean_images_by_source(found):
    images, curves = found.tables["images"], found.tables["curves"]
    assert set(curves["preset"]) == {JPEG, CROP}
    column = "dlprobe.original_px.iou"
    rows = images[images["variant"] == "sp"].pivot_table(index="path", columns="chain", values=column)
    chain = next(name for name in rows.columns if name.startswith("jpeg"))
    sources = images.drop_duplicates("path").set_index("path").loc[rows.index, "source_id"]
    expected = bootstrap_mean(source_means(rows[chain] - rows["clean"], sources), resamples=1999, bounds=(-1, 1))
    row = curves.query("variant == 'sp' and metric == @column and chain == @chain").iloc[0]
    assert (row["difference"], row["difference_low"]) == pytest.approx((expected.estimate, expected.low))
    assert row["value"] == pytest.approx(np.mean(list(source_means(rows[chain], sources).values())))
    clean = curves.query("degradation == 'clean'")
    assert (clean["difference"] == 0).all()
    assert (
        curves.query("variant == 'real'")["metric"].str.split(".").str[-1].isin(["marked_share", "image_flagged"])
    ).all()


def test_the_order_of_presets_and_images_changes_no_number(found, manifest, tiny_backbone, probe, tmp_path):
    noise = "noise:sigma=8"
    some = manifest.select(manifest.frame["source_id"] == manifest.frame["source_id"].min())
    curves = []
    for n, presets in enumerate([(noise, CROP), (CROP, noise)]):
        settings = EvaluateSettings(seen="keep", degrade=presets, protocols=("dlprobe",))
        images = evaluate(some, tiny_backbone, probe, tmp_path / str(n), settings=settings, sliding=SLIDE).tables[
            "images"
        ]
        curves.append(images.sort_values(["path", "chain"]).reset_index(drop=True))
    pd.testing.assert_frame_equal(*curves)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_region_maps_follow_each_degradation_without_the_image(preset):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 130, 3)).astype(np.uint8)
    regions = np.where(rng.random((90, 130)) < 0.2, Provenance.INPAINTED, Provenance.PRISTINE).astype(np.uint8)
    for condition in [*conditions([preset]), Condition("x", 1.0, "cutout:side=0.3|limit:side=64|noise:sigma=2")]:
        _, expected = degraded(pixels, regions, condition, 3, "sha")
        np.testing.assert_array_equal(moved_regions(regions, condition, 3, "sha"), expected)


def test_the_prior_is_what_the_photograph_shows_where_the_fake_will_be(found, manifest, folder):
    store = MapStore(folder / "maps", {}, 112)
    images = found.tables["images"].query("chain == 'clean'")
    rows = {"inside": [], "outside": [], "partner_iou": []}
    cut = own_threshold(found)
    for fake in images.query("variant == 'sp'").itertuples():
        real = images.query("variant == 'real' and source_id == @fake.source_id").iloc[0]
        scores, mask = store.read(folder / "maps" / real["map"]).original, truth_of(manifest, fake)
        marked = scores >= cut
        rows["inside"].append(scores[mask].mean())
        rows["outside"].append(scores[~mask].mean())
        rows["partner_iou"].append((marked & mask).sum() / (marked | mask).sum())
    prior = found.tables["prior"].set_index("kind").loc["sp"]
    for name, values in rows.items():
        assert prior[name] == pytest.approx(np.mean(values)), name
    own = images.query("variant == 'sp'")["dlprobe.original_px.iou"]
    assert prior["fake_iou"] == pytest.approx(own.mean())
    assert prior["gain"] == pytest.approx(own.mean() - np.mean(rows["partner_iou"]))
    assert prior["explains"] == (np.mean(rows["partner_iou"]) > own.mean() / 2)


def test_a_probe_that_only_knows_the_photograph_is_said_to_show_the_prior(manifest, tiny_backbone, probe, tmp_path):
    """The same file as photograph and as fake: the map cannot tell them apart."""
    real = manifest.frame.query("variant == 'real'").set_index("source_id")["path"]
    frame = manifest.frame[manifest.frame["variant"].isin(["real", "sp"])].copy()
    (tmp_path / "data").mkdir()
    for row in frame.query("variant == 'sp'").itertuples():
        shutil.copy(manifest.root / real[row.source_id], tmp_path / "data" / row.path.replace("/", "-"))
    shutil.copytree(manifest.root, tmp_path / "data", dirs_exist_ok=True)
    same = [p.replace("/", "-") if v == "sp" else p for p, v in zip(frame["path"], frame["variant"], strict=True)]
    result = evaluate(
        Manifest(frame.assign(path=same), tmp_path / "data"),
        tiny_backbone,
        probe,
        tmp_path / "out",
        settings=EvaluateSettings(seen="keep"),
        sliding=SLIDE,
    )
    prior = result.tables["prior"].set_index("kind").loc["sp"]
    assert prior["gain"] == 0
    assert prior["explains"]
    assert any(note.startswith("object prior: sp:") for note in result.notes)
    assert any("does not surely beat" in note for note in result.notes) == (
        not (result.tables["comparisons"]["low"] > 0).all()
    )


def test_each_step_of_post_processing_has_a_row_and_changes_nothing_else(found, manifest, folder):
    steps = found.tables["steps"].set_index(["step", "variant"])
    assert list(dict.fromkeys(found.tables["steps"]["step"])) == ["threshold", "guided", "holes", "small", "smooth"]
    results = found.tables["results"].set_index(["kind", "metric"])["value"]
    assert steps.loc[("threshold", "sp"), "value"] == pytest.approx(results["sp", "dlprobe.original_px.iou_macro"])
    assert steps.loc[("threshold", "real"), "value"] == pytest.approx(results["real", "dlprobe.original_px.false_area"])
    cut = own_threshold(found)
    post, values = EvaluateSettings().post, []
    for row in found.tables["images"].query("chain == 'clean' and variant == 'sp'").itertuples():
        scores = MapStore(folder / "maps", {}, 112).read(folder / "maps" / row.map).original
        masks = masks_by_step(scores, read_image(manifest.root / row.path), cut, post)
        truth = truth_of(manifest, row)
        values.append([(masks[step] & truth).sum() / (masks[step] | truth).sum() for step in ("guided", "holes")])
    guided, holes = np.mean(values, axis=0)
    assert steps.loc[("holes", "sp"), "value"] == pytest.approx(holes)
    assert steps.loc[("holes", "sp"), "change"] == pytest.approx(holes - guided)


def test_background_and_whole_images_are_counted_by_variant(found):
    images = found.tables["images"].query("chain == 'clean'")
    table = found.tables["background"].set_index("variant")
    assert set(table.index) == {"sp", "fr", "real", "ae"}
    sp = images.query("variant == 'sp'")
    fp, tn = sp["dlprobe.original_px.fp"], sp["dlprobe.original_px.tn"]
    assert table.loc["sp", "background"] == pytest.approx((fp / (fp + tn)).mean())
    assert table.loc["sp", "whole"] == (sp["dlprobe.original_px.marked_share"] >= SATURATED_AREA).mean()


def test_the_map_of_another_head_image_condition_or_setting_is_another_file(tiny_backbone, probe, tmp_path):
    other = Probe(probe.weights * 2, probe.bias, probe.card)
    relabelled = Probe(probe.weights, probe.bias, {**probe.card, "threshold": 0.123})
    clean, jpeg = Condition("clean", 0.0, "clean"), Condition("jpeg", 50.0, JPEG)

    def path(head=probe, slide=SLIDE, sha="a", condition=clean, seed=0):
        return MapStore(tmp_path, map_identity(tiny_backbone, head, slide), 112, seed).path(sha, condition)

    assert path() == path(head=relabelled) == path(seed=1)
    changed = [path(head=other), path(slide=SlidingSettings(stride_px=28)), path(sha="b"), path(condition=jpeg)]
    assert len({path(), *changed, path(condition=jpeg, seed=1)}) == 6


def test_bad_settings_and_folders_are_refused(manifest, tiny_backbone, probe, tmp_path):
    for wrong, words in (
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"split": "tset"}, "write one of train, val, test"),
        ({"seen": "ignore"}, "leave-out, refuse, keep"),
        ({"protocols": ()}, "missing or named twice"),
    ):
        with pytest.raises(DataError, match=words):
            EvaluateSettings(**wrong)
    with pytest.raises(RegistryError, match="tgif"):
        EvaluateSettings(protocols=("tgiff",))
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no evaluation"):
        evaluate(manifest, tiny_backbone, probe, tmp_path / "diary", settings=EvaluateSettings(seen="keep"))
    store = MapStore(tmp_path / "out" / "maps", {}, 112)
    with store.held(), pytest.raises(CacheError, match="another evaluation"):
        evaluate(manifest, tiny_backbone, probe, tmp_path / "out", settings=EvaluateSettings(seen="keep"))


def test_all_protocols_are_the_default():
    assert set(EvaluateSettings().protocols) == set(PROTOCOLS)
