"""Feasibility and search of node sets, against all sets where there are few enough of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from random import Random

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.policy import candidates, planner
from incus_numa.policy.field import Need
from incus_numa.policy.ledger import Commitment, Ledger, usable_cpus
from incus_numa.policy.rooms import Rooms
from incus_numa.settings import PlacementSettings
from tests.builders import SMALL_PAGE, instance, machine, snapshot

SETTINGS = PlacementSettings()


def ledger_of(host: Machine, *commitments: tuple[int, float, int]) -> Ledger:
    """A ledger with (nodes as a mask, weight, memory) committed."""
    ledger = Ledger(host, usable_cpus(host, CpuSet()))
    for index, (nodes, weight, size) in enumerate(commitments):
        ledger.commit(InstanceKey("default", str(index)), Commitment(nodes, 0, weight, size))
    return ledger


def shuffled(seed: int) -> Machine:
    """Seven unequal nodes at arbitrary distances."""
    random = Random(seed)
    host = machine(nodes=7, cpus_per_node=4)
    far = {(a, b): random.choice([11, 12, 17, 21, 32]) for a in range(7) for b in range(a)}
    nodes = tuple(
        replace(
            node,
            cpus=CpuSet(list(node.cpus)[: random.choice([0, 2, 4, 4])]),
            memory_bytes=random.choice([0, 4, 8, 16]),
            distances={b: far.get((node.id, b), far.get((b, node.id), 10)) for b in range(7)},
        )
        for node in host.nodes
    )
    online = CpuSet(cpu for node in nodes for cpu in node.cpus)
    return replace(host, nodes=nodes, cpus=tuple(cpu for cpu in host.cpus if cpu.id in online), online=online)


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_trying_every_set_finds(seed: int) -> None:
    random = Random(seed)
    host = shuffled(seed)
    ledger = ledger_of(host, *((1 << random.randrange(7), random.choice([0.5, 1, 3]), 1) for _ in range(6)))
    for cpus, size in ((1, 0), (6, 0), (12, 9), (3, 30), (9, 25)):
        need = Need(cpus=min(cpus, ledger.total_cpus), weight=float(cpus), memory_bytes=size)
        found = candidates.best(ledger, need, SETTINGS)
        sets = [
            (count, candidates.cost(ledger, need, NodeSet(chosen), SETTINGS), mean_load(ledger, chosen), chosen)
            for count in range(1, 8)
            for chosen in combinations(range(7), count)
            if candidates.fits(ledger, need, NodeSet(chosen)) and useful(ledger, need, chosen)
        ]
        assert (found and tuple(found.nodes)) == (min(sets)[3] if sets else None)


def mean_load(ledger: Ledger, nodes: tuple[int, ...]) -> float:
    loads = [ledger.node_load[node] for node in nodes if ledger.cpu_count[node]]
    return round(sum(loads) / len(loads), 9) if loads else 0.0


def useful(ledger: Ledger, need: Need, nodes: tuple[int, ...]) -> bool:
    return all(ledger.cpu_count[node] or (need.memory_bytes and ledger.rooms.open(node)) for node in nodes)


def test_the_search_is_repeatable_and_answers_on_128_nodes() -> None:
    host = machine(nodes=128, cpus_per_node=8, nodes_per_socket=16)
    random = Random(1)
    ledger = ledger_of(host, *((1 << random.randrange(128), float(random.randrange(9)), 0) for _ in range(200)))
    need = Need(cpus=320, weight=320.0)
    first = candidates.best(ledger, need, SETTINGS)
    assert first == candidates.best(ledger, need, SETTINGS)
    assert first is not None
    assert len(first.nodes) == 40


def test_asymmetric_distances_count_in_both_directions() -> None:
    host = machine(nodes=3, nodes_per_socket=3)
    rows = ({0: 10, 1: 11, 2: 15}, {0: 31, 1: 10, 2: 20}, {0: 15, 1: 20, 2: 10})
    host = replace(host, nodes=tuple(replace(node, distances=rows[node.id]) for node in host.nodes))
    found = candidates.best(ledger_of(host), Need(cpus=8, weight=8.0), SETTINGS)
    assert found is not None
    assert found.nodes == NodeSet([0, 2])


def test_an_unknown_distance_counts_as_the_farthest_known() -> None:
    host = machine(nodes=3, nodes_per_socket=3)
    rows = ({0: 10, 2: 20}, {1: 10, 2: 30}, {0: 20, 1: 30, 2: 10})
    host = replace(host, nodes=tuple(replace(node, distances=rows[node.id]) for node in host.nodes))
    found = candidates.best(ledger_of(host), Need(cpus=8, weight=8.0), SETTINGS)
    assert found is not None
    assert found.nodes == NodeSet([0, 2])


def test_a_narrower_set_wins_over_a_cheaper_one() -> None:
    found = candidates.best(
        ledger_of(machine(), (1, 9.0, 0), (2, 8.0, 0), (4, 8.0, 0), (8, 8.0, 0)), Need(cpus=4, weight=4), SETTINGS
    )
    assert found is not None
    assert found.nodes == NodeSet([1])


def test_node_load_does_not_depend_on_what_came_and_went() -> None:
    ledger = ledger_of(machine(), (3, 2.0, 0))
    assert dict(ledger.node_load) == {0: 0.25, 1: 0.25, 2: 0.0, 3: 0.0}
    ledger.commit(InstanceKey("default", "0"), Commitment(4, 0b11 << 8, 1.0, 0))
    assert dict(ledger.node_load) == {0: 0.0, 1: 0.0, 2: 0.25, 3: 0.0}
    assert ledger.cpu_load(2) == {8: 0.5, 9: 0.5, 10: 0.0, 11: 0.0}
    ledger.release(InstanceKey("default", "0"))
    assert set(ledger.node_load.values()) | set(ledger.cpu_load(2).values()) == {0.0}


def test_wide_memory_moves_over_to_make_room() -> None:
    rooms = Rooms({0: 10, 1: 10, 2: 10})
    rooms.add(0b011, 10)
    rooms.add(0b110, 10)
    assert rooms.holds(0b001, 10)
    assert rooms.holds(0b010, 10)
    assert not rooms.holds(0b001, 11)
    rooms.add(0b001, 10)
    assert [rooms.left(node) for node in range(3)] == [0, 0, 0]
    assert not rooms.holds(0b100, 1)


def test_room_never_depends_on_the_order_of_commitments() -> None:
    parts = [(0b011, 9), (0b110, 7), (0b101, 5), (0b010, 4)]
    answers = set()
    for order in permutations(parts):
        rooms = Rooms({0: 10, 1: 10, 2: 10})
        for mask, size in order:
            assert rooms.holds(mask, size)
            rooms.add(mask, size)
        answers.add(tuple(rooms.holds(mask, size) for mask in range(1, 8) for size in range(1, 12)))
    assert len(answers) == 1


def test_memory_that_is_taken_back_can_be_used_again() -> None:
    rooms = Rooms({0: 10, 1: 10})
    rooms.add(0b11, 15)
    assert not rooms.holds(0b01, 6)
    rooms.take(0b11, 10)
    assert rooms.holds(0b01, 10)
    rooms.add(0b01, 30)
    rooms.add(0b11, 20)
    assert not rooms.holds(0b10, 1)
    rooms.take(0b11, 20)
    assert rooms.holds(0b10, 5)
    assert not rooms.holds(0b10, 6)


def test_an_overfull_node_does_not_take_room_from_others() -> None:
    rooms = Rooms({0: 10, 1: 10})
    rooms.add(0b01, 50)
    rooms.add(0b11, 4)
    assert rooms.holds(0b10, 6)
    assert not rooms.holds(0b10, 7)


def scattered(seed: int, count: int, near: frozenset[int] = frozenset()) -> Machine:
    """Four CPUs on each node, at distances of which none is like another; those between `near` nodes are all 11."""
    random, host = Random(seed), machine(nodes=count)
    far = {(a, b): 11 if {a, b} <= near else random.randrange(12, 60) for a in range(count) for b in range(a)}
    nodes = tuple(
        replace(node, distances={b: far.get((node.id, b), far.get((b, node.id), 10)) for b in range(count)})
        for node in host.nodes
    )
    return replace(host, nodes=nodes)


DISTANT = replace(SETTINGS, distance_weight=5.0)


@pytest.mark.parametrize("seed", range(3))
def test_no_set_costs_less_than_the_bound_and_the_answer_no_less_than_the_best(seed: int) -> None:
    host, random = scattered(seed, 18), Random(seed)
    ledger = ledger_of(host, *((1 << node, random.choice([1.0, 2.0, 3.0]), 0) for node in range(18)))
    need = Need(cpus=36, weight=36.0)
    found = candidates.best(ledger, need, DISTANT)
    assert found is not None
    assert found.least_width == len(found.nodes) == 9
    best = least_cost(ledger, need, 9)
    assert found.bound <= best + 1e-6
    assert best <= found.cost + 1e-6
    assert found.bound < found.cost or found.cost == pytest.approx(best)


def least_cost(ledger: Ledger, need: Need, width: int) -> float:
    """The least cost of all sets of a width, of nodes that have all the same number of CPUs."""
    nodes, far, full = list(ledger.nodes), ledger.machine.remoteness, ledger.full_with(need.weight)
    each = need.weight / (width * ledger.cpu_count[nodes[0]])
    best = float("inf")
    for chosen in combinations(nodes, width):
        load = max(ledger.node_load[node] for node in chosen) + each
        pairs = sum(far[a][b] for a, b in combinations(chosen, 2)) / (width * (width - 1))
        best = min(best, load + 9 * max(0.0, load - full) + DISTANT.distance_weight * pairs)
    return best


def test_a_search_that_is_cut_says_between_which_costs_the_best_is() -> None:
    near = frozenset(range(1, 64, 2))
    host = scattered(1, 64, near)
    random = Random(1)
    ledger = ledger_of(host, *((1 << node, random.choice([1.0, 1.1, 1.2]), 0) for node in range(64)))
    need = Need(cpus=4 * 30, weight=120.0)
    found = candidates.best(ledger, need, DISTANT)
    assert found is not None
    # Some set costs no more than the best one of the near nodes.
    known = min(candidates.cost(ledger, need, NodeSet(sorted(near)[first : first + 30]), DISTANT) for first in range(3))
    assert found.bound < found.cost
    assert found.bound <= known
    assert found.least_width == len(found.nodes) == 30


def test_a_placement_carries_what_was_proved_and_its_reason_says_where_the_search_was_cut() -> None:
    host = scattered(1, 64)
    cut = planner.plan(snapshot(host, instance("x", vcpus=4 * 30)), DISTANT).placements[0]
    assert cut.proof is not None
    assert cut.proof.bound < cut.proof.cost
    assert cut.proof.least_width == len(cut.nodes) == 30
    assert cut.reason.endswith(
        f"; the search was cut: cost {cut.proof.cost:.4g}, no set costs less than {cut.proof.bound:.4g}"
    )
    complete = planner.plan(snapshot(machine(), instance("x", vcpus=6)), DISTANT).placements[0]
    assert complete.proof is not None
    assert complete.proof.bound == complete.proof.cost
    assert "cut" not in complete.reason


def test_what_is_kept_or_pinned_was_not_searched_for() -> None:
    first = planner.plan(snapshot(machine(), instance("x", pinned="1"), instance("p", vcpus=1)), SETTINGS)
    assert [one.proof is None for one in first.placements] == [False, True]


@pytest.mark.parametrize("seed", range(12))
def test_no_set_of_fewer_nodes_than_the_least_width_fits(seed: int) -> None:
    random, host = Random(seed), shuffled(seed)
    pages = {node: random.choice([0, 1, 2]) for node in range(7)}
    host = replace(host, nodes=tuple(replace(node, hugepages={SMALL_PAGE: pages[node.id]}) for node in host.nodes))
    ledger = ledger_of(host, *((1 << random.randrange(7), 1.0, 1) for _ in range(4)))
    for amount, must in ((1, 0), (3, 0), (4, 1 << random.randrange(7)), (0, 0b1010000)):
        need = Need(cpus=3, weight=3.0, memory_bytes=9, hugepages=((SMALL_PAGE, amount),) if amount else (), must=must)
        found = candidates.best(ledger, need, SETTINGS)
        widths = [
            count
            for count in range(1, 8)
            for chosen in combinations(range(7), count)
            if candidates.fits(ledger, need, NodeSet(chosen))
        ]
        assert (found and len(found.nodes)) == (min(widths) if widths else None)
        if found is not None:
            assert candidates.minimum_width(ledger, need) <= found.least_width == len(found.nodes)
            assert must & ~found.nodes.mask == 0


def test_what_is_tied_to_a_node_pays_its_pull() -> None:
    pull = {0: 1.5, 1: 0.5, 2: 0.25, 3: 2.0}
    one = candidates.best(ledger_of(machine()), Need(cpus=1, weight=1.0, pull=pull), SETTINGS)
    assert one is not None
    assert (one.nodes, one.cost) == (NodeSet([2]), 0.5)
    two = candidates.best(
        ledger_of(machine()), Need(cpus=8, weight=8.0, pull=pull), replace(SETTINGS, distance_weight=0.0)
    )
    assert two is not None
    assert (two.nodes, two.cost) == (NodeSet([1, 2]), 1.375)
