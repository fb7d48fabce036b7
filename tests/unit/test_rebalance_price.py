"""What a move costs: the constant, and the memory that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import MemoryMode
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Observed
from incus_numa.policy.rebalance.price import Price, memory_of, price_of
from incus_numa.settings import RebalanceSettings
from tests.builders import GIB, instance, machine

LIMITS = RebalanceSettings(move_price=0.5, gib_price=0.25)
FOUR = machine(nodes=4)


def near(found: Price) -> tuple[float, int, float | None]:
    return round(found.value, 9), found.size_bytes, found.distance


def price(
    has: Mapping[int, int], before: str, after: str, mode: MemoryMode = MemoryMode.LOCAL, host: Machine = FOUR
) -> Price:
    one = instance("a", memory=mode)
    return price_of(host, one, has, NodeSet.parse(before), NodeSet.parse(after), LIMITS)


def test_no_memory_costs_the_constant_alone() -> None:
    assert price({}, "0", "1") == Price(0.5, 0, None)


def test_memory_on_one_node_follows_over_its_distance() -> None:
    assert near(price({0: 2 * GIB}, "0", "1")) == (1.1, 2 * GIB, 12.0)
    assert near(price({0: 2 * GIB}, "0", "2")) == (2.1, 2 * GIB, 32.0)


def test_what_is_on_the_new_node_already_does_not_follow() -> None:
    assert price({0: GIB, 1: 3 * GIB}, "0", "1").size_bytes == GIB


def test_bound_memory_follows_from_everywhere() -> None:
    assert price({0: GIB, 3: GIB}, "0", "1").size_bytes == 2 * GIB


def test_memory_that_is_not_bound_follows_only_from_nodes_that_are_left() -> None:
    assert price({0: GIB, 1: GIB, 3: GIB}, "0-1", "1-2").size_bytes == GIB
    assert price({0: GIB, 3: GIB}, "0", "1", MemoryMode.NONE).size_bytes == GIB


def test_memory_that_goes_to_several_nodes_goes_the_mean_way() -> None:
    assert price({0: GIB}, "0-1", "1-2", MemoryMode.BIND).distance == pytest.approx((12 + 32) / 2)


def test_memory_of_a_node_without_any_memory_to_go_to_stays() -> None:
    bare = replace(FOUR, nodes=(*FOUR.nodes[:1], replace(FOUR.nodes[1], memory_bytes=0), *FOUR.nodes[2:]))
    assert price({0: GIB}, "0", "1", host=bare) == Price(0.5, 0, None)


def test_unknown_distances_count_as_local_and_are_not_told() -> None:
    unknown = replace(FOUR, nodes=tuple(replace(node, distances={}) for node in FOUR.nodes))
    assert near(price({0: 2 * GIB}, "0", "2", host=unknown)) == (1.0, 2 * GIB, None)


def test_memory_that_was_not_read_is_the_demand_on_its_nodes() -> None:
    one = instance("a", memory_bytes=4 * GIB)
    assert memory_of(one, Observed(), NodeSet([1, 2])) == {1: 2 * GIB, 2: 2 * GIB}
    assert memory_of(one, Observed(memory={}), NodeSet([1, 2])) == {}
    assert memory_of(instance("b"), Observed(), NodeSet([1])) == {}
