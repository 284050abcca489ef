"""The one-pass trainer against a plain two-pass transcription in float64 NumPy."""

from dataclasses import replace

import numpy as np
import pytest

from dlprobe.errors import ProbeError
from dlprobe.probes import GroupMoments, HeadBatch, HeadSpec, default_grid, fit_heads
from dlprobe.probes.multihead import panels, poisson_weights

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


def dice_and_slope(p, t, m, smooth):
    overlap, predicted, positives = (m * t * p).sum(), (m * p).sum(), (m * t).sum()
    numerator, denominator = 2 * overlap + smooth, predicted + positives + smooth
    slope = m * (numerator / denominator**2 - 2 * t / denominator)
    return 1 - numerator / denominator, slope * p * (1 - p)


def reference(data, head, epochs, window_weights):
    """Standardise the whole training set first, then train this head alone, one batch after the other."""
    inside = np.isin(data.groups, head.train_groups)
    rows = data.embeddings[inside].reshape(-1, WIDTH).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    inverse = np.array([1 / d if d > 0 else 0.0 for d in deviation])
    weights = np.random.default_rng(head.seed).normal(0, 0.01, WIDTH)
    bias, velocity, bias_velocity, step, losses = 0.0, np.zeros(WIDTH), 0.0, 0, []
    for epoch in range(epochs):
        total = 0.0
        for batch in data.batches(epoch):
            z = (batch.embeddings.astype(np.float64) - mean) * inverse
            target = batch.targets[head.scheme].astype(np.float64)
            known = (target >= 0).astype(np.float64)
            target = np.where(known > 0, target, 0)
            times = np.isin(batch.groups, head.train_groups).astype(np.float64)
            if window_weights == "poisson":
                times = times * poisson_weights(head.seed, batch.windows)
            importance = known * (1 + (head.positive_weight - 1) * target)
            share = np.where(importance > 0, head.positive_weight * target * known / np.maximum(importance, 1e-30), 0)
            p = 1 / (1 + np.exp(-(z @ weights + bias)))
            slope = np.zeros_like(p)
            if head.objective == "dice-batch":
                loss, slope = dice_and_slope(p, share, importance * times[:, None], 1e-5)
            else:
                loss = 0.0
                for i in range(len(p)):
                    one, each = dice_and_slope(p[i], share[i], importance[i], 1e-5)
                    loss += one * times[i] / max(times.sum(), 1)
                    slope[i] = each * times[i] / max(times.sum(), 1)
            total += loss
            gradient = np.einsum("np,npd->d", slope, z) + head.weight_decay * weights
            fall = 0.5 * (1 + np.cos(np.pi * step / (epochs * STEPS))) if head.schedule == "cosine" else 1.0
            velocity = head.momentum * velocity + gradient
            bias_velocity = head.momentum * bias_velocity + slope.sum()
            weights = weights - head.learning_rate * fall * velocity
            bias = bias - head.learning_rate * fall * bias_velocity
            step += 1
        losses.append(total / STEPS)
    raw = weights * inverse
    return raw, bias - raw @ mean, losses


HEADS = [
    HeadSpec(scheme="hard", learning_rate=0.5, train_groups=(0, 1)),
    HeadSpec(scheme="hard", learning_rate=2.0, weight_decay=0.01, train_groups=(1, 2), seed=3),
    HeadSpec(scheme="soft", learning_rate=1.0, train_groups=(0, 2), seed=1, momentum=0.5),
    HeadSpec(scheme="soft", learning_rate=0.3, train_groups=(0, 1, 2), positive_weight=4.0, schedule="constant"),
    HeadSpec(scheme="hard", learning_rate=0.7, objective="dice-window", train_groups=(0,), positive_weight=2.0),
    HeadSpec(scheme="soft", learning_rate=0.7, objective="dice-window", train_groups=(1,), seed=9),
]


@pytest.mark.parametrize("window_weights", ["poisson", "ones"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_head_agrees_with_a_two_pass_reference(window_weights, dtype):
    data = Data(dtype=dtype)
    for found in data.fit(HEADS, epochs=4, window_weights=window_weights):
        weights, bias, losses = reference(data, found.spec, 4, window_weights)
        np.testing.assert_allclose(found.weights, weights, rtol=2e-4, atol=1e-5 * np.abs(weights).max())
        assert found.bias == pytest.approx(bias, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(found.loss_by_epoch, losses, rtol=1e-4)
        assert found.steps == 4 * STEPS
        assert found.flag is None


def test_one_head_among_five_hundred_is_the_same_as_alone():
    data = Data()
    grid = default_grid(["hard", "soft"], [(0, 1), (1, 2), (0, 2)], seeds=(0, 1), weight_decays=(0.0, 1e-4, 1e-3))
    assert len(grid) >= 450
    chosen = grid[217]
    together = {found.spec: found for found in data.fit(grid)}
    (alone,) = data.fit([chosen])
    assert set(together) == set(grid)
    np.testing.assert_allclose(together[chosen].weights, alone.weights, rtol=1e-4, atol=1e-6)
    assert together[chosen].bias == pytest.approx(alone.bias, rel=1e-4, abs=1e-5)


def test_results_stand_in_the_order_of_the_heads_and_panels_do_not_matter(monkeypatch):
    data = Data()
    whole = data.fit(HEADS)
    assert [found.spec for found in whole] == HEADS
    monkeypatch.setattr(panels.cut_panels, "__defaults__", (2,))
    monkeypatch.setattr(panels, "TILE_NUMBERS", 1)
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


def test_read_only_embeddings_and_progress():
    data = Data()
    data.embeddings.setflags(write=False)
    calls = []
    data.fit(HEADS, epochs=2, progress=lambda done, planned: calls.append((done, planned)))
    assert calls == [(i + 1, 2 * STEPS) for i in range(2 * STEPS)]


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
        ({"steps_per_epoch": STEPS + 1}, f"has {STEPS} batches, {STEPS + 1} were planned"),
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
