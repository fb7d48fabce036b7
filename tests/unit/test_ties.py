"""Groups, those that are kept apart, and devices: eight nodes in two packages, 12 apart inside and 32 across."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.ledger import Commitment, Ledger, usable_cpus
from incus_numa.policy.ties import Ties
from incus_numa.settings import PlacementSettings
from tests.builders import decided, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()
HOST = machine(nodes=8, nodes_per_socket=4)


def on(node: int, name: str, vcpus: int = 1, **more: Any) -> tuple[Instance, Observed]:
    """An instance that has the first CPUs of a node."""
    first = 4 * node
    return instance(name, vcpus=vcpus, **more), decided(str(node), f"{first}-{first + vcpus - 1}")


def beside(new: Instance, *there: tuple[Instance, Observed]) -> Snapshot:
    return snapshot(HOST, new, *(one for one, _ in there), observed={one.key: seen for one, seen in there})


def nodes_of(state: Snapshot, settings: PlacementSettings = SETTINGS) -> str:
    (found,) = [one for one in planner.plan(state, settings).placements if one.key.name == "x"]
    return str(found.nodes)


def places(plan: Plan) -> dict[str, str]:
    return {one.key.name: str(one.nodes) for one in plan.placements}


def test_a_member_goes_to_the_node_of_its_group() -> None:
    assert nodes_of(beside(instance("x", vcpus=1, group="g"), on(5, "a", group="g"))) == "5"
    assert nodes_of(beside(instance("x", vcpus=1, group="h"), on(5, "a", group="g"))) == "0"
    assert nodes_of(beside(instance("x", vcpus=1), on(5, "a", group="g"))) == "0"


def test_a_member_goes_next_to_a_crowded_node_of_its_group() -> None:
    there = (on(5, "a", group="g"), on(5, "b", 4))
    assert nodes_of(beside(instance("x", vcpus=1, group="g"), *there)) == "4"


def test_a_member_stays_near_even_where_another_package_is_idle() -> None:
    busy = (on(node, f"b{node}", 2) for node in range(4, 8))
    assert nodes_of(beside(instance("x", vcpus=2, group="g"), on(5, "a", group="g"), *busy)) == "4"


@pytest.mark.parametrize("policy", [Policy.BALANCED, Policy.BEST_EFFORT, Policy.RESTRICTED, Policy.SINGLE_NUMA_NODE])
def test_groups_pull_under_every_policy_that_chooses(policy: Policy) -> None:
    assert nodes_of(beside(instance("x", vcpus=1, group="g", policy=policy), on(6, "a", group="g"))) == "6"


def test_a_member_that_may_be_anywhere_pulls_nobody() -> None:
    everywhere = instance("a", vcpus=1, group="g", policy=Policy.NONE)
    state = beside(instance("x", vcpus=1, group="g"), (everywhere, decided("0-7", "0-31")), on(0, "b"))
    assert nodes_of(state) == "1"


def test_a_group_that_fits_one_node_is_on_one_node() -> None:
    state = snapshot(HOST, *(instance(name, vcpus=1, group="g") for name in "abcd"))
    assert set(places(planner.plan(state, SETTINGS)).values()) == {"0"}


def test_a_group_larger_than_a_node_spreads_inside_the_near_package() -> None:
    groups = [instance(f"{name}{index}", vcpus=2, group=name) for name in "gh" for index in range(8)]
    found = places(planner.plan(snapshot(HOST, *groups), SETTINGS))
    used = {name: {int(found[f"{name}{index}"]) // 4 for index in range(8)} for name in "gh"}
    assert used == {"g": {0}, "h": {1}}
    assert sorted(found.values()) == [str(node) for node in range(8) for _ in range(2)]


def test_a_group_larger_than_a_package_goes_on_in_the_other() -> None:
    group = [instance(f"g{index}", vcpus=4, group="g") for index in range(6)]
    found = places(planner.plan(snapshot(HOST, *group), SETTINGS))
    assert len(set(found.values())) == 6
    packages = [int(node) // 4 for node in found.values()]
    assert sorted(packages.count(one) for one in (0, 1)) == [2, 4]


@pytest.mark.parametrize(
    ("new", "other"),
    [({"avoid": ("g",)}, {"group": "g"}), ({"group": "g"}, {"avoid": ("g",)})],
    ids=["the new one avoids", "the new one is avoided"],
)
def test_those_that_one_of_both_keeps_apart_are_on_different_nodes(new: dict[str, Any], other: dict[str, Any]) -> None:
    busy = [on(node, f"b{node}", 2) for node in range(8) if node != 3]
    assert nodes_of(beside(instance("x", vcpus=1), on(3, "a"), *busy)) == "3"
    assert nodes_of(beside(instance("x", vcpus=1, **new), on(3, "a", **other), *busy)) == "0"


def test_avoiding_ones_own_group_puts_its_members_apart() -> None:
    replicas = [instance(f"r{index}", vcpus=1, group="g", avoid=("g",)) for index in range(8)]
    state = snapshot(machine(nodes=4), *replicas[:4])
    assert sorted(places(planner.plan(state, SETTINGS)).values()) == ["0", "1", "2", "3"]


def test_avoiding_refuses_nobody() -> None:
    replicas = [instance(f"r{index}", vcpus=1, avoid=("g",), group="g") for index in range(9)]
    assert planner.plan(snapshot(machine(nodes=2), *replicas), SETTINGS).rejections == ()


def test_devices_pull_to_their_node_until_it_is_crowded() -> None:
    new = instance("x", vcpus=2, device_nodes=NodeSet([6]))
    assert nodes_of(beside(new)) == "6"
    assert nodes_of(beside(new, on(6, "a", 2))) == "6"
    assert nodes_of(beside(new, on(6, "a", 4), on(4, "b", 1))) == "5"


def test_bound_memory_pulls_as_devices_do() -> None:
    new = instance("x", vcpus=2, bound_nodes=NodeSet([6]))
    assert nodes_of(beside(new)) == "6"
    assert nodes_of(beside(new, on(6, "a", 2))) == "6"
    assert nodes_of(beside(new, on(6, "a", 4), on(4, "b", 1))) == "5"


def test_devices_and_bound_memory_pull_each_by_itself() -> None:
    pull = Ties().pull(instance("x", device_nodes=NodeSet([0]), bound_nodes=NodeSet([4])), ledger(), SETTINGS)
    weight = SETTINGS.device_weight
    assert pull == {node: round(weight * 3.2 if node in (0, 4) else weight * (1.2 + 3.2), 9) for node in range(8)}


@pytest.mark.parametrize(
    ("tied", "there", "off"),
    [
        ({"bound_nodes": NodeSet([5])}, {}, "device_weight"),
        ({"group": "g"}, {"group": "g"}, "group_weight"),
        ({"device_nodes": NodeSet([5])}, {}, "device_weight"),
    ],
)
def test_a_weight_of_zero_switches_a_pull_off(tied: dict[str, Any], there: dict[str, Any], off: str) -> None:
    state = beside(instance("x", vcpus=1, **tied), on(5, "a", **there))
    assert nodes_of(state) == "5"
    without: dict[str, Any] = {off: 0.0}
    assert nodes_of(state, replace(SETTINGS, **without)) == "0"


def test_a_weight_of_zero_switches_avoiding_off() -> None:
    busy = [on(node, f"b{node}", 2) for node in range(8) if node != 3]
    state = beside(instance("x", vcpus=1, avoid=("g",)), on(3, "a", group="g"), *busy)
    assert nodes_of(state, replace(SETTINGS, avoid_weight=0.0)) == "3"


def test_who_is_there_stays_whatever_ties_come_later() -> None:
    there = (on(0, "a", group="g"), on(7, "b", group="g"), on(0, "c", avoid=("g",)))
    plan = planner.plan(beside(instance("x", vcpus=1, group="g"), *there), SETTINGS)
    assert {name: node for name, node in places(plan).items() if name != "x"} == {"a": "0", "b": "7", "c": "0"}


def test_a_plan_with_ties_is_made_once() -> None:
    several = [
        instance(f"i{index}", vcpus=2, group="gh"[index % 2], avoid=("g",) if index % 3 else ()) for index in range(9)
    ]
    state = snapshot(HOST, *several)
    first = planner.plan(state, SETTINGS)
    assert places(planner.plan(replace(state, observed=settled(first)), SETTINGS)) == places(first)


def ledger(**nodes: int) -> Ledger:
    """Instances by name on one node each."""
    made = Ledger(HOST, usable_cpus(HOST, CpuSet()))
    for name, node in nodes.items():
        made.commit(instance(name).key, Commitment(1 << node, 0, 1.0, 0))
    return made


def test_what_each_node_adds_is_its_mean_distance_to_the_members() -> None:
    members = [instance(name, group="g") for name in "abx"]
    pull = Ties(members).pull(members[2], ledger(a=0, b=4), SETTINGS)
    near, far = 1.2, 3.2
    assert pull == pytest.approx(
        {node: SETTINGS.group_weight * ((0.0 if node in (0, 4) else near) + far) / 2 for node in HOST.node_by_id}
    )


def test_ties_are_forgotten_with_the_instance_and_replaced_with_its_keys() -> None:
    mate, new = instance("a", group="g"), instance("x", group="g")
    ties = Ties([mate, new])
    ties.see(replace(mate, group="h"))
    assert ties.pull(new, ledger(a=0), SETTINGS) == {}
    ties.see(mate)
    assert ties.pull(new, ledger(a=0), SETTINGS)[0] == 0.0
    ties.drop(mate.key)
    assert ties.pull(new, ledger(a=0), SETTINGS) == {}
