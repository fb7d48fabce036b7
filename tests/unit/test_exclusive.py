"""Exclusive CPUs: who gives way, who does not, when they are refused, and what happens when others come and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.machine import CoreKind
from incus_numa.model.plan import Plan, Reason
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, SMALL_PAGE, decided, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()


def own(name: str, vcpus: int, **more: Any) -> Instance:
    return instance(name, vcpus=vcpus, exclusive=True, **more)


def places(plan: Plan) -> dict[str, tuple[str, str]]:
    return {one.key.name: (str(one.nodes), str(one.cpus)) for one in plan.placements}


def plan_of(state: Snapshot) -> dict[str, tuple[str, str]]:
    return places(planner.plan(state, SETTINGS))


def refusals(state: Snapshot) -> dict[str, tuple[Reason, str]]:
    return {one.key.name: (one.reason, one.detail) for one in planner.plan(state, SETTINGS).rejections}


def test_exclusive_cpus_are_whole_cores_that_nobody_else_gets() -> None:
    host = machine(nodes=1, cpus_per_node=8)
    found = plan_of(snapshot(host, own("a", 2), instance("b", vcpus=8), instance("c")))
    assert found == {"a": ("0", "0-1"), "b": ("0", "2-7"), "c": ("0", "2-7")}


def test_a_placement_says_that_its_cpus_are_exclusive() -> None:
    (found,) = planner.plan(snapshot(machine(), own("a", 2)), SETTINGS).placements
    assert found.exclusive
    assert found.reason == (
        "1 of 4 nodes hold 2 vCPUs; least loaded and nearest: load at most 0.00; its CPUs are exclusive"
    )


def test_others_give_way_but_keep_their_node_and_as_many_cpus() -> None:
    there = instance("b", vcpus=2)
    state = snapshot(machine(nodes=1, isolated="3"), there, own("a", 1), observed={there.key: decided("0", "0,2")})
    assert plan_of(state) == {"a": ("0", "2"), "b": ("0", "0-1")}


def test_those_without_a_cpu_limit_give_cpus_away_but_not_the_last_one() -> None:
    there = instance("b")
    host, seen = machine(nodes=1), {there.key: decided("0", "0-3")}
    assert plan_of(snapshot(host, there, own("a", 3), observed=seen)) == {"a": ("0", "0-2"), "b": ("0", "3")}
    assert refusals(snapshot(host, there, own("a", 4), observed=seen)) == {
        "a": (
            Reason.NO_EXCLUSIVE_CPUS,
            "needs 4 exclusive CPUs; of 4 usable CPUs 3 are needed by nobody else (most on node 0: 3)",
        )
    }


def test_cpus_that_others_need_are_refused_with_the_numbers() -> None:
    there = [instance(f"b{node}", vcpus=3) for node in range(4)]
    seen = {one.key: decided(str(node), f"{4 * node}-{4 * node + 2}") for node, one in enumerate(there)}
    assert refusals(snapshot(machine(), *there, own("a", 5), observed=seen)) == {
        "a": (
            Reason.NO_EXCLUSIVE_CPUS,
            "needs 5 exclusive CPUs; of 16 usable CPUs 4 are needed by nobody else (most on node 0: 1)",
        )
    }
    found = planner.plan(snapshot(machine(), *there, own("a", 4), observed=seen), SETTINGS)
    assert places(found)["a"][0] == "0-3"
    assert [one.moved for one in found.placements] == [False] * 5


def test_who_is_refused_takes_nobodys_cpus() -> None:
    state = snapshot(machine(nodes=1), own("a", 5), instance("b", vcpus=4))
    assert refusals(state).keys() == {"a"}
    assert plan_of(state) == {"b": ("0", "0-3")}


def test_the_larger_owner_comes_first_and_what_is_left_is_told() -> None:
    state = snapshot(machine(nodes=1), own("a", 2), own("b", 3))
    assert plan_of(state) == {"b": ("0", "0-2")}
    assert refusals(state)["a"][1] == (
        "needs 2 exclusive CPUs; of 4 usable CPUs 1 are needed by nobody else (most on node 0: 1)"
    )


def test_where_all_cpus_are_exclusive_others_are_told_so() -> None:
    state = snapshot(machine(nodes=1), own("a", 4), instance("b", vcpus=1), instance("c", policy=Policy.NONE))
    told = (Reason.NO_CPUS, "all 4 usable CPUs of the machine are exclusive to other instances")
    assert refusals(state) == {"b": told, "c": told}


def test_one_cpu_is_left_to_an_instance_that_is_anywhere() -> None:
    there = instance("c", policy=Policy.NONE)
    seen = {there.key: decided("0-1", "0-7")}
    assert refusals(snapshot(machine(nodes=2), there, own("a", 8), observed=seen)).keys() == {"a"}
    found = planner.plan(snapshot(machine(nodes=2), there, own("a", 7), observed=seen), SETTINGS)
    assert [len(one.cpus) for one in found.placements] == [7, 1]


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (
            instance("x", exclusive=True),
            "user.numa.exclusive: expected a number of CPUs in limits.cpu: how many are to be exclusive",
        ),
        (
            instance("x", pinned="1", exclusive=True),
            "user.numa.exclusive: limits.cpu lists CPUs, which others may have, too; expected a number of CPUs in"
            " limits.cpu",
        ),
        (
            own("x", 1, policy=Policy.NONE),
            "user.numa.exclusive: policy none gives all CPUs of the machine, which cannot be exclusive; expected"
            " another policy",
        ),
    ],
)
def test_what_cannot_be_exclusive_is_refused(one: Instance, what: str) -> None:
    assert refusals(snapshot(machine(), one)) == {"x": (Reason.BAD_KEY, what)}


def test_pinned_cpus_are_never_given_away_and_may_be_shared_by_those_who_give_way() -> None:
    pin, there = instance("p", pinned="0"), instance("b", vcpus=2)
    state = snapshot(machine(nodes=1), pin, there, own("a", 2), observed={there.key: decided("0", "0,2")})
    found = plan_of(state)
    assert found["a"] == ("0", "2-3")
    assert found["b"] == ("0", "0-1")


def test_an_owner_leaves_cpus_that_come_to_be_pinned() -> None:
    owner, pin = own("a", 2), instance("p", pinned="0", managed=False)
    found = plan_of(snapshot(machine(nodes=1), owner, pin, observed={owner.key: decided("0", "0-1")}))
    assert found == {"a": ("0", "2-3")}


def test_an_owner_keeps_its_cpus_when_others_come() -> None:
    state = snapshot(machine(nodes=1), own("b", 2))
    first = planner.plan(state, SETTINGS)
    more = snapshot(machine(nodes=1), own("b", 2), own("a", 1), instance("c", vcpus=4), observed=settled(first))
    assert plan_of(more) == {"a": ("0", "2"), "b": ("0", "0-1"), "c": ("0", "3")}


def test_cpus_go_back_to_the_others_when_their_owner_leaves() -> None:
    state = snapshot(machine(nodes=1), own("a", 2), instance("c"), instance("d", vcpus=4))
    first = planner.plan(state, SETTINGS)
    left = tuple(one for one in state.instances if one.key.name != "a")
    assert places(first) == {"a": ("0", "0-1"), "c": ("0", "2-3"), "d": ("0", "2-3")}
    again = planner.plan(replace(state, instances=left, observed=settled(first)), SETTINGS)
    assert places(again) == {"c": ("0", "0-3"), "d": ("0", "0-3")}


def test_an_owner_that_asks_for_more_gets_more() -> None:
    before = planner.plan(snapshot(machine(nodes=1), own("a", 2), instance("c", vcpus=1)), SETTINGS)
    state = snapshot(machine(nodes=1), own("a", 3), instance("c", vcpus=1), observed=settled(before))
    assert plan_of(state) == {"a": ("0", "0-2"), "c": ("0", "3")}


@pytest.mark.parametrize(
    ("nodes", "cpus"), [("0", "4-5"), ("0", "0,4"), ("0", "3"), ("0", "0-2"), ("9", "0-1")], ids=str
)
def test_what_an_owner_may_not_have_is_not_kept(nodes: str, cpus: str) -> None:
    owner = own("a", 2)
    state = snapshot(machine(isolated="3"), owner, observed={owner.key: decided(nodes, cpus)})
    found = planner.plan(state, SETTINGS).placements[0]
    (node,) = found.nodes
    assert len(found.cpus) == 2
    assert found.cpus <= state.machine.node_by_id[node].cpus - state.machine.isolated


def test_one_of_two_owners_of_the_same_cpus_keeps_them() -> None:
    a, b = own("a", 2), own("b", 2)
    seen = {a.key: decided("0", "0-1"), b.key: decided("0", "0-1")}
    assert plan_of(snapshot(machine(nodes=1), a, b, observed=seen)) == {"a": ("0", "0-1"), "b": ("0", "2-3")}


def test_a_refused_owner_does_not_drive_out_one_that_has_its_cpus() -> None:
    a, b = own("a", 1), own("b", 1, policy=Policy.SINGLE_NUMA_NODE, device_nodes=NodeSet([0, 1]))
    seen = {a.key: decided("0", "0"), b.key: decided("0", "0-1")}
    assert plan_of(snapshot(machine(nodes=2), a, b, observed=seen)) == {"a": ("0", "0")}


def test_an_owner_is_placed_anew_where_its_node_holds_its_memory_no_longer() -> None:
    owner, other = own("a", 1, memory_bytes=20 * GIB), instance("b", vcpus=1, memory_bytes=20 * GIB)
    host = machine(nodes=2, reserved_bytes=4 * GIB)
    seen = {owner.key: decided("0", "0"), other.key: decided("0", "2")}
    assert {name: nodes for name, (nodes, _) in plan_of(snapshot(host, owner, other, observed=seen)).items()} == {
        "a": "0",
        "b": "1",
    }


def test_memory_that_is_only_used_refuses_no_owner() -> None:
    owner = own("a", 1, memory_bytes=900 * GIB, memory_is_usage=True)
    assert plan_of(snapshot(machine(), owner)) == {"a": ("0", "0")}


def test_huge_pages_and_cpus_of_its_own_are_found_jointly() -> None:
    base = machine(nodes=3)
    pages: tuple[dict[int, int], ...] = ({SMALL_PAGE: 4 * GIB}, {}, {SMALL_PAGE: 2 * GIB})
    host = replace(
        base, nodes=tuple(replace(node, hugepages=huge) for node, huge in zip(base.nodes, pages, strict=True))
    )
    busy = instance("b", vcpus=3)
    seen = {busy.key: decided("0", "0-2")}
    found = plan_of(snapshot(host, busy, own("a", 2, hugepages={SMALL_PAGE: 2 * GIB}), observed=seen))
    assert found["a"] == ("2", "8-9")


def test_cores_of_the_kind_asked_for_come_first() -> None:
    host = machine(nodes=1, cpus_per_node=8, efficiency_cpus=4)
    slow = own("slow", 2, cores=CoreKind.EFFICIENCY)
    fast = own("fast", 4, cores=CoreKind.PERFORMANCE)
    assert plan_of(snapshot(host, slow, fast)) == {"fast": ("0", "0-3"), "slow": ("0", "4-5")}


def test_an_owner_on_two_nodes_has_evenly_many_of_each() -> None:
    (found,) = planner.plan(snapshot(machine(), own("a", 6)), SETTINGS).placements
    assert [len(found.cpus & node.cpus) for node in machine().nodes] == [3, 3, 0, 0]


def test_the_load_of_a_node_counts_what_is_exclusive_there() -> None:
    plan = planner.plan(snapshot(machine(nodes=2), own("a", 2), instance("b", vcpus=1)), SETTINGS)
    assert sum(plan.node_load.values()) * 4 == 3


def test_an_owner_stays_when_the_server_starts_another_on_its_node() -> None:
    owner, new, other = own("a", 4), instance("n", vcpus=1), instance("u", vcpus=2, managed=False)
    started = replace(decided("0", "0-3"), decided=None)
    seen = {owner.key: decided("0", "0-3"), new.key: started, other.key: started}
    assert plan_of(snapshot(machine(nodes=2), owner, new, other, observed=seen)) == {
        "a": ("0", "0-3"),
        "n": ("1", "4"),
    }


def test_cpus_are_given_away_beside_what_others_will_have() -> None:
    there = instance("b", vcpus=3)
    state = snapshot(machine(nodes=1), there, own("a", 2), observed={there.key: decided("0", "0")})
    assert refusals(state).keys() == {"a"}
    assert plan_of(state) == {"b": ("0", "0-2")}
