"""Heads as keys, and the grid."""

import pytest

from dlprobe.errors import ProbeError
from dlprobe.probes import HeadSpec, default_grid


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
        ("train_groups", ()),
        ("train_groups", (1, 0)),
        ("train_groups", (1, 1)),
        ("train_groups", (-1, 0)),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ProbeError, match=f"a head has {field}"):
        HeadSpec(**{"scheme": "a", "learning_rate": 1.0, field: value})
