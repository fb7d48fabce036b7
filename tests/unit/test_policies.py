"""The policies in the kubelet's meaning, with devices: what each admits, aligns and refuses."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Placement, Reason, Rejection
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.policy.policies import RULES
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, SMALL_PAGE, decided, instance, machine, snapshot

SETTINGS = PlacementSettings()
CHOOSING = [policy for policy in Policy if policy is not Policy.NONE]


def answer(state: Snapshot, name: str = "x") -> Placement | Rejection:
    plan = planner.plan(state, SETTINGS)
    answers: list[Placement | Rejection] = [*plan.placements, *plan.rejections]
    (found,) = [one for one in answers if one.key.name == name]
    return found


def nodes_of(state: Snapshot) -> str:
    found = answer(state)
    assert isinstance(found, Placement), found
    return str(found.nodes)


def refusal(state: Snapshot) -> tuple[Reason, str]:
    found = answer(state)
    assert isinstance(found, Rejection), found
    return found.reason, found.detail


def full(*nodes: int) -> list[tuple[Instance, str]]:
    """Instances with most of the memory of each of the nodes."""
    return [(instance(f"f{node}", vcpus=1, memory_bytes=30 * GIB), str(node)) for node in nodes]


def beside(new: Instance, there: list[tuple[Instance, str]]) -> Snapshot:
    seen = {one.key: decided(nodes, str(4 * int(nodes))) for one, nodes in there}
    return snapshot(machine(), new, *(one for one, _ in there), observed=seen)


def test_every_policy_has_its_rule() -> None:
    assert set(RULES) == set(Policy)


def test_none_gets_all_usable_cpus_whatever_it_has_and_asks_for() -> None:
    new = instance("x", vcpus=2, policy=Policy.NONE, device_nodes=NodeSet([3]), group="g", memory_bytes=500 * GIB)
    found = answer(snapshot(machine(isolated="5"), new))
    assert isinstance(found, Placement)
    assert (found.nodes, found.cpus, found.mems) == (NodeSet(range(4)), CpuSet(range(16)) - CpuSet([5]), None)


def test_none_stays_on_all_nodes_when_one_of_them_is_exclusive_to_another() -> None:
    own = instance("own", vcpus=4, exclusive=True)
    new = instance("x", policy=Policy.NONE)
    seen = {own.key: decided("1", "4-7"), new.key: decided("0-3", "0-15")}
    found = answer(snapshot(machine(), own, new, observed=seen))
    assert isinstance(found, Placement)
    assert (found.nodes, found.cpus, found.moved) == (NodeSet(range(4)), CpuSet.parse("0-3,8-15"), False)


@pytest.mark.parametrize("policy", CHOOSING)
def test_a_device_on_one_node_is_followed_there(policy: Policy) -> None:
    assert nodes_of(snapshot(machine(), instance("x", vcpus=4, policy=policy, device_nodes=NodeSet([2])))) == "2"


@pytest.mark.parametrize(("policy", "nodes"), [("balanced", "2"), ("best-effort", "2"), ("restricted", "1-2")])
def test_devices_on_two_nodes(policy: str, nodes: str) -> None:
    new = instance("x", vcpus=4, policy=Policy(policy), device_nodes=NodeSet([1, 2]))
    there = [(instance("a", vcpus=1), "1")]
    assert nodes_of(beside(new, there)) == nodes


def test_single_numa_node_refuses_devices_on_two_nodes() -> None:
    new = instance("x", vcpus=1, policy=Policy.SINGLE_NUMA_NODE, device_nodes=NodeSet([1, 2]))
    assert refusal(snapshot(machine(), new)) == (
        Reason.NOT_ONE_NODE,
        "policy single-numa-node, but its devices are on nodes 1-2",
    )


def test_single_numa_node_refuses_what_only_fits_beside_the_device() -> None:
    new = instance("x", vcpus=1, memory_bytes=4 * GIB, policy=Policy.SINGLE_NUMA_NODE, device_nodes=NodeSet([2]))
    reason, detail = refusal(beside(new, full(2)))
    assert reason is Reason.NOT_ONE_NODE
    assert detail == (
        "policy single-numa-node, but 1 vCPU and 4 GiB need 2 nodes: node 2 of its devices has 4 usable CPUs,"
        " 2 GiB uncommitted"
    )


@pytest.mark.parametrize("policy", CHOOSING)
def test_memory_that_is_bound_to_a_full_node_refuses_nobody(policy: Policy) -> None:
    new = instance("x", vcpus=1, memory_bytes=4 * GIB, policy=policy, bound_nodes=NodeSet([2]))
    found = answer(beside(new, full(2)))
    assert isinstance(found, Placement), found
    assert str(found.nodes) == "3"
    assert found.reason.endswith("; the server bound its memory to node 2, which cannot hold it")


@pytest.mark.parametrize("policy", CHOOSING)
def test_memory_that_is_bound_to_a_crowded_node_is_outweighed_and_that_is_said(policy: Policy) -> None:
    new = instance("x", vcpus=4, policy=policy, bound_nodes=NodeSet([2]))
    found = answer(beside(new, [(instance(name, vcpus=4), "2") for name in "abc"]))
    assert isinstance(found, Placement), found
    assert str(found.nodes) == "3"
    assert found.reason.endswith("; the server bound its memory to node 2, which would cost 31, node 3 costs 3.4")


@pytest.mark.parametrize("policy", CHOOSING)
def test_memory_that_is_bound_to_a_node_without_usable_cpus_draws_to_the_nearest(policy: Policy) -> None:
    found = answer(snapshot(machine(isolated="8-11"), instance("x", vcpus=1, policy=policy, bound_nodes=NodeSet([2]))))
    assert isinstance(found, Placement), found
    assert str(found.nodes) == "3"
    assert found.reason.endswith("; the server bound its memory to node 2, which has no usable CPUs")


@pytest.mark.parametrize("policy", CHOOSING)
def test_memory_that_is_bound_to_more_nodes_than_are_needed_does_not_widen(policy: Policy) -> None:
    there = [(instance(f"{name}{node}", vcpus=4), str(node)) for name in "abc" for node in (2, 3)]
    found = answer(beside(instance("x", vcpus=4, policy=policy, bound_nodes=NodeSet([2, 3])), there))
    assert isinstance(found, Placement), found
    assert str(found.nodes) == "0"
    assert found.reason.endswith("; the server bound its memory to nodes 2-3, which are more than it needs")


@pytest.mark.parametrize("policy", CHOOSING)
def test_memory_that_is_bound_draws_to_its_node_without_a_word(policy: Policy) -> None:
    found = answer(snapshot(machine(), instance("x", vcpus=1, policy=policy, bound_nodes=NodeSet([2]))))
    assert isinstance(found, Placement), found
    assert (str(found.nodes), "bound" in found.reason) == ("2", False)


@pytest.mark.parametrize("policy", [Policy.RESTRICTED, Policy.SINGLE_NUMA_NODE])
def test_devices_win_over_bound_memory(policy: Policy) -> None:
    new = instance("x", vcpus=1, policy=policy, device_nodes=NodeSet([1]), bound_nodes=NodeSet([2]))
    found = answer(snapshot(machine(), new))
    assert isinstance(found, Placement), found
    assert str(found.nodes) == "1"
    assert found.reason.endswith("; the server bound its memory to node 2, which does not have its devices")


def test_best_effort_leaves_its_devices_where_they_would_cost_a_second_node() -> None:
    new = instance("x", vcpus=1, memory_bytes=4 * GIB, policy=Policy.BEST_EFFORT, device_nodes=NodeSet([2]))
    assert nodes_of(beside(new, full(2))) == "3"


def test_best_effort_aligns_at_any_load_and_balanced_only_while_the_node_is_not_crowded() -> None:
    there = [(instance(name, vcpus=4), "2") for name in "abc"]
    for policy, nodes in ((Policy.BEST_EFFORT, "2"), (Policy.BALANCED, "3")):
        new = instance("x", vcpus=4, policy=policy, device_nodes=NodeSet([2]))
        assert nodes_of(beside(new, there)) == nodes


def test_restricted_refuses_more_nodes_than_an_empty_machine_needs() -> None:
    new = instance("x", vcpus=1, memory_bytes=4 * GIB, policy=Policy.RESTRICTED, device_nodes=NodeSet([2]))
    assert refusal(beside(new, full(2))) == (
        Reason.NOT_NARROWEST,
        "policy restricted, but only 2 nodes have room for it now; 1 would do on an empty machine",
    )


def test_restricted_takes_as_many_nodes_as_its_devices_have() -> None:
    new = instance("x", vcpus=1, policy=Policy.RESTRICTED, device_nodes=NodeSet([0, 3]))
    assert nodes_of(snapshot(machine(), new)) == "0,3"


@pytest.mark.parametrize("policy", [Policy.RESTRICTED, Policy.SINGLE_NUMA_NODE])
def test_what_came_to_lack_a_device_is_placed_anew(policy: Policy) -> None:
    new = instance("x", vcpus=1, policy=policy, device_nodes=NodeSet([3]))
    assert nodes_of(snapshot(machine(), new, observed={new.key: decided("0", "0")})) == "3"


@pytest.mark.parametrize("policy", [Policy.RESTRICTED, Policy.SINGLE_NUMA_NODE])
def test_a_device_on_a_node_that_is_not_there_is_told_as_that(policy: Policy) -> None:
    new = instance("x", vcpus=1, policy=policy, device_nodes=NodeSet([9]))
    assert refusal(snapshot(machine(), new)) == (
        Reason.NOT_ALIGNED,
        f"policy {policy.value}, but its devices are on node 9 and it on nodes 0-3",
    )


def test_narrowing_keeps_the_devices_of_a_restricted_one() -> None:
    new = instance("x", vcpus=2, policy=Policy.RESTRICTED, device_nodes=NodeSet([0, 3]))
    state = snapshot(machine(), new, observed={new.key: decided("0,3", "0,12")})
    assert nodes_of(state) == "0,3"


@pytest.mark.parametrize("policy", CHOOSING)
def test_missing_memory_and_huge_pages_are_told_with_numbers(policy: Policy) -> None:
    host = machine(nodes=2, hugepages={SMALL_PAGE: 2 * GIB}, reserved_bytes=GIB)
    reason, detail = refusal(snapshot(host, instance("x", policy=policy, memory_bytes=70 * GIB)))
    assert (reason, detail) == (
        Reason.NO_MEMORY,
        "needs 70 GiB, all nodes together have 58 GiB uncommitted (most on node 0: 29 GiB)",
    )
    reason, detail = refusal(snapshot(host, instance("x", policy=policy, hugepages={SMALL_PAGE: 5 * GIB})))
    assert (reason, detail) == (
        Reason.NO_HUGEPAGES,
        "needs 5 GiB of 2 MiB huge pages, all nodes together have 4 GiB uncommitted (most on node 0: 2 GiB)",
    )
