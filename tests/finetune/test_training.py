"""The loop against `fit`, against autograd, and against itself when it is interrupted or its batches are cut up."""

import shutil

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from dlprobe.cache import open_cache
from dlprobe.data import Manifest, label_patches
from dlprobe.errors import ProbeError
from dlprobe.extraction import extract
from dlprobe.finetune import LiveWindows
from dlprobe.finetune import windows as live
from dlprobe.finetune.training import _Loop, _schedule, train
from dlprobe.probes.multihead.workers import Workers
from dlprobe.spec import sha256_of_file
from dlprobe.studies import FitSettings, finetune, fit_caches


@pytest.fixture
def run(few, vit, tmp_path):
    """Return a function that trains on the photographs of the training split, without validation."""

    def start(mode, settings, *, progress=None, name="state", **options):
        windows = LiveWindows(few, vit(**options), settings.plan)
        trained = (windows.windows["split"] == "train").to_numpy()
        chosen = train(
            windows,
            trained,
            mode,
            settings,
            validate=lambda _weights, _bias: (0.0, 0.0),
            state=tmp_path / name,
            progress=progress,
        )
        network = windows.backbone.network.state_dict()
        return chosen, {key: value.clone() for key, value in network.items()}

    return start


def apart(left, right):
    """Return the largest difference of two sets of weights, relative to the largest weight."""
    (one, first), (other, second) = left, right
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    scale = max(1.0, np.abs(one.weights).max())
    return max(largest, np.abs(one.weights - other.weights).max() / scale, abs(one.bias - other.bias) / scale)


class TestAgainstFit:
    """`--mode head` is `fit` without the cache, to rounding: the largest difference allowed is 1e-5 of a weight."""

    @pytest.fixture(params=[("last", None), ("best", 3)], ids=["last-epoch", "best-epoch"])
    def epochs(self, request):
        return request.param

    @pytest.fixture
    def fitted(self, few, vit, tmp_path, epochs):
        extract(few, vit(), tmp_path / "cache", stride_px=64, dtype="float32")
        settings = FitSettings(
            schemes=("autoencoded-pristine",),
            learning_rates=(0.3,),
            weight_decays=(1e-3,),
            epochs=3,
            patience=epochs[1],
            batch_windows=8,
            n_folds=0,
            baseline_patches=200,
        )
        return fit_caches([tmp_path / "cache"], tmp_path / "fit", settings=settings)

    @pytest.fixture
    def head(self, few, vit, tmp_path, brief, epochs):
        """Return a function that fine-tunes in mode head and gives the result and its one probe."""

        def start(**changes):
            settings = brief(**{"keep": epochs[0], "epochs": 3, **changes})
            found = finetune(few, vit(), tmp_path / "run", modes=("head",), settings=settings)
            return found, *found.probes.values()

        return start

    @staticmethod
    def distance(probe, fitted):
        (expected,) = (probe for name, probe in fitted.probes.items() if name.endswith("/dice-autoencoded-pristine"))
        scale = np.abs(expected.weights).max()
        return max(np.abs(probe.weights - expected.weights).max(), abs(probe.bias - expected.bias)[0]) / scale

    def test_weights_threshold_and_scores_are_the_same(self, head, fitted):
        result, probe = head()
        assert self.distance(probe, fitted) < 1e-5
        (expected,) = (each for name, each in fitted.probes.items() if name.endswith("/dice-autoencoded-pristine"))
        assert probe.threshold == pytest.approx(expected.threshold, abs=1e-3)
        columns = ["iou", "f1", "false_area", "ap", "iou_val", "iou_own"]
        ours, theirs = (
            found.images[found.images["method"] == "dice"].set_index("path").sort_index()[columns]
            for found in (result, fitted)
        )
        assert len(ours) == 4
        assert_allclose(ours, theirs, atol=1e-6)
        assert probe.require_model(expected.model_spec)

    @pytest.mark.parametrize("change", [{"scheme": "autoencoded-fake"}, {"seed": 1}, {"head_learning_rate": 0.33}])
    def test_another_label_seed_or_rate_would_be_seen(self, head, fitted, change):
        assert self.distance(head(**change)[1], fitted) > 1e-2

    def test_another_standardisation_would_be_seen(self, head, fitted, monkeypatch):
        def raw(*_):
            return live.GroupMoments(np.array([2.0]), np.zeros((1, 64)), np.full((1, 64), 2.0))

        monkeypatch.setattr(live.LiveWindows, "moments", raw)
        assert self.distance(head()[1], fitted) > 1e-2


def test_windows_are_those_of_a_cache_in_its_order(few, vit, tmp_path):
    settings = {"stride_px": 64, "views": 3, "degrade": "jpeg:quality=50", "seed": 3}
    backbone = vit()
    extract(few, backbone, tmp_path / "cache", dtype="float32", **settings)
    cache, windows = open_cache(tmp_path / "cache"), LiveWindows(few, backbone, settings)
    table = cache.windows
    shared = [name for name in table if name not in {"stored", "rejected"}]
    assert windows.windows[shared].equals(table[shared])
    assert set(table.loc[table["view"] > 0, "split"]) == {"train"}
    chosen = np.arange(len(cache)) % 3 != 1
    found = list(windows.blocks(chosen))
    expected = cache.read(np.flatnonzero(chosen))
    assert_allclose(np.concatenate([block.embeddings for block in found]), expected.embeddings, atol=1e-5)
    assert_allclose(np.concatenate([block.coverage for block in found]), expected.coverage)
    order = np.concatenate([block.windows for block in cache.blocks(seed=9, windows=chosen)])
    batches = list(windows.minibatches(chosen, 10, seed=9))
    assert np.concatenate([batch.windows for batch in batches]).tolist() == order.tolist()
    assert {len(batch.windows) for batch in batches[:-1]} == {10}
    late = list(windows.minibatches(chosen, 10, seed=9, first=2))
    assert [batch.windows.tolist() for batch in late] == [batch.windows.tolist() for batch in batches[2:]]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(late, batches[2:], strict=True))


def test_hashes_are_of_the_bytes_that_were_decoded(few, vit, tmp_path):
    root = shutil.copytree(few.root, tmp_path / "data")
    windows = LiveWindows(Manifest(few.frame, root), vit(), {"stride_px": 64})
    frame = windows.windows
    seen, other, *_ = sorted(frame["source_id"].unique())
    part = ((frame["source_id"] == seen) & (frame["variant"] == "real")).to_numpy()
    assert sum(len(block.windows) for block in windows.blocks(part)) == part.sum()
    (path,) = frame.loc[part, "path"].unique()
    rest = sorted(set(frame.loc[frame["source_id"] == seen, "path"]) - {path})
    assert len(rest) == 3
    was = sha256_of_file(root / path)
    (root / path).write_bytes(b"changed since")
    (root / rest[0]).unlink()
    expected = {path: was, **{name: sha256_of_file(root / name) for name in rest[1:]}}
    assert windows.image_hashes({seen}) == expected
    (root / path).unlink()
    assert windows.image_hashes({seen}) == expected
    assert windows.image_hashes(set()) == {path: was}
    assert set(windows.image_hashes({seen, other})) > set(expected)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_gradient_is_that_of_dice_by_autograd(few, vit, brief, mode):
    settings = brief(clip_norm=0.0, batch_windows=6)
    windows = LiveWindows(few, vit(), settings.plan)
    trained = (windows.windows["split"] == "train").to_numpy()
    loop = _Loop(windows, trained, mode, settings, windows.moments(trained))
    batch = next(iter(loop.batches()))
    folded = loop._columns.folded()
    weights, bias = folded.weights[0].clone(), folded.bias[0] - loop._centre @ folded.weights[0]
    logits = windows.backbone.embed(torch.from_numpy(batch.pixels)) @ weights + bias
    target = torch.from_numpy(label_patches(batch.coverage, "autoencoded-pristine"))
    p, t = torch.sigmoid(logits)[target >= 0].double(), target[target >= 0].double()
    loss = 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    moving = {name: value for name, value in windows.backbone.network.named_parameters() if value.requires_grad}
    expected = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
    with Workers(loop.device) as workers:
        loop.step(batch, workers)
    assert loop._loss == pytest.approx(loss.item(), abs=1e-6)
    assert 0 < t.sum() < len(t)
    compared = 0
    for value, gradient in zip(moving.values(), expected, strict=True):
        if gradient is not None:
            assert_allclose(value.grad, gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-9)
            compared += bool(gradient.abs().max() > 0)
    assert compared > 10


@pytest.mark.parametrize("mode", ["head", "lora", "full"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(run, brief, mode, stop):
    settings = brief(checkpoint_steps=3)
    whole = run(mode, settings, name="whole")

    def interrupt(done, planned):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mode, settings, progress=interrupt)
    seen = []
    again = run(mode, settings, progress=lambda done, planned: seen.append((done, planned)))
    assert seen[0] == (stop, 12)  # the steps before were not taken again
    assert seen[-1] == (12, 12)
    assert apart(whole, again) < 1e-6
    assert_allclose(whole[0].history, again[0].history)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_loss_is_that_of_the_whole_batch_however_it_is_cut(run, brief, mode):
    settings = brief(batch_windows=12)
    whole, cut, other = (
        run(mode, settings, name="whole", batch_size=12),
        run(mode, settings, name="cut", batch_size=5),
        run(mode, brief(batch_windows=5), name="other", batch_size=12),
    )
    assert apart(whole, cut) < 1e-4
    assert apart(whole, other) > 1e-2


def test_modes_move_what_they_say(run, brief, vit):
    before = vit().network.state_dict()
    for mode, moved in (("head", 0), ("full", len(before))):
        chosen, after = run(mode, brief(), name=mode)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert len(changed) in {moved, moved - 1}, mode
        assert (chosen.trainable > 0) == (mode == "full")
    chosen, after = run("lora", brief(), name="lora")
    assert chosen.trainable == 6 * 2 * 2 * (64 + 64)
    names = {name.replace(".q.base_layer", "").replace(".v.base_layer", ""): value for name, value in after.items()}
    assert all(torch.equal(before[name], names[name]) for name in before if "qkv" not in name)


def test_the_best_epoch_is_kept(few, vit, brief, tmp_path):
    scores = iter([0.2, 0.6, float("nan"), 0.4])
    settings = brief(epochs=4)
    windows = LiveWindows(few, vit(), settings.plan)
    trained = (windows.windows["split"] == "train").to_numpy()
    seen = []

    def validate(weights, bias):
        seen.append((weights, bias, windows.backbone.network.state_dict()["norm.weight"].clone()))
        return next(scores), 0.25

    chosen = train(windows, trained, "full", settings, validate=validate, state=tmp_path / "state")
    assert (chosen.epoch.epoch, chosen.epoch.f1, chosen.epoch.threshold) == (1, 0.6, 0.25)
    assert np.array_equal(chosen.weights, seen[1][0])
    assert torch.equal(windows.backbone.network.state_dict()["norm.weight"], seen[1][2])
    assert not torch.equal(seen[1][2], seen[3][2])


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    rates = [_schedule(step, 100, 0.1) for step in range(100)]
    assert_allclose(np.diff(rates[:10]), rates[0])
    assert rates[10] == max(rates) == 1
    assert_allclose(rates[10:], 0.5 * (1 + np.cos(np.pi * np.arange(90) / 90)))
    assert _schedule(0, 5, 0.0) == 1


def test_checkpoints_of_something_else_or_damaged_ones_are_told(run, brief, tmp_path):
    run("head", brief())
    with pytest.raises(ProbeError, match=r"state is of other windows, weights or settings; remove it, or"):
        run("head", brief(head_learning_rate=0.1))
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:200])
    with pytest.raises(ProbeError, match="state is damaged; remove it"):
        run("head", brief())


def test_a_loss_that_is_not_finite_ends_it(run, brief):
    with pytest.raises(ProbeError, match=r"loss is not finite at step \d+; choose smaller learning rates"):
        run("full", brief(learning_rate=1e30, warmup=0.0, clip_norm=0.0))


def test_bfloat16_trains_near_float32(run, brief):
    one, other = run("lora", brief(), name="a"), run("lora", brief(), name="b", precision="bfloat16")
    assert 0 < apart(one, other) < 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs 0; it must be 1 or more"),
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha"),
        ({"keep": "first"}, "write one of best, last"),
        ({"warmup": 1.0}, "warmup"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"objective": "mse"}, "dice-batch"),
    ],
)
def test_settings_out_of_range_are_refused(brief, change, words):
    with pytest.raises(ProbeError, match=words):
        brief(**change)
