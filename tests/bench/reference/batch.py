"""The highest node load of a plan of many instances over the least possible, and what simpler rules reach."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.bench.reference import milp, near, rules
from tests.bench.reference.cases import Case
from tests.bench.reference.ground import Ground, bits
from tests.bench.reference.room import Room
from tests.bench.reference.sets import Question

SETTINGS = PlacementSettings()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One case: the plan's highest load over the bound, whether that is the optimum, and times.

    `interacts` where the plan refused one or gave it more nodes than it needs alone; `possible` says whether all could
    have been as narrow (None: not known). `near` are ratios of mean distances of wide placements, `rules` of the
    highest loads of simpler rules where these can be compared: no memory, and an optimum that is proven.
    """

    words: str
    ratio: float
    exact: bool
    interacts: bool = False
    possible: bool | None = None
    plan_s: float = 0.0
    solve_s: float = 0.0
    note: str = ""
    near: tuple[float, ...] = ()
    far_skipped: int = 0
    rules: tuple[tuple[str, float], ...] = ()


def judge(case: Case, time_limit_s: float) -> Judged:
    """Plan a case and compare."""
    snapshot = Snapshot(machine=case.machine, instances=case.instances)
    began = time.perf_counter()
    plan = planner.plan(snapshot, SETTINGS)
    plan_s = time.perf_counter() - began
    demands = milp.demands_of(case)
    wide = too_wide(case, plan, demands)
    highest = max(node_loads(case, plan), default=0.0)
    began = time.perf_counter()
    best = milp.solve(demands, most=inf if wide else highest, time_limit_s=time_limit_s)
    solve_s = time.perf_counter() - began
    found = distances(case, plan)
    return Judged(
        words=f"{case.name}: {case.words}",
        ratio=highest / best.bound if best.bound and not wide else 1.0,
        exact=best.exact,
        interacts=bool(wide),
        possible=None if not wide else best.feasible if best.exact or not best.feasible else None,
        plan_s=plan_s,
        solve_s=solve_s,
        note=f"highest {highest:.4f}, {'optimum' if best.exact else 'bound'} {best.bound:.4f}" + (wide or ""),
        near=tuple(one for one in found if one is not None),
        far_skipped=sum(one is None for one in found),
        rules=() if case.with_memory or not best.exact else simpler_rules(case, best.bound),
    )


def simpler_rules(case: Case, least: float) -> tuple[tuple[str, float], ...]:
    """What simpler rules make of the highest load, over the least possible."""
    asked = [(one.demand.vcpus or 1, one.demand.weight) for one in case.instances]
    largest = sorted(asked, reverse=True)
    return (
        ("greedy, largest first", rules.highest(case.ground, largest, rules.greedy) / least),
        *((name, rules.highest(case.ground, asked, rule) / least) for name, rule in rules.RULES),
    )


def too_wide(case: Case, plan: Plan, demands: milp.Demands) -> str:
    """What kept the plan from giving all their narrowest width, empty if nothing."""
    if plan.rejections:
        return f"; refused {len(plan.rejections)}, first {plan.rejections[0].key}: {plan.rejections[0].detail}"
    shapes = {one.key: milp.shape_of(one) for one in case.instances}
    wider = [
        one
        for one in plan.placements
        if (width := demands.width(shapes[one.key])) is not None and width != len(one.nodes)
    ]
    if not wider:
        return ""
    first = wider[0]
    return f"; {len(wider)} wider, first {first.key}: {len(first.nodes)} nodes for {demands.width(shapes[first.key])}"


def node_loads(case: Case, plan: Plan) -> list[float]:
    """Loads by position, from the nodes of the placements alone."""
    weights = {one.key: one.demand.weight for one in case.instances}
    return spread(case.ground, [(case.ground.mask(one.nodes), weights[one.key]) for one in plan.placements])


def spread(ground: Ground, taken: list[tuple[int, float]]) -> list[float]:
    """Loads by position of weights on sets."""
    loads = [0.0] * len(ground.ids)
    for mask, weight in taken:
        part = weight / ground.cpus_of(mask)
        for index in bits(mask):
            if ground.cpus[index]:
                loads[index] += part
    return loads


def distances(case: Case, plan: Plan) -> list[float | None]:
    """For every wide placement its mean distance over the best, the others staying; None where not looked at."""
    if not case.ground.known:
        return []
    demand = {one.key: one.demand for one in case.instances}
    masks = {one.key: case.ground.mask(one.nodes) for one in plan.placements}
    found = []
    for key, mask in masks.items():
        if mask.bit_count() > 1:
            others = [(demand[other], there) for other, there in masks.items() if other != key]
            taken = tuple((there, one.memory_bytes) for one, there in others if one.memory_bytes)
            question = Question(
                ground=case.ground,
                loads=spread(case.ground, [(there, one.weight) for one, there in others]),
                room=Room(ground=case.ground, taken=taken),
                cpus=demand[key].vcpus or 1,
                weight=demand[key].weight,
                memory=demand[key].memory_bytes or 0,
            )
            found.append(near.ratio(question, mask))
    return found
