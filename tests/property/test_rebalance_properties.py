"""What holds for moves by measured load on every machine: they end, nothing comes back, and all stays legal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey, MemoryMode, Policy
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.model.rebalance import Decision, History
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.check import check_plan
from incus_numa.policy.rebalance import decision
from incus_numa.settings import PlacementSettings, RebalanceSettings
from tests import strategies
from tests.builders import GIB, instance
from tests.property.test_planner_properties import flows, pages_of, sizes_of

PLACEMENT = PlacementSettings()
LIMITS = RebalanceSettings()
PASSES = 100


@st.composite
def busy_hosts(draw: st.DrawFn) -> Snapshot:
    """Instances at rest, all placed, some of them piled up on few nodes, with drawn load and memory."""
    drawn = draw(strategies.snapshots(max_instances=3))
    ids = list(drawn.machine.node_by_id)
    small = tuple(draw(small_instances(f"s{index}", ids)) for index in range(draw(st.integers(1, 8))))
    state = carried_out(replace(drawn, instances=(*drawn.instances, *small)), None)
    pile = st.none() | st.sets(st.sampled_from(ids[:3]), min_size=1, max_size=2)
    for one in small:
        nodes = draw(pile)
        if nodes is not None and one.key in state.observed:
            decided = Decided(nodes=NodeSet(nodes))
            state = replace(state, observed={**state.observed, one.key: Observed(decided=decided)})
    for _ in range(5):
        before, state = state, carried_out(state, None)
        if before == state:
            break
    assume(before == state)
    busy = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 2.0, 3.5, 8.0])
    known = [one.key for one in state.instances if draw(st.integers(0, 7))]
    load = Load(
        cpus_by_instance={key: draw(busy) for key in known},
        other_by_node={node: draw(st.sampled_from([0.0, 0.0, 0.3, 2.0])) for node in ids},
    )
    amounts = st.none() | st.dictionaries(st.sampled_from(ids), st.integers(0, 4 * GIB), max_size=2)
    observed = {key: replace(seen, memory=draw(amounts)) for key, seen in sorted(state.observed.items())}
    return replace(state, load=load, observed=observed)


@st.composite
def small_instances(draw: st.DrawFn, name: str, ids: list[int]) -> Instance:
    """Most of them can be moved, and some belong together or are wide."""
    return instance(
        name,
        vcpus=draw(st.sampled_from([1, 1, 1, 2, 5, 9])),
        memory_bytes=draw(st.sampled_from([None, None, GIB, 3 * GIB])),
        memory_is_usage=draw(st.booleans()),
        group=draw(st.sampled_from([None, None, None, "g"])),
        avoid=draw(st.sampled_from([(), (), (), ("g",)])),
        device_nodes=NodeSet(draw(st.sets(st.sampled_from(ids), max_size=1)) if draw(st.integers(0, 5)) == 0 else ()),
        memory=draw(st.sampled_from(list(MemoryMode))),
        movable=draw(st.integers(0, 9)) > 0,
    )


def carried_out(state: Snapshot, plan: Plan | None) -> Snapshot:
    """What is observed once a plan (None: the planner's) was carried out; memory has followed to the nodes."""
    observed = dict(state.observed)
    for one in (plan or planner.plan(state, PLACEMENT)).placements:
        before = observed.get(one.key, Observed())
        memory = before.memory
        if memory is not None and before.decided is not None and before.decided.nodes != one.nodes:
            memory = {one.nodes.lowest(): sum(memory.values())}
        observed[one.key] = Observed(
            nodes=one.nodes,
            cpus=one.cpus,
            mems=one.mems or NodeSet(),
            decided=Decided(nodes=one.nodes, cpus=one.cpus),
            memory=memory,
        )
    return replace(state, observed=observed)


def decide(state: Snapshot, limits: RebalanceSettings = LIMITS, history: History | None = None) -> Decision:
    return decision.decide(state, history or History(), 1e6, PLACEMENT, limits, forced=True)


def nodes_of(state: Snapshot) -> Mapping[InstanceKey, NodeSet]:
    """Where instances are: decided, pinned, else anywhere."""
    found = {}
    for one in state.instances:
        decided = state.observed.get(one.key, Observed()).decided
        if one.demand.pinned_cpus is not None:
            found[one.key] = state.machine.nodes_of(one.demand.pinned_cpus)
        elif decided is not None:
            found[one.key] = decided.nodes
        else:
            found[one.key] = NodeSet(state.machine.node_by_id)
    return found


def potential_of(state: Snapshot) -> float:
    """Phi, from the words of its definition."""
    owned: set[int] = set()
    owners = set()
    for one in state.instances:
        decided = state.observed.get(one.key, Observed()).decided
        is_owner = one.managed and one.demand.exclusive and one.demand.vcpus is not None
        if is_owner and one.policy is not Policy.NONE and one.demand.pinned_cpus is None and decided and decided.cpus:
            owners.add(one.key)
            owned |= set(decided.cpus)
    host = state.machine
    sizes = {
        node.id: len([cpu for cpu in node.cpus if cpu not in host.isolated and cpu not in owned]) for node in host.nodes
    }
    busy = {node: state.load.other_by_node.get(node, 0.0) for node, size in sizes.items() if size}
    total = 0.0
    for key, nodes in nodes_of(state).items():
        cpus = state.load.cpus_by_instance.get(key, 0.0)
        count = sum(sizes[node] for node in nodes)
        if key in owners or not count:
            continue
        for node in nodes:
            if sizes[node]:
                busy[node] += cpus * sizes[node] / count
        total += cpus * PLACEMENT.distance_weight * mean_distance(host, nodes)
    return total + sum(amount * amount / sizes[node] for node, amount in busy.items())


def mean_distance(host: Machine, nodes: NodeSet) -> float:
    known = [value for node in host.nodes for other, value in node.distances.items() if other != node.id]
    far = max(known, default=10)
    pairs = [host.node_by_id[a].distances.get(b, far) / 10 - 1 for a in nodes for b in nodes if a != b]
    return sum(pairs) / len(pairs) if pairs else 0.0


def memory_fits(state: Snapshot) -> bool:
    """Whether limits and use of all that have a place can be laid out on their nodes, huge pages, too."""
    where = nodes_of(state)
    placed = [one for one in state.instances if state.observed.get(one.key, Observed()).decided is not None]
    loads = [(frozenset(where[one.key]), one.demand.memory_bytes or 0) for one in placed]
    if not flows(sizes_of(state.machine), loads):
        return False
    return all(
        flows(
            pages_of(state.machine, size), [(frozenset(where[a.key]), a.demand.hugepages.get(size, 0)) for a in placed]
        )
        for size in {size for node in state.machine.nodes for size in node.hugepages}
    )


@given(busy_hosts(), st.sampled_from([1, 2, 10]), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([0.0, 0.005, 0.2]))
def test_the_potential_falls_by_the_gain_of_the_moves_and_each_gains_more_than_it_costs(
    state: Snapshot, most: int, move_price: float, gib_price: float
) -> None:
    limits = replace(LIMITS, max_moves=most, move_price=move_price, gib_price=gib_price)
    found = decide(state, limits)
    fell = potential_of(state) - potential_of(carried_out(state, found.plan))
    assert sum(move.gain for move in found.moves) == pytest.approx(fell, abs=1e-6)
    assert all(move.gain > move.price >= move_price for move in found.moves)
    assert all(
        move.price == pytest.approx(price_of(state, move.size_bytes, move.distance, limits)) for move in found.moves
    )


def price_of(state: Snapshot, size: int, distance: float | None, limits: RebalanceSettings) -> float:
    """A pair of unknown distance counts as the farthest known one; such machines know none here."""
    return limits.move_price + limits.gib_price * size / GIB * (distance or 10) / 10


@given(busy_hosts(), st.integers(1, 4), st.integers(0, 8 * GIB))
def test_the_budget_is_never_exceeded(state: Snapshot, moves: int, size: int) -> None:
    found = decide(state, replace(LIMITS, max_moves=moves, max_bytes=size))
    assert len(found.moves) <= moves
    followed = [move.size_bytes for move in found.moves if move.size_bytes]
    assert len(followed) == 1 or sum(followed) <= size


@given(busy_hosts(), st.sampled_from([1, 3, 10]), st.sampled_from([0.02, 0.3]))
def test_constant_load_ends_in_a_fixed_point_and_stays_there(state: Snapshot, most: int, move_price: float) -> None:
    limits = replace(LIMITS, max_moves=most, move_price=move_price)
    first, history, now_s = potential_of(state), History(), 0.0
    moves, seen, quiet = 0, [nodes_of(state)], 0
    while quiet < PASSES:
        found = decision.decide(state, history, now_s, PLACEMENT, limits)
        history = found.history
        state = carried_out(state, found.plan)
        now_s += limits.hold_s if quiet < PASSES // 2 else limits.cooldown_s
        moves += len(found.moves)
        quiet = 0 if found.moves else quiet + 1
        if found.moves:
            assert nodes_of(state) not in seen
            seen.append(nodes_of(state))
        assert moves <= first / move_price
    # The planner agrees: it moves nobody back.
    planned = carried_out(state, None)
    before, after = nodes_of(state), nodes_of(planned)
    assert all(after[key] == nodes or len(after[key]) < len(nodes) for key, nodes in before.items())


@given(busy_hosts(), st.data())
def test_who_may_not_move_does_not(state: Snapshot, data: st.DataObject) -> None:
    keys = [one.key for one in state.instances]
    cooling = data.draw(st.sets(st.sampled_from(keys), max_size=2))
    asked = data.draw(st.none() | st.frozensets(st.sampled_from(keys)))
    history = History(moved_at_s=dict.fromkeys(sorted(cooling), 1e6 - LIMITS.cooldown_s / 2))
    found = decision.decide(state, history, 1e6, PLACEMENT, LIMITS, forced=True, only=asked)
    moved = {move.key for move in found.moves}
    may = {
        one.key
        for one in state.instances
        if one.managed
        and one.movable
        and one.policy is not Policy.NONE
        and one.demand.pinned_cpus is None
        and not one.demand.exclusive
        and one.key in state.load.cpus_by_instance
        and one.key in state.observed
    }
    assert moved <= may - cooling
    assert asked is None or moved <= asked
    assert not moved & {one.key for one in found.held}
    assert {one.key for one in found.held} <= {one.key for one in state.instances if one.managed}


@given(busy_hosts())
def test_memory_limits_hold_after_moves_as_before(state: Snapshot) -> None:
    assume(memory_fits(state))
    found = decide(state)
    assert memory_fits(carried_out(state, found.plan))


@given(busy_hosts())
def test_a_plan_of_moves_is_sound_and_says_the_same_as_the_moves(state: Snapshot) -> None:
    found = decide(state)
    assert check_plan(found.plan, state, PLACEMENT) == ()
    where = nodes_of(state)
    assert {one.key: (one.nodes, one.leaves, one.moved) for one in found.plan.placements} == {
        move.key: (move.after, move.before - move.after, True) for move in found.moves
    }
    assert all(move.before == where[move.key] != move.after for move in found.moves)
    assert all(len(move.before) == len(move.after) for move in found.moves)
    assert found.plan.rejections == ()


@given(busy_hosts())
def test_the_planner_keeps_who_was_moved(state: Snapshot) -> None:
    found = decide(state)
    after = carried_out(state, found.plan)
    again = {one.key: one.nodes for one in planner.plan(after, PLACEMENT).placements}
    for move in found.moves:
        assert again[move.key] == move.after or len(again[move.key]) < len(move.after)
    others = nodes_of(state)
    moved = {move.key for move in found.moves}
    stayed = {one.key: one.nodes for one in planner.plan(state, PLACEMENT).placements if one.key not in moved}
    assert all(again[key] == others[key] or len(again[key]) < len(others[key]) for key in stayed)


@given(busy_hosts())
def test_the_highest_load_never_rises(state: Snapshot) -> None:
    found = decide(state)
    assume(found.imbalance is not None)
    assert found.expected is not None
    assert found.imbalance is not None
    assert found.expected <= found.imbalance + 1e-9
    assert (decide(carried_out(state, found.plan)).imbalance or 0.0) == pytest.approx(found.expected)


@given(busy_hosts(), st.sampled_from([0.01, 0.1, 1.0]))
def test_an_even_load_moves_nobody(state: Snapshot, margin: float) -> None:
    found = decide(state, replace(LIMITS, margin=margin))
    if found.imbalance is None or found.imbalance <= 1 + margin:
        assert (found.moves, found.held, found.plan) == ((), (), Plan())


@given(busy_hosts(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_known_does_not_matter(state: Snapshot, chance: Random) -> None:
    def mixed(items: Iterable[tuple[InstanceKey, Observed]]) -> dict[InstanceKey, Observed]:
        return dict(chance.sample(list(items), len(state.observed)))

    instances: list[Instance] = chance.sample(state.instances, len(state.instances))
    load = dict(reversed(list(state.load.cpus_by_instance.items())))
    other = replace(
        state,
        instances=tuple(instances),
        observed=mixed(state.observed.items()),
        load=replace(state.load, cpus_by_instance=load),
    )
    assert decide(other) == decide(state)
