"""On real traces our policy is the most even one, keeps sets of nodes nearer than Incus' rule, and moves nobody."""

from __future__ import annotations

import pytest

from incus_numa.model.instance import InstanceKey, MemoryMode, Policy
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.replay import policies, replay
from incus_numa.replay.planned import PROJECT, instance_of
from incus_numa.replay.replay import Outcome
from incus_numa.replay.stays import Stay
from tests.bench import traces

CASES = (("azure-v1-dev-host96", 8), ("openb-2023-a-host96", 8), ("azure-v1-dev-host256", 24))
"""Traces, each with the number of nodes of the real machine that it keeps busy."""

EVERY = 50
"""So many arrivals apart the whole plan is looked at, which costs more than placing one."""

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not traces.TRACES or not traces.EIGHT.exists(), reason="../shared/data is not there"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-nodes")
def case(request: pytest.FixtureRequest) -> tuple[Machine, tuple[Stay, ...]]:
    name, nodes = request.param
    trace = traces.read_trace(traces.DATA / "traces" / f"{name}.csv")
    (machine,) = (one for one in traces.machines() if len(one.nodes) == nodes)
    return traces.fitted(machine, trace), trace


@pytest.fixture(scope="module")
def machine(case: tuple[Machine, tuple[Stay, ...]]) -> Machine:
    return case[0]


@pytest.fixture(scope="module")
def trace(case: tuple[Machine, tuple[Stay, ...]]) -> tuple[Stay, ...]:
    return case[1]


@pytest.fixture(scope="module")
def outcomes(machine: Machine, trace: tuple[Stay, ...]) -> dict[str, Outcome]:
    return traces.compare(machine, trace)


def imbalance(outcome: Outcome) -> float:
    assert outcome.mean_imbalance is not None
    return outcome.mean_imbalance


def width(outcome: Outcome) -> float:
    assert outcome.nodes_per_instance is not None
    return outcome.nodes_per_instance


@pytest.mark.parametrize("peer", policies.PEERS)
def test_node_load_is_more_even_than_with_a_peer(outcomes: dict[str, Outcome], peer: str) -> None:
    ours, theirs = outcomes[traces.OURS], outcomes[peer]
    if width(theirs) > 1.01 * width(ours):
        pytest.skip(f"{peer} buys evenness with more nodes: {width(theirs):.2f} for {width(ours):.2f} an instance")
    assert imbalance(ours) < imbalance(theirs)


def test_sets_of_nodes_are_nearer_than_with_incus(outcomes: dict[str, Outcome]) -> None:
    ours, theirs = outcomes[traces.OURS], outcomes["incus"]
    assert ours.nodes_per_instance == theirs.nodes_per_instance
    if ours.multi_node_distance is None:
        # Every instance fits one node, with either rule: there is nothing to be nearer in.
        assert ours.mean_distance == theirs.mean_distance == 10
    else:
        assert theirs.mean_distance is not None
        assert ours.mean_distance is not None
        assert ours.mean_distance < theirs.mean_distance


def test_nobody_is_refused_or_moved(outcomes: dict[str, Outcome]) -> None:
    assert (outcomes[traces.OURS].rejected, outcomes[traces.OURS].moves) == ((), 0)


def test_an_arrival_changes_nothing_for_others_in_the_whole_plan(machine: Machine, trace: tuple[Stay, ...]) -> None:
    placed: dict[str, tuple[Stay, Observed]] = {}
    arrivals = 0
    for event in replay.list_events(trace):
        name = event.stay.name
        if not event.arrives:
            del placed[name]
            continue
        arrivals += 1
        key = InstanceKey(PROJECT, name)
        there = snapshot(machine, [stay for stay, _ in placed.values()], placed)
        with_it = snapshot(machine, [*(stay for stay, _ in placed.values()), event.stay], placed)
        plan = planner.plan(with_it, traces.SETTINGS, only=frozenset([key]))
        (new,) = plan.placements
        if arrivals % EVERY == 0:
            others = [one for one in planner.plan(with_it, traces.SETTINGS).placements if one.key != key]
            assert [(one.key, one.nodes, one.cpus) for one in others] == [
                (one.key, one.nodes, one.cpus) for one in planner.plan(there, traces.SETTINGS).placements
            ]
        decided = Decided(nodes=new.nodes, cpus=new.cpus)
        placed[name] = event.stay, Observed(nodes=new.nodes, cpus=new.cpus, mems=new.mems, decided=decided)
    assert arrivals == len(trace)


def snapshot(machine: Machine, stays: list[Stay], placed: dict[str, tuple[Stay, Observed]]) -> Snapshot:
    return Snapshot(
        machine=machine,
        instances=tuple(instance_of(stay, Policy.BALANCED, MemoryMode.LOCAL) for stay in stays),
        observed={InstanceKey(PROJECT, name): observed for name, (_, observed) in placed.items()},
    )
