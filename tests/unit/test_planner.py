"""The rules of placement, one by one, on machines small enough to follow by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, MemoryMode, Policy
from incus_numa.model.load import Load
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.model.plan import Placement, Reason, Rejection
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, decided, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()


def place(state: Snapshot, name: str = "x", settings: PlacementSettings = SETTINGS) -> Placement:
    (found,) = [one for one in planner.plan(state, settings).placements if one.key.name == name]
    return found


def refusal(state: Snapshot) -> Rejection:
    (found,) = planner.plan(state, SETTINGS).rejections
    return found


def key(name: str) -> InstanceKey:
    return InstanceKey("default", name)


def with_nodes(base: Machine, *nodes: Node) -> Machine:
    """More nodes without CPUs."""
    return replace(base, nodes=(*base.nodes, *nodes))


def unequal(*sizes: int, memory: tuple[int | None, ...] = (), ids: tuple[int, ...] = ()) -> Machine:
    """Single-threaded nodes of given sizes, without distances."""
    cpus: list[Cpu] = []
    nodes = []
    for index, size in enumerate(sizes):
        first, one = len(cpus), ids[index] if ids else index
        cpus += [Cpu(id=cpu, node=one, socket=0, core=cpu, l3=None) for cpu in range(first, first + size)]
        own = CpuSet(range(first, first + size))
        nodes.append(Node(id=one, cpus=own, memory_bytes=memory[index] if memory else 32 * GIB))
    return Machine(nodes=tuple(nodes), cpus=tuple(cpus), online=CpuSet(range(len(cpus))))


def test_one_node_is_enough_for_as_many_vcpus_as_it_has() -> None:
    assert place(snapshot(machine(), instance("x", vcpus=4))).nodes == NodeSet([0])


def test_width_is_never_bought_with_free_cpus() -> None:
    busy = [instance(f"b{node}", vcpus=4) for node in range(4)]
    there = {one.key: decided(str(node), f"{4 * node}-{4 * node + 3}") for node, one in enumerate(busy)}
    assert len(place(snapshot(machine(), instance("x", vcpus=4), *busy, observed=there)).nodes) == 1


def test_incus_1605_gets_three_near_nodes_and_even_cpus() -> None:
    host = machine(nodes=24, cpus_per_node=16, nodes_per_socket=12)
    found = place(snapshot(host, instance("x", vcpus=48)))
    assert (found.nodes, found.cpus) == (NodeSet([0, 1, 2]), CpuSet(range(48)))


def test_the_least_loaded_node_is_taken_by_vcpus_not_by_instances() -> None:
    there = [instance("a", vcpus=1), instance("b", vcpus=1), instance("c", vcpus=3)]
    seen = {there[0].key: decided("0", "0"), there[1].key: decided("0", "2"), there[2].key: decided("1", "4,6-7")}
    host = machine(nodes=2)
    assert place(snapshot(host, instance("x", vcpus=1), *there, observed=seen)).nodes == NodeSet([0])


def test_near_nodes_are_preferred_to_far_ones_of_the_same_load() -> None:
    one = instance("a", vcpus=1)
    seen = {one.key: decided("0", "0")}
    found = place(snapshot(machine(), one, instance("x", vcpus=8), observed=seen))
    assert found.nodes == NodeSet([2, 3])


def test_far_nodes_are_taken_when_near_ones_are_much_more_loaded() -> None:
    there = [instance("a", vcpus=4), instance("b", vcpus=4)]
    seen = {there[0].key: decided("0", "0-3"), there[1].key: decided("2", "8-11")}
    assert place(snapshot(machine(), instance("x", vcpus=8), *there, observed=seen)).nodes == NodeSet([1, 3])


def test_unmanaged_instances_count_as_load_and_are_never_placed() -> None:
    other = instance("other", vcpus=4, managed=False)
    plan = planner.plan(
        snapshot(machine(), other, instance("x", vcpus=4), observed={other.key: Observed(nodes=NodeSet([0]))}), SETTINGS
    )
    assert [(one.key.name, str(one.nodes)) for one in plan.placements] == [("x", "1")]
    assert plan.node_load == {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0}


def test_measured_load_counts_where_it_is_larger() -> None:
    there = instance("a", vcpus=1)
    state = snapshot(machine(nodes=2), there, instance("x", vcpus=1), observed={there.key: decided("1", "4")})
    assert planner.plan(state, SETTINGS).node_load == {0: 0.25, 1: 0.25}
    hot = replace(state, load=Load(cpus_by_instance={there.key: 3.0}))
    assert planner.plan(hot, SETTINGS).node_load == {0: 0.25, 1: 0.75}


def test_cpus_and_memory_are_needed_jointly() -> None:
    host = unequal(8, 1, 2, memory=(2 * GIB, 64 * GIB, 16 * GIB))
    # Node 0 alone has the CPUs and node 1 alone the memory: one node would do for each, none for both.
    assert place(snapshot(host, instance("x", vcpus=4, memory_bytes=60 * GIB))).nodes == NodeSet([0, 1])
    assert place(snapshot(host, instance("x", vcpus=2, memory_bytes=10 * GIB))).nodes == NodeSet([2])


def test_a_memory_only_node_adds_memory_and_is_never_given_vcpus() -> None:
    host = with_nodes(unequal(2, memory=(8 * GIB,)), Node(id=1, cpus=CpuSet(), memory_bytes=64 * GIB))
    found = place(snapshot(host, instance("x", vcpus=2, memory_bytes=20 * GIB)))
    assert (found.nodes, found.cpus) == (NodeSet([0, 1]), CpuSet([0, 1]))
    assert place(snapshot(host, instance("x", vcpus=2, memory_bytes=4 * GIB))).nodes == NodeSet([0])


def test_cpus_without_memory_need_a_second_node() -> None:
    host = unequal(4, 4, memory=(0, 8 * GIB))
    assert place(snapshot(host, instance("x", vcpus=2, memory_bytes=GIB))).nodes == NodeSet([1])
    assert place(snapshot(host, instance("x", vcpus=2))).nodes == NodeSet([0])


def test_memory_of_unknown_size_never_decides() -> None:
    host = unequal(2, 2, memory=(None, GIB))
    assert place(snapshot(host, instance("x", vcpus=1, memory_bytes=1 << 50))).nodes == NodeSet([0])


def test_committed_memory_keeps_new_instances_away() -> None:
    there = instance("a", vcpus=1, memory_bytes=20 * GIB)
    state = snapshot(
        unequal(4, 2), there, instance("x", vcpus=1, memory_bytes=20 * GIB), observed={there.key: decided("0", "0")}
    )
    assert place(state).nodes == NodeSet([1])


def test_wide_memory_makes_room_where_it_can() -> None:
    wide = instance("a", vcpus=4, memory_bytes=30 * GIB)
    host = unequal(2, 2)
    seen = {wide.key: decided("0-1", "0-3")}
    plan = planner.plan(snapshot(host, wide, instance("x", vcpus=1, memory_bytes=31 * GIB), observed=seen), SETTINGS)
    assert [(one.key.name, str(one.nodes)) for one in plan.placements] == [("a", "0-1"), ("x", "0")]


def test_memory_that_fits_nowhere_is_refused_with_the_numbers() -> None:
    found = refusal(snapshot(machine(nodes=2), instance("x", vcpus=1, memory_bytes=100 * GIB)))
    assert found.reason is Reason.NO_MEMORY
    assert found.detail == ("needs 100 GiB, all nodes together have 64 GiB uncommitted (most on node 0: 32 GiB)")


def test_more_vcpus_than_the_machine_has_get_the_whole_machine_and_a_warning() -> None:
    plan = planner.plan(snapshot(machine(), instance("x", vcpus=64)), SETTINGS)
    assert (plan.placements[0].nodes, plan.placements[0].cpus) == (NodeSet(range(4)), CpuSet(range(16)))
    assert plan.warnings == ("x: limits.cpu asks for 64 CPUs, the machine has 16 usable: it gets the whole machine",)
    assert plan.node_load == dict.fromkeys(range(4), 1.0)


def test_without_a_cpu_limit_it_counts_as_one_and_gets_all_cpus_of_its_node() -> None:
    plan = planner.plan(snapshot(machine(isolated="1"), instance("x")), SETTINGS)
    assert (plan.placements[0].nodes, plan.placements[0].cpus) == (NodeSet([1]), CpuSet(range(4, 8)))
    assert plan.node_load[1] == 0.25


def test_isolated_and_reserved_cpus_are_never_given() -> None:
    settings = replace(SETTINGS, reserved_cpus="4,8")
    found = place(snapshot(machine(isolated="0,12"), instance("x", vcpus=12)), settings=settings)
    assert found.cpus == CpuSet.parse("1-3,5-7,9-11,13-15")


def test_a_machine_without_usable_cpus_refuses() -> None:
    assert refusal(snapshot(machine(nodes=1, isolated="0-3"), instance("x"))).reason is Reason.NO_CPUS


def test_a_pin_is_respected_counted_and_recorded() -> None:
    plan = planner.plan(snapshot(machine(), instance("pin", pinned="2,5"), instance("x", vcpus=1)), SETTINGS)
    pin, other = plan.placements
    assert (pin.nodes, pin.cpus, pin.mems) == (NodeSet([0, 1]), CpuSet([2, 5]), None)
    assert other.nodes == NodeSet([2])
    assert plan.node_load == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.0}


def test_a_pin_to_cpus_that_are_not_online_is_refused() -> None:
    found = refusal(snapshot(machine(), instance("x", pinned="99")))
    assert (found.reason, found.detail) == (
        Reason.BAD_PIN,
        "limits.cpu asks for CPUs 99, none of which is online (0-15)",
    )


def test_a_bad_key_rejects_that_instance_and_no_other() -> None:
    bad = instance("bad", problems=(("user.numa.policy", "expected balanced"), ("limits.memory", "too much")))
    plan = planner.plan(snapshot(machine(), bad, instance("x", vcpus=1)), SETTINGS)
    assert [one.key.name for one in plan.placements] == ["x"]
    assert plan.rejections == (
        Rejection(
            key=bad.key, reason=Reason.BAD_KEY, detail="user.numa.policy: expected balanced; limits.memory: too much"
        ),
    )


def test_sparse_node_ids_above_64_are_placed_like_others() -> None:
    host = unequal(2, 2, 2, ids=(0, 70, 2000))
    assert place(snapshot(host, instance("x", vcpus=6))).nodes == NodeSet([0, 70, 2000])


@pytest.mark.parametrize("policy", [Policy.BALANCED, Policy.BEST_EFFORT])
def test_best_effort_is_balanced(policy: Policy) -> None:
    found = place(snapshot(machine(), instance("x", vcpus=6, policy=policy)))
    assert found.nodes == NodeSet([0, 1])


def test_single_numa_node_refuses_what_needs_two() -> None:
    found = refusal(snapshot(machine(), instance("x", vcpus=6, policy=Policy.SINGLE_NUMA_NODE)))
    assert (found.reason, found.detail) == (
        Reason.NOT_ONE_NODE,
        "policy single-numa-node, but 6 vCPUs need 2 nodes: the largest has 4 usable CPUs",
    )


def test_restricted_refuses_only_what_would_be_narrower_on_an_empty_machine() -> None:
    there = [instance(f"a{node}", vcpus=1, memory_bytes=20 * GIB) for node in range(2)]
    seen = {one.key: decided(str(node), str(4 * node)) for node, one in enumerate(there)}
    x = instance("x", vcpus=1, memory_bytes=20 * GIB, policy=Policy.RESTRICTED)
    found = refusal(snapshot(machine(nodes=2), x, *there, observed=seen))
    assert (found.reason, found.detail) == (
        Reason.NOT_NARROWEST,
        "policy restricted, but only 2 nodes have room for it now; 1 would do on an empty machine",
    )
    assert place(snapshot(machine(), instance("x", vcpus=6, policy=Policy.RESTRICTED))).nodes == NodeSet([0, 1])


def test_the_reason_counts_memory_only_nodes_where_they_are_used() -> None:
    host = with_nodes(unequal(2, memory=(8 * GIB,)), Node(id=1, cpus=CpuSet(), memory_bytes=64 * GIB))
    wide, narrow = (instance("x", vcpus=2, memory_bytes=size * GIB) for size in (20, 4))
    assert place(snapshot(host, wide)).reason.startswith("2 of 2 nodes hold 2 vCPUs and 20 GiB; ")
    assert place(snapshot(host, narrow)).reason.startswith("1 of 1 node hold 2 vCPUs and 4 GiB; ")


def test_policy_none_is_the_whole_machine() -> None:
    found = place(snapshot(machine(), instance("x", vcpus=1, policy=Policy.NONE)))
    assert (found.nodes, found.cpus, found.mems) == (NodeSet(range(4)), CpuSet(range(16)), None)


def test_what_it_has_is_kept_though_another_node_is_less_loaded() -> None:
    there = [instance("a", vcpus=4), instance("x", vcpus=2)]
    seen = {there[0].key: decided("0", "0-3"), key("x"): decided("0", "1,3")}
    found = place(snapshot(machine(), *there, observed=seen))
    assert (found.nodes, found.cpus, found.moved) == (NodeSet([0]), CpuSet([1, 3]), False)


def test_what_may_not_be_moved_is_not_narrowed() -> None:
    seen = {key("x"): decided("2-3", "8,10,12,14")}
    found = place(snapshot(machine(), instance("x", vcpus=4, movable=False), observed=seen))
    assert (found.nodes, found.cpus, found.moved) == (NodeSet([2, 3]), CpuSet([8, 10, 12, 14]), False)


def test_a_placement_wider_than_needed_is_given_up() -> None:
    found = place(snapshot(machine(), instance("x", vcpus=4), observed={key("x"): decided("2-3", "8-9,12-13")}))
    assert (len(found.nodes), found.moved) == (1, True)


def test_the_servers_choice_is_kept_where_it_costs_no_more() -> None:
    seen = {key("x"): Observed(nodes=NodeSet([2]), cpus=CpuSet([9, 11]))}
    found = place(snapshot(machine(), instance("x", vcpus=2), observed=seen))
    assert (found.nodes, found.cpus, found.moved) == (NodeSet([2]), CpuSet([9, 11]), False)


def test_a_record_that_the_server_does_not_follow_is_no_choice_of_its() -> None:
    left = Observed(nodes=NodeSet([2]), cpus=CpuSet(range(16)), followed=False)
    found = place(snapshot(machine(), instance("x", vcpus=2), observed={key("x"): left}))
    assert found.nodes == NodeSet([0])
    # What we decided and wrote is ours, whether the server follows it or not.
    ours = replace(left, decided=Decided(nodes=NodeSet([2]), cpus=CpuSet([9, 11])))
    found = place(snapshot(machine(), instance("x", vcpus=2), observed={key("x"): ours}))
    assert found.nodes == NodeSet([2])


def test_what_is_not_kept_on_its_record_counts_where_its_cpus_are() -> None:
    there = instance("a", vcpus=4, managed=False)
    seen = {there.key: Observed(nodes=NodeSet([2]), cpus=CpuSet(range(4)), followed=False)}
    state = snapshot(machine(), there, observed=seen)
    assert planner.plan(state, SETTINGS).node_load == {0: 1, 1: 0, 2: 0, 3: 0}
    kept = snapshot(machine(), there, observed={there.key: replace(seen[there.key], followed=True)})
    assert planner.plan(kept, SETTINGS).node_load == {0: 0, 1: 0, 2: 1, 3: 0}


def test_the_servers_choice_is_left_where_it_costs_more() -> None:
    there = instance("a", vcpus=1)
    seen = {there.key: decided("2", "8"), key("x"): Observed(nodes=NodeSet([2]), cpus=CpuSet([9, 11]))}
    found = place(snapshot(machine(), there, instance("x", vcpus=2), observed=seen))
    assert (found.nodes, found.moved) == (NodeSet([0]), False)


def test_raised_limits_move_the_smaller_instance_off_an_overfull_node() -> None:
    big, small = instance("big", vcpus=1, memory_bytes=25 * GIB), instance("small", vcpus=1, memory_bytes=15 * GIB)
    seen = {big.key: decided("0", "0"), small.key: decided("0", "2")}
    plan = planner.plan(snapshot(machine(), big, small, observed=seen), SETTINGS)
    assert [(one.key.name, str(one.nodes), one.moved) for one in plan.placements] == [
        ("big", "0", False),
        ("small", "1", True),
    ]


def test_an_offline_cpu_is_replaced_and_the_others_stay() -> None:
    host = replace(machine(), online=CpuSet(range(16)) - CpuSet([2]))
    found = place(snapshot(host, instance("x", vcpus=2), observed={key("x"): decided("0", "0,2")}))
    assert (found.nodes, found.cpus) == (NodeSet([0]), CpuSet([0, 3]))


def test_a_refused_running_instance_still_counts_where_it_is() -> None:
    x = instance("x", vcpus=2, memory_bytes=100 * GIB)
    plan = planner.plan(snapshot(machine(nodes=2), x, observed={x.key: decided("1", "4,6")}), SETTINGS)
    assert (plan.placements, plan.node_load) == ((), {0: 0.0, 1: 0.5})


def test_only_decides_about_the_named_and_counts_the_rest() -> None:
    state = snapshot(
        machine(), instance("a", vcpus=4), instance("x", vcpus=1), observed={key("a"): decided("0", "0-3")}
    )
    plan = planner.plan(state, SETTINGS, only=frozenset([key("x")]))
    assert [(one.key.name, str(one.nodes)) for one in plan.placements] == [("x", "1")]


def test_larger_demands_are_placed_first() -> None:
    small = [instance(f"a{index}", vcpus=1) for index in range(4)]
    plan = planner.plan(snapshot(machine(), *small, instance("x", vcpus=8)), SETTINGS)
    nodes = {one.key.name: str(one.nodes) for one in plan.placements}
    assert nodes["x"] == "0-1"
    assert sorted(nodes[one.key.name] for one in small) == ["2", "2", "3", "3"]


def test_memory_none_still_counts_as_memory() -> None:
    x = instance("x", vcpus=1, memory_bytes=40 * GIB, memory=MemoryMode.NONE)
    assert len(place(snapshot(machine(), x)).nodes) == 2


def test_a_plan_applied_is_a_plan_kept() -> None:
    state = snapshot(machine(), *(instance(f"i{size}", vcpus=size) for size in range(1, 9)))
    first = planner.plan(state, SETTINGS)
    second = planner.plan(replace(state, observed=settled(first)), SETTINGS)
    assert [(one.nodes, one.cpus) for one in second.placements] == [(one.nodes, one.cpus) for one in first.placements]


def test_an_instance_too_large_for_the_machine_keeps_nobody_else_out() -> None:
    plan = planner.plan(
        snapshot(machine(), instance("x", memory_bytes=GIB), instance("huge", vcpus=8, memory_bytes=999 * GIB)),
        SETTINGS,
    )
    assert [one.key.name for one in plan.placements] == ["x"]
    assert [one.key.name for one in plan.rejections] == ["huge"]


def test_what_is_refused_is_refused_again_and_what_is_placed_stays() -> None:
    sizes = {"i0": 1, "i1": 3, "i2": 6}
    host = machine(nodes=1, memory_bytes=8 * GIB)
    state = snapshot(host, *(instance(name, memory_bytes=size * GIB) for name, size in sizes.items()))
    first = planner.plan(state, SETTINGS)
    second = planner.plan(replace(state, observed=settled(first)), SETTINGS)
    assert [one.key.name for one in first.placements] == [one.key.name for one in second.placements] == ["i0", "i2"]


def test_cpus_are_chosen_by_name_whatever_the_order_of_the_list() -> None:
    both = [instance("a", vcpus=1), instance("b", vcpus=1)]
    seen = {one.key: replace(decided("0", ""), cpus=None) for one in both}
    plans = [planner.plan(snapshot(machine(), *order, observed=seen), SETTINGS) for order in (both, both[::-1])]
    assert [[str(one.cpus) for one in plan.placements] for plan in plans] == [["0", "2"], ["0", "2"]]


def test_a_refused_instance_is_counted_where_it_runs_while_others_are_placed() -> None:
    refused = instance("refused", vcpus=2, memory_bytes=1000 * GIB)
    there = {refused.key: Observed(nodes=NodeSet([0]), cpus=CpuSet([0, 1]))}
    plan = planner.plan(snapshot(machine(), refused, instance("x", vcpus=4), observed=there), SETTINGS)
    assert [one.key.name for one in plan.rejections] == ["refused"]
    assert [one.nodes for one in plan.placements] == [NodeSet([1])]
    assert plan.node_load == {0: 0.5, 1: 1.0, 2: 0.0, 3: 0.0}


def test_the_servers_own_cpus_are_kept_where_they_are_as_good() -> None:
    mine = instance("x", vcpus=2)
    there = {mine.key: Observed(nodes=NodeSet([2]), cpus=CpuSet([9, 11]))}
    found = place(snapshot(machine(), mine, observed=there))
    assert (found.nodes, found.cpus) == (NodeSet([2]), CpuSet([9, 11]))


def test_the_servers_own_cpus_are_replaced_where_they_share_a_core_without_need() -> None:
    mine = instance("x", vcpus=2)
    there = {mine.key: Observed(nodes=NodeSet([2]), cpus=CpuSet([8, 9]))}
    found = place(snapshot(machine(), mine, observed=there))
    assert (found.nodes, found.cpus) == (NodeSet([2]), CpuSet([8, 10]))


def test_a_cpu_that_a_broken_table_gives_to_several_nodes_counts_once() -> None:
    built = machine(nodes=2, cpus_per_node=8)
    one, other = built.nodes
    overlapping = replace(built, nodes=(replace(one, cpus=one.cpus | CpuSet(range(8, 12))), other))
    found = place(snapshot(overlapping, instance("x", vcpus=14)))
    assert len(found.cpus) == 14
