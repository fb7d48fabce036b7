"""What holds for every plan on every machine, against independent and slower ways to compute it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from random import Random

from hypothesis import assume, given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.machine import Machine
from incus_numa.model.plan import MovePages, PatchNodes, Placement, Plan, Reason, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner, steps
from incus_numa.policy.check import check_plan
from incus_numa.settings import PlacementSettings
from tests import strategies
from tests.builders import LARGE_PAGE, SMALL_PAGE, instance, machine, settled, snapshot

SETTINGS = PlacementSettings()
PLENTY = 1 << 90


def usable(host: Machine) -> dict[int, set[int]]:
    return {node.id: {cpu for cpu in node.cpus if cpu not in host.isolated} for node in host.nodes}


def flows(sizes: Mapping[int, int], loads: Iterable[tuple[frozenset[int], int]]) -> bool:
    """Whether memory of sets of nodes can be laid out within the sizes: Hall's condition over all subsets of nodes."""
    demands = list(loads)
    for count in range(1, len(sizes) + 1):
        for chosen in combinations(sizes, count):
            inside = sum(size for nodes, size in demands if nodes <= set(chosen))
            if inside > sum(sizes[node] for node in chosen):
                return False
    return True


def sizes_of(host: Machine) -> dict[int, int]:
    """Memory for instances: what is set aside for huge pages and kept for the host is not."""
    return {
        node.id: PLENTY
        if node.memory_bytes is None
        else node.memory_bytes - sum(node.hugepages.values()) - node.reserved_bytes
        for node in host.nodes
    }


def pages_of(host: Machine, size: int) -> dict[int, int]:
    return {node.id: node.hugepages.get(size, 0) for node in host.nodes}


def apply(before: Snapshot, plan: Plan) -> Snapshot:
    return replace(before, observed={**before.observed, **settled(plan)})


def where(plan: Plan) -> dict[InstanceKey, tuple[NodeSet, CpuSet, NodeSet | None]]:
    return {one.key: (one.nodes, one.cpus, one.mems) for one in plan.placements}


@given(strategies.snapshots(), st.sampled_from(["spread", "pack"]))
def test_a_plan_is_always_sound_and_answers_for_every_managed_instance(state: Snapshot, smt: str) -> None:
    settings = replace(SETTINGS, smt="pack" if smt == "pack" else "spread")
    plan = planner.plan(state, settings)
    assert check_plan(plan, state, settings) == ()
    answered = [one.key for one in plan.placements] + [one.key for one in plan.rejections]
    assert sorted(answered) == sorted(one.key for one in state.instances if one.managed)


@given(strategies.machines(max_nodes=6, known_memory=True), strategies.instances("x", plain=True))
def test_one_instance_gets_the_cheapest_of_the_narrowest_sets(host: Machine, one: Instance) -> None:
    plan = planner.plan(snapshot(host, one), SETTINGS)
    own = usable(host)
    cpus = min(one.demand.vcpus or 1, sum(map(len, own.values())))
    sets: list[tuple[int, float, tuple[int, ...]]] = []
    for count in range(1, len(own) + 1):
        for chosen in combinations(own, count):
            memory = sum(sizes_of(host)[node] for node in chosen)
            have = sum(len(own[node]) for node in chosen)
            if have >= cpus and memory >= (one.demand.memory_bytes or 0):
                sets.append((count, reference_cost(host, chosen, have, {}, one, cpus), chosen))
    if not sets:
        assert [refused.reason for refused in plan.rejections] == [Reason.NO_MEMORY]
        return
    assert tuple(plan.placements[0].nodes) == min(sets)[2]


def reference_cost(
    host: Machine, nodes: tuple[int, ...], have: int, load: Mapping[int, float], one: Instance, cpus: int
) -> float:
    """The cost of scoring's docstring, from the machine's distances alone."""
    known = [d for a in host.nodes for b, d in a.distances.items() if b != a.id]
    far = max(known, default=10)
    pairs = [host.node_by_id[a].distances.get(b, far) / 10 - 1 for a in nodes for b in nodes if a != b]
    weight = one.demand.weight * cpus / (one.demand.vcpus or 1)
    own = usable(host)
    loads = [load.get(node, 0.0) for node in nodes if own[node]]
    mean = sum(pairs) / len(pairs) if pairs else 0.0
    committed = sum(load.get(node, 0.0) * len(cpus) for node, cpus in own.items())
    full, highest = max(1.0, (committed + weight) / sum(map(len, own.values()))), max(loads) + weight / have
    total = SETTINGS.load_weight * (highest + 9 * max(0.0, highest - full)) + SETTINGS.distance_weight * mean
    return round(total, 9)


@given(strategies.snapshots(plain=True, known_memory=True, max_instances=7), strategies.instances("new", plain=True))
def test_a_new_instance_gets_the_cheapest_of_the_narrowest_sets_beside_others(state: Snapshot, new: Instance) -> None:
    first = planner.plan(state, SETTINGS)
    assume(not first.rejections)
    after = apply(replace(state, instances=(*state.instances, new)), first)
    plan = planner.plan(after, SETTINGS, only=frozenset([new.key]))
    host, own, size = state.machine, usable(state.machine), new.demand.memory_bytes or 0
    demand = {one.key: one.demand for one in state.instances}
    there = [(frozenset(one.nodes), demand[one.key].memory_bytes or 0) for one in first.placements]
    cpus = min(new.demand.vcpus or 1, sum(map(len, own.values())))
    for count in range(1, len(own) + 1):
        sets = []
        for chosen in combinations(own, count):
            have = sum(len(own[node]) for node in chosen)
            if have >= cpus and flows(sizes_of(host), [*there, (frozenset(chosen), size)]):
                loads = [first.node_load[node] for node in chosen if own[node]]
                cost = reference_cost(host, chosen, have, first.node_load, new, cpus)
                sets.append((cost, round(sum(loads) / len(loads), 9), chosen))
        if sets:
            best = min(sets)
            found = tuple(plan.placements[0].nodes)
            # Sums in another order may round another way, so only the cost of equally cheap sets is compared.
            assert abs(next(cost for cost, _, chosen in sets if chosen == found) - best[0]) < 1e-6
            return
    assert [refused.reason for refused in plan.rejections] == [Reason.NO_MEMORY]


@given(strategies.snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_instances_never_matters(state: Snapshot, random: Random) -> None:
    shuffled = list(state.instances)
    random.shuffle(shuffled)
    assert planner.plan(replace(state, instances=tuple(shuffled)), SETTINGS) == planner.plan(state, SETTINGS)


@given(strategies.snapshots())
def test_planning_twice_changes_nothing(state: Snapshot) -> None:
    first = planner.plan(state, SETTINGS)
    second = planner.plan(apply(state, first), SETTINGS)
    assert where(second) == where(first)
    # The reason may differ: what did not fit one node may fit nowhere once all others are placed.
    assert [one.key for one in second.rejections] == [one.key for one in first.rejections]
    assert not any(one.moved for one in second.placements)
    assert second.node_load == first.node_load


@st.composite
def anywhere(draw: st.DrawFn) -> Snapshot:
    """Instances that have placements which we may not have chosen: too wide, overfull, shared, or illegal by now."""
    state = draw(strategies.snapshots())
    ids = [node.id for node in state.machine.nodes]
    observed = {}
    for one in state.instances:
        kind = draw(st.sampled_from(["nothing", "server", "decided", "decided"]))
        nodes = NodeSet(draw(st.lists(st.sampled_from(ids), min_size=1, max_size=len(ids))))
        own = [cpu for node in nodes for cpu in state.machine.node_by_id[node].cpus]
        cpus = CpuSet(draw(st.lists(st.sampled_from(own), max_size=len(own)))) if own else CpuSet()
        if kind != "nothing":
            choice = Decided(nodes=nodes, cpus=cpus or None) if kind == "decided" else None
            observed[one.key] = Observed(nodes=nodes, cpus=cpus or None, mems=NodeSet(), decided=choice)
    return replace(state, observed=observed)


@given(anywhere(), st.randoms(use_true_random=False))
def test_the_order_never_matters_wherever_instances_are_found(state: Snapshot, random: Random) -> None:
    shuffled = list(state.instances)
    random.shuffle(shuffled)
    assert planner.plan(replace(state, instances=tuple(shuffled)), SETTINGS) == planner.plan(state, SETTINGS)


@given(anywhere())
def test_one_plan_is_enough_wherever_instances_are_found(state: Snapshot) -> None:
    first = planner.plan(state, SETTINGS)
    assert check_plan(first, state, SETTINGS) == ()
    second = planner.plan(apply(state, first), SETTINGS)
    assert where(second) == where(first)


@given(strategies.snapshots(), strategies.instances("new"))
def test_adding_an_instance_never_changes_another(state: Snapshot, new: Instance) -> None:
    new = replace(new, managed=True, demand=replace(new.demand, pinned_cpus=None, exclusive=False))
    before = apply(state, planner.plan(state, SETTINGS))
    old = where(planner.plan(before, SETTINGS))
    plan = planner.plan(replace(before, instances=(*before.instances, new)), SETTINGS)
    assert {key: value for key, value in where(plan).items() if key != new.key} == old


@given(strategies.snapshots(), strategies.instances("new"))
def test_not_even_an_unmanaged_or_pinned_instance_moves_another(state: Snapshot, new: Instance) -> None:
    before = apply(state, planner.plan(state, SETTINGS))
    new = replace(new, managed=False)
    ids = NodeSet([state.machine.nodes[0].id])
    observed = {**before.observed, new.key: Observed(nodes=ids, cpus=state.machine.nodes[0].cpus or None)}
    plan = planner.plan(replace(before, instances=(*before.instances, new), observed=observed), SETTINGS)
    # Exclusive CPUs that are pinned now are exclusive no longer, so their owner has to go.
    pinned = new.demand.pinned_cpus or CpuSet()
    owners = {one.key for one in state.instances if one.managed and one.demand.exclusive}
    assume(not any(key in owners and seen.cpus and seen.cpus & pinned for key, seen in before.observed.items()))
    assert not any(one.moved for one in plan.placements)


@given(strategies.snapshots(), strategies.instances("new"), st.integers(1, 6))
def test_adding_an_owner_of_cpus_leaves_others_their_nodes_and_as_many_cpus(
    state: Snapshot, new: Instance, vcpus: int
) -> None:
    demand = replace(new.demand, vcpus=vcpus, pinned_cpus=None, exclusive=True)
    new = replace(new, managed=True, policy=Policy.BALANCED, demand=demand)
    before = apply(state, planner.plan(state, SETTINGS))
    plan = planner.plan(replace(before, instances=(*before.instances, new)), SETTINGS)
    counted = {one.key for one in state.instances if one.demand.vcpus is not None and one.policy is not Policy.NONE}

    def kept(one: Plan) -> dict[InstanceKey, tuple[NodeSet, int]]:
        return {
            place.key: (place.nodes, len(place.cpus) if place.key in counted else 0)
            for place in one.placements
            if place.key != new.key
        }

    assert kept(plan) == kept(planner.plan(before, SETTINGS))


@given(strategies.snapshots())
def test_looking_at_one_instance_gives_what_the_full_plan_gives(state: Snapshot) -> None:
    before = apply(state, planner.plan(state, SETTINGS))
    full = planner.plan(before, SETTINGS)
    for one in full.placements:
        assert planner.plan(before, SETTINGS, only=frozenset([one.key])).placements == (one,)


@given(strategies.snapshots(plain=True))
def test_node_load_is_the_weight_spread_over_the_nodes_by_usable_cpus(state: Snapshot) -> None:
    plan = planner.plan(state, SETTINGS)
    own = usable(state.machine)
    total = sum(map(len, own.values()))
    placed = {one.key: one.nodes for one in plan.placements}
    expected = {node: 0.0 for node, cpus in own.items() if cpus}
    for one in state.instances:
        asked = one.demand.vcpus or 1
        weight = one.demand.weight * min(asked, total) / asked
        nodes = placed.get(one.key, NodeSet(own))
        have = sum(len(own[node]) for node in nodes)
        for node in nodes:
            if own[node]:
                expected[node] += weight * len(own[node]) / have / len(own[node])
    assert plan.node_load.keys() == expected.keys()
    assert all(abs(plan.node_load[node] - load) < 1e-6 for node, load in expected.items())


@given(strategies.snapshots(plain=True), st.sampled_from(["spread", "pack"]))
def test_cpus_are_as_many_as_asked_and_even_over_the_nodes(state: Snapshot, smt: str) -> None:
    plan = planner.plan(state, replace(SETTINGS, smt="pack" if smt == "pack" else "spread"))
    own = usable(state.machine)
    by_key = {one.key: one for one in state.instances}
    for placement in plan.placements:
        vcpus = by_key[placement.key].demand.vcpus
        have = {node: own[node] for node in placement.nodes if own[node]}
        room = sum(map(len, have.values()))
        assert len(placement.cpus) == (room if vcpus is None else min(vcpus, sum(map(len, own.values()))))
        used = {node: len(cpus & set(placement.cpus)) for node, cpus in have.items()}
        for node, amount in used.items():
            assert amount == len(own[node]) or amount >= max(used.values()) - 1


def shared_beside_idle(state: Snapshot, placements: Iterable[Placement]) -> list[str]:
    """Cores of a placement that are used twice while another usable core of the same node is used by nobody."""
    own = usable(state.machine)
    core = {cpu.id: cpu.core for cpu in state.machine.cpus}
    found, everyone = [], list(placements)
    for node, cpus in own.items():
        # Who may run on all CPUs of a node has chosen none of them.
        chosen = [set(one.cpus) & cpus for one in everyone if not cpus <= set(one.cpus)]
        users: dict[int, int] = {}
        for mine in chosen:
            for cpu in mine:
                users[core[cpu]] = users.get(core[cpu], 0) + 1
        if {core[cpu] for cpu in cpus} - users.keys():
            found += [f"node {node} core {one}" for one, count in users.items() if count > 1]
    return found


@given(strategies.snapshots(plain=True))
def test_no_core_is_shared_while_another_of_the_node_stays_idle(state: Snapshot) -> None:
    plan = planner.plan(state, SETTINGS)
    assert shared_beside_idle(state, plan.placements) == []


@given(strategies.snapshots(plain=True), st.data())
def test_cores_that_others_leave_are_used(state: Snapshot, data: st.DataObject) -> None:
    after = apply(state, planner.plan(state, SETTINGS))
    gone = data.draw(st.sets(st.sampled_from([one.key for one in state.instances])))
    left = replace(after, instances=tuple(one for one in after.instances if one.key not in gone))
    plan = planner.plan(left, SETTINGS)
    assert shared_beside_idle(left, plan.placements) == []


@given(strategies.snapshots(plain=True, known_memory=True))
def test_accepted_memory_always_fits_the_nodes(state: Snapshot) -> None:
    plan = planner.plan(state, SETTINGS)
    size = {one.key: one.demand.memory_bytes or 0 for one in state.instances}
    assume(not plan.rejections)
    assert flows(sizes_of(state.machine), [(frozenset(one.nodes), size[one.key]) for one in plan.placements])


@given(strategies.snapshots())
def test_memory_and_huge_pages_are_never_overcommitted_in_any_mix(state: Snapshot) -> None:
    plan, by_key = planner.plan(state, SETTINGS), {one.key: one for one in state.instances}
    firm = [
        (frozenset(place.nodes), by_key[place.key].demand)
        for place in plan.placements
        if by_key[place.key].policy is not Policy.NONE and by_key[place.key].demand.pinned_cpus is None
    ]
    limits = [(nodes, 0 if one.memory_is_usage else one.memory_bytes or 0) for nodes, one in firm]
    assert flows(sizes_of(state.machine), limits)
    for size in (SMALL_PAGE, LARGE_PAGE):
        assert flows(pages_of(state.machine, size), [(nodes, one.hugepages.get(size, 0)) for nodes, one in firm])


@given(strategies.snapshots(), st.sampled_from(["spread", "pack"]))
def test_exclusive_cpus_are_nobody_elses_and_what_is_left_is_shared_evenly(state: Snapshot, smt: str) -> None:
    plan = planner.plan(state, replace(SETTINGS, smt="pack" if smt == "pack" else "spread"))
    by_key = {one.key: one for one in state.instances}
    owned = [cpu for place in plan.placements if place.exclusive for cpu in place.cpus]
    assert len(owned) == len(set(owned))
    left = {node: cpus - set(owned) for node, cpus in usable(state.machine).items()}
    pinned = {cpu for one in by_key.values() for cpu in one.demand.pinned_cpus or ()}
    for place in plan.placements:
        demand, mine = by_key[place.key].demand, set(place.cpus)
        if place.exclusive:
            assert len(mine) == demand.vcpus
        elif demand.pinned_cpus is None:
            assert mine
            assert not mine & set(owned)
        # More of an owner's CPUs would be on a node that still has some that nobody else may need for himself.
        free = {node: left[node] - (pinned if place.exclusive else mine) for node in place.nodes}
        used = {node: len(mine & usable(state.machine)[node]) for node in place.nodes}
        if demand.pinned_cpus is None:
            assert all(not free[node] or amount >= max(used.values()) - 1 for node, amount in used.items())


@given(strategies.snapshots(plain=True, max_instances=4))
def test_stricter_policies_only_refuse(state: Snapshot) -> None:
    usual = where(planner.plan(state, SETTINGS))
    for policy in (Policy.RESTRICTED, Policy.SINGLE_NUMA_NODE, Policy.BEST_EFFORT):
        strict = tuple(replace(one, policy=policy) for one in state.instances[:1])
        plan = planner.plan(replace(state, instances=strict), SETTINGS)
        alone = planner.plan(replace(state, instances=state.instances[:1]), SETTINGS)
        assert where(plan) in (where(alone), {})
        assert policy is not Policy.BEST_EFFORT or where(plan) == where(alone)
    assert len(usual) <= len(state.instances)


@given(anywhere(), st.data())
def test_every_prefix_of_the_steps_is_legal(state: Snapshot, data: st.DataObject) -> None:
    ids = sorted(state.machine.node_by_id)
    sizes = st.none() | st.dictionaries(st.sampled_from(ids), st.integers(0, 4 * steps.PACED_BYTES))
    mems = {key: data.draw(st.sampled_from([None, NodeSet(), seen.nodes])) for key, seen in state.observed.items()}
    state = replace(
        state,
        observed={key: replace(seen, mems=mems[key], memory=data.draw(sizes)) for key, seen in state.observed.items()},
    )
    plan = planner.plan(state, SETTINGS)
    for placement in plan.placements:
        seen = state.observed.get(placement.key, Observed())
        now, todo = seen, steps.diff_one(placement, seen, state.machine.memory_nodes)
        for step in todo:
            after = step_applied(now, step)
            assert after != now, "a step that changes nothing"
            if not isinstance(step, MovePages):
                assert step.before == (
                    now.nodes if isinstance(step, PatchNodes) else now.cpus if isinstance(step, WriteCpus) else now.mems
                )
            else:
                assert now.cpus == placement.cpus, "memory follows when the CPUs are there"
            assert after.cpus is None or after.cpus
            if isinstance(step, WriteCpus) and now.mems and not state.machine.memory_nodes <= now.mems:
                assert placement.mems is not None
                assert placement.mems <= now.mems
            now = after
        assert steps.diff_one(placement, now, state.machine.memory_nodes) == ()


def step_applied(now: Observed, step: Step) -> Observed:
    if isinstance(step, PatchNodes):
        return replace(now, nodes=step.nodes)
    if isinstance(step, WriteCpus):
        return replace(now, cpus=step.cpus)
    if isinstance(step, MovePages):
        assert now.memory is not None
        stays = {node: size for node, size in now.memory.items() if node not in step.sources}
        return replace(now, memory=stays | {step.targets.lowest(): step.size_bytes})
    assert isinstance(step, WriteMems)
    return replace(now, mems=step.mems)


def test_the_strategies_reach_every_kind_of_answer() -> None:
    """A guard on the tests above: instances that fit nowhere are drawn, too."""
    plan = planner.plan(snapshot(machine(nodes=1), instance("x", memory_bytes=1 << 50)), SETTINGS)
    assert [one.reason for one in plan.rejections] == [Reason.NO_MEMORY]
