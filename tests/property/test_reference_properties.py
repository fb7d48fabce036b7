"""The references of `make bench` against trying everything. Skipped where `make bench` has not installed the solver."""

from __future__ import annotations

from itertools import combinations, product
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from incus_numa.model.instance import Instance
from incus_numa.model.machine import Machine
from tests import strategies
from tests.builders import GIB, instance

pytest.importorskip("highspy")

from tests.bench.reference import milp
from tests.bench.reference.batch import spread
from tests.bench.reference.cases import Case
from tests.bench.reference.ground import bits, survey
from tests.bench.reference.room import Room, flows
from tests.bench.reference.sets import Question, least_load


@st.composite
def cases(draw: st.DrawFn, *, memory: bool) -> Case:
    """Few instances on few nodes."""
    machine: Machine = draw(strategies.machines(max_nodes=4))
    count = draw(st.integers(1, 4))
    instances: tuple[Instance, ...] = tuple(
        instance(
            f"i{index}",
            vcpus=draw(st.integers(1, 9)),
            memory_bytes=draw(st.sampled_from([GIB, 3 * GIB, 6 * GIB, 12 * GIB])) if memory else None,
            weight=draw(st.sampled_from([None, 0.5])),
        )
        for index in range(count)
    )
    return Case(name="drawn", seed=0, words="", machine=machine, ground=survey(machine), instances=instances)


def narrowest_by_trying(case: Case, one: Instance) -> list[int]:
    """All sets of the least width that hold an instance alone."""
    ground = case.ground
    cpus, _, size = milp.shape_of(one)
    sets = [
        mask
        for mask in range(1, 1 << len(ground.ids))
        if ground.cpus_of(mask) >= cpus and sum(ground.memory[index] for index in bits(mask)) >= size
    ]
    least = min((mask.bit_count() for mask in sets), default=0)
    return [mask for mask in sets if mask.bit_count() == least]


def least_by_trying(case: Case) -> float:
    """The least highest load of all ways to put every instance on a set of its narrowest width."""
    ground = case.ground
    choices = [narrowest_by_trying(case, one) for one in case.instances]
    best = inf
    for chosen in product(*choices):
        asked = [(mask, one.demand.memory_bytes or 0) for mask, one in zip(chosen, case.instances, strict=True)]
        if flows(ground.memory, asked):
            weights = [(mask, one.demand.weight) for mask, one in zip(chosen, case.instances, strict=True)]
            best = min(best, max(spread(ground, weights)))
    return best


@given(cases(memory=False))
@settings(deadline=None)
def test_the_solver_finds_the_optimum_that_trying_finds(case: Case) -> None:
    assume(max(one.demand.vcpus or 1 for one in case.instances) <= sum(case.ground.cpus))
    best = milp.solve(milp.demands_of(case), most=inf, time_limit_s=10.0)
    assert best.exact
    assert best.bound == pytest.approx(least_by_trying(case))


@given(cases(memory=True))
@settings(deadline=None)
def test_with_memory_the_solver_is_never_above_what_trying_finds(case: Case) -> None:
    assume(max(one.demand.vcpus or 1 for one in case.instances) <= sum(case.ground.cpus))
    demands = milp.demands_of(case)
    assume(all(demands.makes.values()))
    best, tried = milp.solve(demands, most=inf, time_limit_s=10.0), least_by_trying(case)
    assert best.feasible or tried == inf
    assert best.bound <= tried + 1e-6


@given(cases(memory=True))
def test_widths_are_those_that_trying_finds(case: Case) -> None:
    demands = milp.demands_of(case)
    for one in case.instances:
        sets = narrowest_by_trying(case, one)
        assert demands.width(milp.shape_of(one)) == (sets[0].bit_count() if sets else 0)


@given(cases(memory=True), st.data())
def test_room_is_what_the_flow_leaves(case: Case, data: st.DataObject) -> None:
    ground = case.ground
    masks = st.integers(1, (1 << len(ground.ids)) - 1)
    taken: list[tuple[int, int]] = []
    for one in case.instances:
        asked = (data.draw(masks), one.demand.memory_bytes or 0)
        taken += [asked] if flows(ground.memory, [*taken, asked]) else []
    room = Room(ground=ground, taken=tuple(taken))
    for mask in range(1, 1 << len(ground.ids)):
        most = int(room.by_set[mask])
        assert flows(ground.memory, [*taken, (mask, most)])
        assert not flows(ground.memory, [*taken, (mask, most + 1)])


@given(cases(memory=False), st.data())
def test_the_largest_of_the_least_loaded_nodes_are_the_best_set(case: Case, data: st.DataObject) -> None:
    ground = case.ground
    loads = [data.draw(st.sampled_from([0.0, 0.25, 0.5, 2.0])) for _ in ground.ids]
    cpus = case.instances[0].demand.vcpus or 1
    width = data.draw(st.integers(1, len(ground.ids)))
    question = Question(
        ground=ground, loads=loads, room=Room(ground=ground, taken=()), cpus=cpus, weight=float(cpus), memory=0
    )
    useful = [index for index, have in enumerate(ground.cpus) if have]
    tried = min(
        (
            max(loads[index] for index in chosen) + cpus / sum(ground.cpus[index] for index in chosen)
            for chosen in combinations(useful, width)
            if sum(ground.cpus[index] for index in chosen) >= cpus
        ),
        default=inf,
    )
    assert question.least_by_load(width) == pytest.approx(tried)
    if len(useful) == len(ground.ids):
        assert least_load(question, width)[0] == pytest.approx(tried)
