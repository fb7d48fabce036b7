"""Plans of many: better than one after the other, the same for every order, and held by memory, ties and policies."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, SMALL_PAGE, decided, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()
TWO = machine(nodes=2)


def several(*vcpus: int, **more: Any) -> list[Instance]:
    return [instance(f"{index}", vcpus=count, **more) for index, count in enumerate(vcpus)]


def plan_of(host: Machine, instances: list[Instance]) -> Plan:
    return planner.plan(snapshot(host, *instances), SETTINGS)


def one_after_the_other(host: Machine, instances: list[Instance]) -> Plan:
    state = snapshot(host)
    plan = planner.plan(state, SETTINGS)
    for one in instances:
        state = replace(state, instances=(*state.instances, one), observed=settled(plan))
        plan = planner.plan(state, SETTINGS)
    return plan


def nodes_of(plan: Plan) -> dict[str, str]:
    return {one.key.name: str(one.nodes) for one in plan.placements}


def test_the_highest_load_is_the_least_where_the_largest_first_would_not_find_it() -> None:
    # The largest first gives 3 2 2 and 3 2; the best is 3 3 and 2 2 2.
    assert plan_of(TWO, several(3, 3, 2, 2, 2)).node_load == {0: 1.5, 1: 1.5}


def test_a_plan_of_many_is_lower_than_one_after_the_other() -> None:
    sizes = several(1, 1, 2, 4, 4)
    assert max(one_after_the_other(TWO, sizes).node_load.values()) == 1.75
    assert max(plan_of(TWO, sizes).node_load.values()) == 1.5


def test_one_that_was_moved_says_that_it_was_chosen_together_with_the_others() -> None:
    reasons = [one.reason for one in plan_of(TWO, several(3, 3, 2, 2, 2)).placements]
    assert any("chosen together with the others so that the highest load is low" in one for one in reasons)


def test_the_order_of_the_input_does_not_matter() -> None:
    sizes = several(3, 3, 2, 2, 2)
    assert len({str(plan_of(TWO, list(order))) for order in permutations(sizes)}) == 1


def test_those_that_are_there_are_not_moved_for_a_better_plan() -> None:
    there = several(3, 3)
    seen = {one.key: decided(str(node), f"{4 * node}-{4 * node + 2}") for node, one in enumerate(there)}
    state = snapshot(TWO, *there, *(instance(name, vcpus=2) for name in "xyz"), observed=seen)
    found = planner.plan(state, SETTINGS)
    assert (nodes_of(found)["0"], nodes_of(found)["1"]) == ("0", "1")
    assert sorted(found.node_load.values()) == [1.25, 1.75]


def test_planning_again_changes_nothing() -> None:
    host, sizes = machine(), several(3, 3, 2, 2, 2, 5, 9, 1)
    first = plan_of(host, sizes)
    again = planner.plan(snapshot(host, *sizes, observed=settled(first)), SETTINGS)
    assert nodes_of(again) == nodes_of(first)


@pytest.mark.parametrize("kind", ["memory", "huge pages"])
def test_only_nodes_with_room_are_exchanged(kind: str) -> None:
    host = machine(nodes=2, hugepages={SMALL_PAGE: 8 * GIB})
    large = {"memory_bytes": 13 * GIB} if kind == "memory" else {"hugepages": {SMALL_PAGE: 5 * GIB}}
    pair = [instance(name, vcpus=3, **large) for name in "ab"]
    found = plan_of(host, [*pair, *several(2, 2, 2)])
    assert found.rejections == ()
    together = nodes_of(found)["a"] == nodes_of(found)["b"]
    # Both are on one node only where it has what both need: 24 GiB of memory, but 8 GiB of pages.
    assert together is False
    assert sorted(found.node_load.values()) == [1.25, 1.75]


def test_wide_ones_are_near_where_no_load_speaks_against_it() -> None:
    found = nodes_of(plan_of(machine(), several(8, 8)))
    assert sorted(found.values()) == ["0-1", "2-3"]


def test_how_many_nodes_each_has_never_depends_on_the_others() -> None:
    host, sizes = machine(), several(1, 3, 4, 6, 8, 9, 12, 13, 16)
    alone = {one.key.name: len(plan_of(host, [one]).placements[0].nodes) for one in sizes}
    assert {one.key.name: len(one.nodes) for one in plan_of(host, sizes).placements} == alone


def test_members_of_a_group_stay_together_while_others_are_levelled() -> None:
    group = [instance(name, vcpus=1, group="g") for name in "ab"]
    found = nodes_of(plan_of(TWO, [*group, *several(3, 3, 2, 2, 2)]))
    assert found["a"] == found["b"]


def test_those_with_a_device_stay_with_it_while_others_are_levelled() -> None:
    nic = instance("nic", vcpus=3, device_nodes=NodeSet([1]), policy=Policy.SINGLE_NUMA_NODE)
    found = plan_of(TWO, [nic, *several(3, 2, 2, 2)])
    assert nodes_of(found)["nic"] == "1"
    assert found.node_load == {0: 1.5, 1: 1.5}


def test_one_that_is_refused_keeps_nobody_from_a_good_plan() -> None:
    large = instance("large", vcpus=4, memory_bytes=400 * GIB)
    found = plan_of(TWO, [large, *several(3, 3, 2, 2, 2)])
    assert [one.key.name for one in found.rejections] == ["large"]
    assert max(found.node_load.values()) - min(found.node_load.values()) < 1e-9
