"""What a binding has moved is what left other nodes and came to its own ones."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.carried import count_moved


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        ({0: 50, 2: 10}, {0: 0, 2: 60}, 50),
        ({0: 50, 1: 5, 2: 10}, {0: 4, 2: 61}, 51),
        # What is new on its nodes did not move there.
        ({0: 50, 2: 10}, {0: 0, 2: 90}, 50),
        # What was freed elsewhere did not move.
        ({0: 50, 2: 10}, {0: 0, 2: 30}, 20),
        ({0: 50, 2: 10}, {0: 0, 2: 5}, 0),
        ({0: 50, 2: 10}, {0: 50, 2: 10}, 0),
        ({0: 50, 2: 10}, {0: 70, 2: 10}, 0),
        # The instance is gone.
        ({0: 50, 2: 10}, {}, 0),
    ],
)
def test_what_left_other_nodes_and_came_to_the_own_ones_has_moved(
    before: dict[int, int], now: dict[int, int], moved: int
) -> None:
    assert count_moved(before, now, NodeSet([2])) == moved
