"""Blocks of machines that left a Ray cluster, without one: what was recorded is not written again."""

from collections import deque
from types import SimpleNamespace

import pytest

from dlprobe.errors import CacheError
from dlprobe.extraction.runners import cluster


class Seat:
    def __init__(self, group, *blocks):
        self.group, self.hand, self.ended = group, dict(enumerate(blocks)), False

    def end(self):
        self.ended = True

    def give(self, block):
        self.hand[f"task {block}"] = block


@pytest.fixture
def pool(monkeypatch):
    """Return a pool of two seats, of which the first's machine is lost; of its blocks 4 was recorded."""
    monkeypatch.setattr(cluster, "_held", lambda groups: [group for group in groups if group != "lost"])
    found = cluster._Pool.__new__(cluster._Pool)
    found._writer = SimpleNamespace(missing=[5, 6, 7, 8], path="cache")
    found._suspects = set()
    found._seats = [Seat("lost", 4, 5), Seat("held", 6)]
    return found


def test_blocks_of_a_lost_machine_go_back_unless_they_are_recorded(pool):
    lost, held = pool._seats
    waiting = deque([7, 8])
    assert pool._clear_lost(waiting) == [4]
    assert lost.ended
    assert pool._seats == [held]
    assert set(held.hand.values()) == {5, 6}
    assert list(waiting) == [7, 8]


def test_nobody_left_is_one_line(pool):
    del pool._seats[1]
    with pytest.raises(CacheError, match=r"all workers have left .* cache will go on"):
        pool._clear_lost(deque())
