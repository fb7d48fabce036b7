"""Memory in plans: what is bound, and what memory that is only used decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import MemoryMode, Policy
from incus_numa.model.machine import Node
from incus_numa.model.plan import Placement
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, decided, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()


def place(state: Snapshot) -> Placement:
    (found,) = [one for one in planner.plan(state, SETTINGS).placements if one.key.name == "x"]
    return found


@pytest.mark.parametrize(("gib", "mems"), [(32, NodeSet([0])), (33, None)])
def test_memory_of_a_pin_is_bound_only_where_its_limit_fits(gib: int, mems: NodeSet | None) -> None:
    found = place(snapshot(machine(), instance("x", pinned="2-3", memory_bytes=gib * GIB)))
    assert (found.nodes, found.mems) == (NodeSet([0]), mems)


def test_memory_of_a_pin_that_does_not_fit_is_told_with_the_numbers() -> None:
    there = instance("a", vcpus=1, memory_bytes=20 * GIB)
    state = snapshot(
        machine(), there, instance("x", pinned="2", memory_bytes=16 * GIB), observed={there.key: decided("0", "0")}
    )
    assert place(state).reason == (
        "limits.cpu lists CPUs 2: respected, on node 0; "
        "memory is not bound: its limit is 16 GiB, node 0 has 12 GiB uncommitted"
    )


def test_a_pin_is_bound_or_not_the_same_way_again() -> None:
    state = snapshot(machine(), *(instance(name, pinned="2", memory_bytes=20 * GIB) for name in "ab"))
    first = planner.plan(state, SETTINGS)
    again = planner.plan(replace(state, observed=settled(first)), SETTINGS)
    assert [one.mems for one in first.placements] == [one.mems for one in again.placements] == [None, None]


@pytest.mark.parametrize(("mode", "mems"), [("local", None), ("none", None), ("bind", NodeSet([0]))])
def test_policy_none_binds_memory_only_when_told_to(mode: str, mems: NodeSet | None) -> None:
    host = machine(nodes=1)
    host = replace(host, nodes=(*host.nodes, Node(id=1, cpus=CpuSet(), memory_bytes=64 * GIB)))
    found = place(snapshot(host, instance("x", vcpus=1, policy=Policy.NONE, memory=MemoryMode(mode))))
    assert (found.nodes, found.mems) == (NodeSet([0]), mems)
    assert found.reason == "policy none: all usable CPUs of the machine"


def over_time(*gib: int, first: Snapshot | None = None, **more: Any) -> list[tuple[str, str, bool]]:
    """Plans one after the other, each applied, while an instance without a limit uses so much memory."""
    state, found = first or snapshot(machine()), []
    for size in gib:
        now = instance("x", memory_bytes=size * GIB, memory_is_usage=True, **more)
        state = replace(state, instances=(*(one for one in state.instances if one.key != now.key), now))
        one = place(state)
        found.append((str(one.nodes), str(one.mems), one.moved))
        state = replace(state, observed=settled(planner.plan(state, SETTINGS)))
    return found


@pytest.mark.parametrize("policy", list(Policy))
def test_use_of_memory_alone_never_moves_widens_narrows_or_refuses(policy: Policy) -> None:
    for vcpus in (None, 1, 4):
        found = over_time(0, 40, 0, 130, 0, vcpus=vcpus, policy=policy)
        assert found == [("0-3", "None", False) if policy is Policy.NONE else ("0", "0", False)] * 5


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("gib", [1, 40, 130])
def test_where_use_of_memory_has_led_a_new_instance_it_stays(gib: int, policy: Policy) -> None:
    found = over_time(gib, 0, gib, 20, 200, vcpus=1, policy=policy)
    assert found == found[:1] * 5
    wide = gib == 40 and policy in (Policy.BALANCED, Policy.BEST_EFFORT)
    assert found[0][0] == ("0-3" if policy is Policy.NONE else "0-1" if wide else "0")


def test_with_fewer_vcpus_an_instance_without_a_limit_is_narrowed_all_the_same() -> None:
    eight, two = (instance("x", vcpus=count, memory_bytes=40 * GIB, memory_is_usage=True) for count in (8, 2))
    first = planner.plan(snapshot(machine(), eight), SETTINGS)
    found = place(snapshot(machine(), two, observed=settled(first)))
    assert (first.placements[0].nodes, found.nodes, found.moved) == (NodeSet([0, 1]), NodeSet([0]), True)


def test_a_bound_pin_is_not_unbound_by_others() -> None:
    pin = instance("x", pinned="2", memory_bytes=20 * GIB)
    other = instance("a", memory_bytes=20 * GIB, managed=False)
    seen = {pin.key: decided("0", "2", "0"), other.key: Observed(nodes=NodeSet([0]))}
    assert place(snapshot(machine(), pin, other, observed=seen)).mems == NodeSet([0])


def test_use_of_memory_alone_drives_nobody_out() -> None:
    there = [instance(name, vcpus=1, memory_bytes=25 * GIB, memory_is_usage=True) for name in ("a", "x")]
    seen = {one.key: decided("0", str(2 * index)) for index, one in enumerate(there)}
    assert place(snapshot(machine(), *there, observed=seen)).nodes == NodeSet([0])
