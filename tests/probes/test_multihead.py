"""The one-pass trainer: what it promises of heads, batches, devices, checkpoints and errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlprobe.errors import OutputError, ProbeError
from dlprobe.probes import GroupMoments, HeadBatch, HeadSpec, default_grid, fit_heads
from dlprobe.probes.multihead import objectives, panels, poisson_weights

WINDOWS, PATCHES, WIDTH, BATCH = 18, 30, 12, 6
STEPS = WINDOWS // BATCH


class Data:
    """A small problem whose features differ in mean and scale, with one that is constant."""

    def __init__(self, seed=0, dtype=np.float16):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(WINDOWS, PATCHES, WIDTH))
        direction = rng.normal(size=WIDTH)
        direction[5] = 0
        positive = noise @ direction > 2
        noise[..., 5] = 0
        self.embeddings = (noise * rng.uniform(0.2, 5, WIDTH) + rng.normal(0, 4, WIDTH)).astype(dtype)
        self.targets = {
            "hard": np.where(rng.random(positive.shape) < 0.1, -1, positive).astype(np.int8),
            "soft": np.where(rng.random(positive.shape) < 0.1, np.nan, 0.9 * positive + 0.05).astype(np.float32),
        }
        self.groups = np.arange(WINDOWS) % 4 - 1  # group -1 trains none
        self.windows = 1000 + np.arange(WINDOWS)
        self.moments = GroupMoments.of(self.embeddings, self.groups)

    def batches(self, epoch):
        order = np.random.default_rng(epoch).permutation(WINDOWS)
        for start in range(0, WINDOWS, BATCH):
            rows = order[start : start + BATCH]
            targets = {scheme: each[rows] for scheme, each in self.targets.items()}
            yield HeadBatch(self.embeddings[rows], targets, self.groups[rows], self.windows[rows])

    def fit(self, heads, epochs=3, **options):
        return fit_heads(self.batches, heads, self.moments, epochs=epochs, steps_per_epoch=STEPS, **options)


HEADS = [
    HeadSpec(scheme="hard", learning_rate=0.5, train_groups=(0, 1)),
    HeadSpec(scheme="hard", learning_rate=2.0, weight_decay=0.01, train_groups=(1, 2), seed=3),
    HeadSpec(scheme="soft", learning_rate=1.0, train_groups=(0, 2), seed=1, momentum=0.5),
    HeadSpec(scheme="soft", learning_rate=0.3, train_groups=(0, 1, 2), positive_weight=4.0, schedule="constant"),
    HeadSpec(scheme="hard", learning_rate=0.7, objective="dice-window", train_groups=(0,), positive_weight=2.0),
    HeadSpec(scheme="soft", learning_rate=0.7, objective="dice-window", train_groups=(1,), seed=9),
]


def test_one_head_among_five_hundred_is_the_same_as_alone():
    data = Data()
    folds = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]
    grid = default_grid(["hard", "soft"], folds, weight_decays=(0.0, 1e-4, 1e-3))[:500]
    assert len(grid) == 500
    together = {found.spec: found for found in data.fit(grid)}
    assert set(together) == set(grid)
    for chosen in (grid[0], grid[217], grid[499]):
        (alone,) = data.fit([chosen])
        np.testing.assert_allclose(together[chosen].weights, alone.weights, rtol=1e-4, atol=1e-6)
        assert together[chosen].bias == pytest.approx(alone.bias, rel=1e-4, abs=1e-5)


def test_results_stand_in_the_order_of_the_heads_and_panels_do_not_matter(monkeypatch):
    data = Data()
    whole = data.fit(HEADS)
    assert [found.spec for found in whole] == HEADS
    monkeypatch.setattr(panels, "PANEL_COLUMNS", 2)
    monkeypatch.setattr(objectives, "TILE_NUMBERS", 1)
    for a, b in zip(whole, data.fit(HEADS), strict=True):
        np.testing.assert_allclose(a.weights, b.weights, rtol=1e-4, atol=1e-6)


def test_bfloat16_stays_near_float32():
    data = Data()
    for exact, coarse in zip(data.fit(HEADS), data.fit(HEADS, precision="bfloat16"), strict=True):
        cosine = exact.weights @ coarse.weights / np.linalg.norm(exact.weights) / np.linalg.norm(coarse.weights)
        assert cosine > 0.995
        assert exact.weights.tolist() != coarse.weights.tolist()


def test_equal_settings_give_equal_bytes_and_seeds_differ():
    data = Data()
    first, again = data.fit(HEADS), data.fit(HEADS)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(first, again, strict=True))
    a, b = data.fit([HEADS[0], replace(HEADS[0], seed=1)])
    assert not np.allclose(a.weights, b.weights, rtol=0.05)


def test_windows_of_other_groups_do_not_matter():
    data, other = Data(), Data()
    head = [replace(HEADS[0], train_groups=(1,))]
    other.embeddings[other.groups != 1] *= 2
    for scheme in other.targets:
        other.targets[scheme][other.groups != 1] = 0
    other.moments = GroupMoments.of(other.embeddings, other.groups)
    expected = data.fit(head)[0].weights
    np.testing.assert_allclose(other.fit(head)[0].weights, expected, rtol=1e-3, atol=1e-6)
    other.embeddings[other.groups == -1] = np.nan
    np.testing.assert_allclose(other.fit(head)[0].weights, expected, rtol=1e-3, atol=1e-6)


def test_a_batch_without_training_windows_moves_nothing():
    data = Data()
    away = [batch._replace(groups=np.full(BATCH, -1)) for batch in data.batches(0)]
    initial = np.random.default_rng(0).normal(0, 0.01, WIDTH) * data.moments.standardisation((0, 1)).inverse
    (found,) = fit_heads(lambda epoch: away, HEADS[:1], data.moments, epochs=1, steps_per_epoch=STEPS)
    np.testing.assert_allclose(found.weights, initial, rtol=1e-6)
    assert "all patches" in found.flag


def test_a_constant_feature_gets_no_weight():
    data = Data()
    data.embeddings[:, :, 7] = np.where(data.groups == 1, 3.0, data.embeddings[:, 0, 7])[:, None]  # in one group only
    data.moments = GroupMoments.of(data.embeddings, data.groups)
    everywhere, there, elsewhere = data.fit([HEADS[0], replace(HEADS[0], train_groups=(1,)), HEADS[2]])
    assert everywhere.weights[5] == there.weights[5] == there.weights[7] == 0
    assert elsewhere.weights[7] != 0
    assert np.isfinite(there.bias)


def test_a_head_that_diverges_is_flagged_and_leaves_the_others_alone():
    data = Data()
    wild = HeadSpec(scheme="hard", learning_rate=1e38, weight_decay=1e3, train_groups=(0, 1))
    healthy, diverged = data.fit([HEADS[0], wild], epochs=6)
    assert "not finite" in diverged.flag
    assert healthy.flag is None
    np.testing.assert_allclose(healthy.weights, data.fit([HEADS[0]], epochs=6)[0].weights, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("target", "reason"), [(0, "no positive"), (1, "no negative"), (-1, "all patches")])
def test_a_scheme_that_leaves_one_class_or_none_is_flagged(target, reason):
    data = Data()
    data.targets["hard"][:] = target
    hard, soft = data.fit([HEADS[0], HEADS[2]])
    assert reason in hard.flag
    assert np.isfinite(hard.weights).all()
    assert soft.flag is None


def test_layers_are_slices_of_the_features():
    data = Data()
    lower = replace(HEADS[0], layer=3)
    (found,) = data.fit([lower], layers={3: slice(0, 6), 7: slice(6, 12)})
    assert (found.weights[6:] == 0).all()
    narrow = Data()
    narrow.embeddings = narrow.embeddings[..., :6].copy()
    narrow.moments = GroupMoments.of(narrow.embeddings, narrow.groups)
    (alone,) = narrow.fit([HEADS[0]])
    # the initial weights are drawn for all features, the first six of which are the same numbers
    np.testing.assert_allclose(found.weights[:6], alone.weights, rtol=1e-4, atol=1e-6)
    with pytest.raises(ProbeError, match="wants layer 5; these embeddings have -1, 3"):
        data.fit([replace(lower, layer=5)], layers={3: slice(0, 6)})


def test_three_classes_learn_three_rows_beside_the_others():
    data = Data()
    score = np.where(np.isnan(data.targets["soft"]), -1, data.targets["soft"] > 0.5)
    lower = data.embeddings[..., 1] > np.median(data.embeddings[..., 1])
    data.targets["three-class"] = np.where(score > 0, 2, np.where(score < 0, -1, lower)).astype(np.int8)
    three = [
        HeadSpec(scheme="three-class", objective=objective, learning_rate=2.0, train_groups=(0, 1))
        for objective in ("dice-batch", "dice-window")
    ]
    first, second, third = data.fit([three[0], HEADS[0], three[1]], epochs=30)
    np.testing.assert_allclose(second.weights, data.fit([HEADS[0]], epochs=30)[0].weights, rtol=1e-3, atol=1e-4)
    assert first.flag is third.flag is None
    assert third.lone_share is not None
    for found in (first, third):
        assert found.weights.shape == (3, WIDTH)
        assert found.bias.shape == (3,)
        logits = data.embeddings.astype(float) @ found.weights.T + found.bias
        known = (data.targets["three-class"] >= 0) & np.isin(data.groups, (0, 1))[:, None]
        assert (logits.argmax(axis=-1) == data.targets["three-class"])[known].mean() > 0.85
    data.targets["three-class"][data.targets["three-class"] == 1] = 0
    assert "no patch of class 1" in data.fit([three[0]])[0].flag


def test_the_share_of_gradient_from_windows_without_positives_is_told_for_dice_window_only():
    data = Data()
    data.targets["hard"][::2] = np.minimum(data.targets["hard"][::2], 0)
    heads = [replace(HEADS[4], train_groups=(0, 1, 2)), replace(HEADS[0], train_groups=(0, 1, 2))]
    window, batch = data.fit(heads)
    assert 0 <= window.lone_share < 1e-3
    assert batch.lone_share is None
    data.targets["hard"] = np.minimum(data.targets["hard"], 0)
    assert data.fit(heads)[0].lone_share == 1


def test_watched_heads_keep_their_best_epoch_and_stop_when_they_rest():
    data = Data()
    scores = {0: [0.1, 0.5, 0.4, 0.3], 1: [0.1, 0.2, 0.3, 0.4], 2: [0.9, np.nan, 0.2, 0.1]}
    seen = []

    def watch(epoch, running):
        seen.append([HEADS.index(head.spec) for head in running])
        return [scores[i][epoch] for i in seen[-1]]

    found = data.fit(HEADS[:3], epochs=4, watch=watch, patience=2)
    # in the order of columns: heads 0 and 1 learn "hard", head 2 "soft"
    assert seen == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1]]
    assert [head.epoch for head in found] == [1, 3, 0]
    assert [head.score for head in found] == [0.5, 0.4, 0.9]
    assert [len(head.loss_by_epoch) for head in found] == [4, 4, 3]
    assert [head.steps for head in found] == [2 * STEPS, 4 * STEPS, STEPS]
    last = data.fit(HEADS[:3], epochs=4)
    np.testing.assert_allclose(found[1].weights, last[1].weights, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found[0].weights, last[0].weights, rtol=1e-3)
    with pytest.raises(ProbeError, match="watch returned 1 scores for 3 heads"):
        data.fit(HEADS[:3], watch=lambda epoch, running: [0.0])


@pytest.mark.parametrize("stop", [False, True])
def test_a_fit_that_was_cut_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path, stop):
    data = Data()
    watch = (lambda epoch, running: [-epoch if head.spec == HEADS[2] else epoch for head in running]) if stop else None
    options = {"epochs": 4, "watch": watch, "patience": 1 if stop else None}
    whole = data.fit(HEADS, **options)
    path = tmp_path / "fit.safetensors"

    def cut(done, planned):
        if done == 2 * STEPS + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.fit(HEADS, checkpoint=path, progress=cut, **options)
    calls = []
    resumed = data.fit(HEADS, checkpoint=path, progress=lambda done, planned: calls.append(done), **options)
    assert calls[0] == 2 * STEPS + 1
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)
        assert (a.bias, a.loss_by_epoch, a.epoch, a.flag) == (b.bias, b.loss_by_epoch, b.epoch, b.flag)
    again = data.fit(HEADS, checkpoint=path, progress=lambda done, planned: calls.append("no"), **options)
    assert "no" not in calls
    np.testing.assert_array_equal(again[0].weights, whole[0].weights)
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_fit_and_a_damaged_one_are_refused(tmp_path):
    data, path = Data(), tmp_path / "fit.safetensors"
    data.fit(HEADS, checkpoint=path)
    with pytest.raises(ProbeError, match="other heads, settings or embeddings"):
        data.fit(HEADS[1:], checkpoint=path)
    with pytest.raises(ProbeError, match="other heads, settings or embeddings"):
        Data(seed=1).fit(HEADS, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProbeError, match="no whole checkpoint"):
        data.fit(HEADS, checkpoint=path)
    with pytest.raises(OutputError, match="its folder does not exist"):
        data.fit(HEADS, checkpoint=tmp_path / "no" / "fit")


def test_read_only_embeddings_and_progress():
    data = Data()
    data.embeddings.setflags(write=False)
    calls = []
    data.fit(HEADS, epochs=2, progress=lambda done, planned: calls.append((done, planned)))
    assert calls == [(i + 1, 2 * STEPS) for i in range(2 * STEPS)]


def counted(data, reads):
    """Batches that are read on demand; what is read of each epoch is noted."""

    def lazily(epoch):
        for batch in data.batches(epoch):

            def embeddings(places, batch=batch):
                reads.setdefault(epoch, []).extend(batch.windows[places].tolist())
                return batch.embeddings[places]

            def targets(places, batch=batch):
                assert len(places)
                return {scheme: each[places] for scheme, each in batch.targets.items()}

            yield batch._replace(embeddings=embeddings, targets=targets)

    return lazily


ONE_WINDOW = PATCHES * (2 * WIDTH + 1 + 4)  # bytes of float16 embeddings, int8 and float32 targets


@pytest.mark.parametrize("room", [WINDOWS, 7, 0])
def test_only_windows_that_are_not_on_the_device_are_read_and_nothing_changes(room):
    data = Data()
    training = data.windows[data.groups >= 0].tolist()
    room = min(room, len(training))
    expected = data.fit(HEADS, epochs=4, window_weights="ones")
    reads = {}
    options = {"epochs": 4, "steps_per_epoch": STEPS, "window_weights": "ones"}
    options["resident_bytes"] = room * ONE_WINDOW + 5
    found = fit_heads(counted(data, reads), HEADS, data.moments, **options)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)
    assert sorted(reads[0]) == training
    for epoch in (1, 2, 3):
        assert len(reads.get(epoch, [])) == len(training) - room
        assert set(reads.get(epoch, [])).isdisjoint(reads[0][:room])
    at_hand = fit_heads(data.batches, HEADS, data.moments, **options)
    for a, b in zip(expected, at_hand, strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)


def test_batches_that_are_read_on_demand_are_read_one_ahead_of_the_step_and_checked():
    data, order = Data(), []

    def batches(epoch):
        for i, batch in enumerate(data.batches(epoch)):
            yield batch._replace(
                embeddings=lambda places, i=i, batch=batch: order.append(i) or batch.embeddings[places]
            )

    progress = []
    options = {"epochs": 1, "steps_per_epoch": STEPS}
    fit_heads(batches, HEADS, data.moments, progress=lambda done, _: progress.append((done, max(order))), **options)
    assert [done for done, _ in progress] == [1, 2, 3]
    assert order == [0, 1, 2]
    for wrong, message in [
        (data.embeddings[:3], "a batch of 6 windows has embeddings of shape"),
        (data.embeddings[:6, :, :5], "width 5, its moments have width 12"),
    ]:
        batch = next(data.batches(0))
        batch = batch._replace(embeddings=lambda places, wrong=wrong: wrong, groups=np.zeros(6, np.int64))
        options = {"epochs": 1, "steps_per_epoch": 1, "window_weights": "ones"}
        with pytest.raises(ProbeError, match=message):
            fit_heads(lambda epoch, batch=batch: [batch], HEADS, data.moments, **options)


@pytest.mark.gpu
def test_a_device_gives_what_the_processor_gives():
    data = Data()
    for exact, found in zip(data.fit(HEADS), data.fit(HEADS, device="cuda"), strict=True):
        np.testing.assert_allclose(found.weights, exact.weights, rtol=1e-3, atol=1e-5)


def test_an_absent_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ProbeError, match="shows no CUDA device"):
        Data().fit(HEADS, device="cuda")


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", ""])
def test_a_device_that_heads_are_not_fitted_on_is_refused_in_one_line(name):
    with pytest.raises(ProbeError, match="write cpu, cuda or cuda:N") as caught:
        Data().fit(HEADS, device=name)
    assert "\n" not in str(caught.value)


def test_poisson_weights_are_poisson_and_depend_on_the_window_alone():
    windows = np.arange(200_000)
    drawn = poisson_weights(0, windows)
    assert drawn.mean() == pytest.approx(1, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.02)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.005)
    np.testing.assert_array_equal(poisson_weights(0, windows[::-7]), drawn[::-7])
    for seed in (1, 2, 1000):
        assert abs(np.corrcoef(drawn, poisson_weights(seed, windows))[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": []}, "no heads"),
        ({"heads": [HEADS[0], HEADS[0]]}, "two heads are alike"),
        ({"heads": [replace(HEADS[0], train_groups=(0, 3))]}, "no moments"),
        ({"heads": [replace(HEADS[0], scheme="other")]}, "no targets for scheme 'other'; it has hard, soft"),
        ({"epochs": 0}, "0 steps"),
        ({"steps_per_epoch": STEPS + 1}, f"has {STEPS} batches, {STEPS + 1} planned"),
        ({"steps_per_epoch": STEPS - 1}, f"has more than {STEPS - 1} planned"),
        ({"patience": 2}, "patience needs watch"),
        ({"precision": "float8"}, "no precision 'float8'"),
    ],
)
def test_bad_requests_are_refused_in_one_line(change, message):
    data = Data()
    options = {"heads": HEADS, "epochs": 1, "steps_per_epoch": STEPS, **change}
    with pytest.raises(ProbeError, match=message) as caught:
        fit_heads(data.batches, moments=data.moments, **options)
    assert "\n" not in str(caught.value)


def test_embeddings_that_are_not_finite_are_refused():
    data = Data()
    data.embeddings[5, 0, 2] = np.nan
    data.moments = GroupMoments.of(data.embeddings, data.groups)
    with pytest.raises(ProbeError, match=r"1 features of groups .* not finite"):
        data.fit(HEADS)


def test_batches_whose_arrays_do_not_fit_are_refused():
    data = Data()
    batch = next(data.batches(0))
    wrong = [
        (batch._replace(embeddings=batch.embeddings[..., :5]), "width 12"),
        (batch._replace(groups=batch.groups[:2]), "groups of shape"),
        (batch._replace(targets={"hard": batch.targets["hard"][:, :3]}), "targets of scheme 'hard'"),
    ]
    for each, message in wrong:
        with pytest.raises(ProbeError, match=message):
            fit_heads(lambda epoch, each=each: [each], HEADS[:1], data.moments, epochs=1, steps_per_epoch=1)
