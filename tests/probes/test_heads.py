"""Heads as keys, and the grid."""

from math import inf, nan

import pytest

from dlprobe.errors import ProbeError
from dlprobe.probes import HeadSpec, default_grid, edge_of_grid


def test_the_default_grid_has_13_rates_and_3_decays_for_each_scheme_and_fold():
    grid = default_grid(["a", "b", "c"], [(1, 2), (0, 2), (0, 1)])
    assert len(grid) == len(set(grid)) == 3 * 3 * 13 * 3
    assert {head.train_groups for head in grid} == {(1, 2), (0, 2), (0, 1)}
    assert len({head.learning_rate for head in grid}) == 13
    assert len({head.weight_decay for head in grid}) == 3


def test_rates_that_agree_to_five_decimals_are_different_heads():
    """DINOv2 formats them into a string key and loses one."""
    a = HeadSpec(scheme="a", learning_rate=1e-6)
    b = HeadSpec(scheme="a", learning_rate=2e-6)
    assert len({a, b}) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "mse"),
        ("schedule", "linear"),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("momentum", 1.0),
        ("seed", -1),
        ("positive_weight", 0.0),
        *((field, value) for field in ("learning_rate", "weight_decay", "positive_weight") for value in (inf, nan)),
        ("train_groups", ()),
        ("train_groups", (1, 0)),
        ("train_groups", (1, 1)),
        ("train_groups", (-1, 0)),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ProbeError, match=f"a head has {field}"):
        HeadSpec(**{"scheme": "a", "learning_rate": 1.0, field: value})


def test_three_classes_have_three_logits_and_dice_only():
    assert HeadSpec(scheme="three-class", learning_rate=1.0).n_logits == 3
    assert HeadSpec(scheme="autoencoded-pristine", learning_rate=1.0).n_logits == 1
    with pytest.raises(ProbeError, match="objective 'bce' on three classes; write dice-batch or dice-window"):
        HeadSpec(scheme="three-class", learning_rate=1.0, objective="bce")
    with pytest.raises(ProbeError, match="positive_weight 2 on three classes"):
        HeadSpec(scheme="three-class", learning_rate=1.0, positive_weight=2)


def test_a_choice_at_the_edge_of_the_grid_is_told():
    grid = default_grid(["a"], learning_rates=(0.1, 1.0, 10.0), weight_decays=(0.0, 1e-4, 1e-3))
    grid += default_grid(["b"], learning_rates=(100.0,))
    at = {(head.learning_rate, head.weight_decay): edge_of_grid(head, grid) for head in grid if head.scheme == "a"}
    assert at[1.0, 1e-4] == at[1.0, 0.0] == []
    assert at[10.0, 0.0] == ["learning_rate 10 is the largest of the grid (0.1 to 10); widen it"]
    assert [line.split()[0] for line in at[0.1, 1e-3]] == ["learning_rate", "weight_decay"]
    assert edge_of_grid(grid[-1], grid[-1:]) == []
