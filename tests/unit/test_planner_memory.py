"""Memory in plans: what is bound, and what memory that is only used decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import MemoryMode, Policy
from incus_numa.model.machine import Machine, Node
from incus_numa.model.plan import Placement, Reason
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, LARGE_PAGE, SMALL_PAGE, decided, instance, machine, settled, snapshot

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


def test_what_is_reserved_or_set_aside_for_huge_pages_is_no_memory_of_instances() -> None:
    host = machine(nodes=2, hugepages={SMALL_PAGE: 4 * GIB, LARGE_PAGE: 2 * GIB}, reserved_bytes=6 * GIB)
    assert place(snapshot(host, instance("x", memory_bytes=20 * GIB))).nodes == NodeSet([0])
    assert place(snapshot(host, instance("x", memory_bytes=20 * GIB + 1))).nodes == NodeSet([0, 1])
    assert place(snapshot(host, instance("x", memory_bytes=40 * GIB))).nodes == NodeSet([0, 1])
    (refused,) = planner.plan(snapshot(host, instance("x", memory_bytes=40 * GIB + 1)), SETTINGS).rejections
    assert refused.reason is Reason.NO_MEMORY


def test_reserved_memory_that_is_more_than_a_node_has_leaves_it_none() -> None:
    host = machine(nodes=1, memory_bytes=4 * GIB, hugepages={SMALL_PAGE: 4 * GIB}, reserved_bytes=GIB)
    (refused,) = planner.plan(snapshot(host, instance("x", memory_bytes=1)), SETTINGS).rejections
    assert refused.detail == "needs 1 B, all nodes together have 0 B uncommitted (most on node 0: 0 B)"


def with_pages(*pages: dict[int, int]) -> Machine:
    """A machine with other huge pages on each node."""
    base = machine(nodes=len(pages))
    return replace(base, nodes=tuple(replace(node, hugepages=own) for node, own in zip(base.nodes, pages, strict=True)))


def test_huge_pages_are_found_where_they_are() -> None:
    host = with_pages({}, {SMALL_PAGE: 4 * GIB}, {LARGE_PAGE: 8 * GIB}, {SMALL_PAGE: 2 * GIB, LARGE_PAGE: 2 * GIB})
    for wanted, nodes in (
        ({SMALL_PAGE: GIB}, "1"),
        ({LARGE_PAGE: GIB}, "2"),
        ({SMALL_PAGE: GIB, LARGE_PAGE: GIB}, "3"),
        ({SMALL_PAGE: 3 * GIB, LARGE_PAGE: GIB}, "1-2"),
        ({SMALL_PAGE: 3 * GIB, LARGE_PAGE: 9 * GIB}, "1-3"),
        ({SMALL_PAGE: 0}, "0"),
    ):
        found = place(snapshot(host, instance("x", vcpus=1, hugepages=wanted)))
        assert (wanted, str(found.nodes)) == (wanted, nodes)


def test_huge_pages_that_others_have_are_taken() -> None:
    there = instance("a", vcpus=1, hugepages={SMALL_PAGE: 3 * GIB})
    host = with_pages({SMALL_PAGE: 4 * GIB}, {SMALL_PAGE: 4 * GIB})
    state = snapshot(
        host, there, instance("x", vcpus=1, hugepages={SMALL_PAGE: 2 * GIB}), observed={there.key: decided("0", "0")}
    )
    assert place(state).nodes == NodeSet([1])


def test_huge_pages_of_a_size_that_the_machine_does_not_have_are_refused() -> None:
    (refused,) = planner.plan(snapshot(machine(), instance("x", hugepages={SMALL_PAGE: GIB})), SETTINGS).rejections
    assert (refused.reason, refused.detail) == (
        Reason.NO_HUGEPAGES,
        "needs 1 GiB of 2 MiB huge pages, all nodes together have 0 B uncommitted",
    )


def test_a_placement_says_its_huge_pages() -> None:
    host = with_pages({SMALL_PAGE: 4 * GIB})
    found = place(snapshot(host, instance("x", vcpus=1, memory_bytes=GIB, hugepages={SMALL_PAGE: 2 * GIB})))
    assert found.reason == (
        "1 of 1 node hold 1 vCPU and 1 GiB and 2 GiB of 2 MiB pages; least loaded and nearest: load at most 0.25"
    )


def test_huge_pages_come_with_cpus_and_memory_jointly() -> None:
    host = with_pages({SMALL_PAGE: 4 * GIB}, {SMALL_PAGE: 4 * GIB}, {})
    full = instance("f", vcpus=1, memory_bytes=28 * GIB)
    new = instance("x", vcpus=1, memory_bytes=2 * GIB, hugepages={SMALL_PAGE: GIB})
    assert place(snapshot(host, full, new, observed={full.key: decided("0", "0")})).nodes == NodeSet([1])


@pytest.mark.parametrize(
    "more", [{"memory_bytes": 28 * GIB}, {"hugepages": {SMALL_PAGE: 6 * GIB}}], ids=["memory", "huge pages"]
)
def test_who_no_longer_fits_the_node_with_others_is_placed_anew(more: dict[str, Any]) -> None:
    host = machine(nodes=2, hugepages={SMALL_PAGE: 8 * GIB}, memory_bytes=40 * GIB, reserved_bytes=GIB)
    there = [instance(name, vcpus=1, **more) for name in ("a", "x")]
    seen = {one.key: decided("0", str(2 * index)) for index, one in enumerate(there)}
    found = place(snapshot(host, *there, observed=seen))
    assert (found.nodes, found.moved) == (NodeSet([1]), True)


def test_pages_do_not_move_policy_none() -> None:
    new = instance("x", policy=Policy.NONE, hugepages={SMALL_PAGE: 6 * GIB}, memory_bytes=900 * GIB)
    first = place(snapshot(machine(), new))
    again = place(snapshot(machine(), new, observed={new.key: decided("0-3", "0-15")}))
    assert (first.nodes, again.nodes, again.moved) == (NodeSet(range(4)), NodeSet(range(4)), False)
