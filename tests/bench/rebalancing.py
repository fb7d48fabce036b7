"""Moves by measured load: how few bring a changed load back, and how long deciding takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.model.rebalance import Decision, History
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.rebalance import decision
from incus_numa.settings import PlacementSettings, RebalanceSettings
from incus_numa.simulator import scenario
from tests import builders
from tests.builders import GIB

PLACEMENT, LIMITS = PlacementSettings(), RebalanceSettings()
SEEDS = 10
COUNT = 300
FACTOR = 10
VCPUS = (1, 1, 1, 2, 2, 2, 4, 4, 8)
SIZES = (GIB // 4, GIB // 2, GIB, GIB, 2 * GIB, 4 * GIB)
PASSES, QUIET = 3, 100

LOADS: Mapping[str, Callable[[random.Random, int], float]] = {
    "equal": lambda chance, vcpus: 0.15,
    "uniform by vCPUs": lambda chance, vcpus: vcpus * chance.uniform(0.02, 0.1),
    "log-normal": lambda chance, vcpus: min(0.6, 0.08 * chance.lognormvariate(0, 1)),
    "Pareto 1.3": lambda chance, vcpus: min(0.6, 0.04 * chance.paretovariate(1.3)),
}
"""CPUs that an idle instance keeps busy; the largest busy one is below what a node has on the mean of most draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one change of load. `largest` is the largest instance over what a node has on the mean."""

    before: float
    after: float
    moves: int
    size_bytes: int
    later: int
    largest: float


def main() -> None:
    """Measure and print."""
    _settling()
    _speed(1000, 64)
    _speed(COUNT, 24)


def _settling() -> None:
    host, highest = scenario.machine(), 1 + LIMITS.margin
    print(
        f"{COUNT} instances on {len(host.nodes)} nodes, half of them change load {FACTOR}-fold; {SEEDS} draws each, "
        f"default settings; after {PASSES} passes, then {QUIET} more",
        flush=True,
    )
    for name, load in LOADS.items():
        for direction in ("half get busy", "half get idle", "a quarter each"):
            found = [settle_one(host, random.Random(seed), load, direction) for seed in range(SEEDS)]
            # No placement helps where one instance alone is more than a node may have.
            able = [one for one in found if one.largest <= highest]
            worst = f"worst after {max(one.after for one in able):.3f}, " if able else ""
            print(
                f"  {name}, {direction}: max/mean before at most {max(one.before for one in found):.2f}; "
                f"{worst}{sum(one.after <= highest for one in able)} of {len(able)} that can be are within "
                f"{highest:.2f} (of all: {max(one.after for one in found):.2f}); moves at most "
                f"{max(one.moves for one in found)} ({100 * max(one.moves for one in found) / COUNT:.1f} %), median "
                f"{sorted(one.moves for one in found)[SEEDS // 2]}; "
                f"at most {max(one.size_bytes for one in found) / GIB:.1f} GiB follow; moves in {QUIET} more passes: "
                f"{max(one.later for one in able) if able else 0}",
                flush=True,
            )


def settle_one(
    host: Machine, chance: random.Random, load: Callable[[random.Random, int], float], direction: str
) -> Outcome:
    """Let the load of half of the instances change, and move them: first for PASSES, then for QUIET more."""
    instances = _instances(chance, COUNT)
    idle = {one.key: load(chance, one.demand.vcpus or 1) for one in instances}
    first, second = _two_loads(chance, idle, direction)
    state = replace(_placed(host, instances), load=Load(cpus_by_instance=first))
    state = _passes(state, 0.0, 50)[0]
    state = replace(state, load=Load(cpus_by_instance=second))
    state, decisions = _passes(state, 1e6, PASSES)
    _, later = _passes(state, 2e6, QUIET)
    return Outcome(
        before=decisions[0].imbalance or 1.0,
        after=later[0].imbalance or 1.0,
        moves=sum(len(one.moves) for one in decisions),
        size_bytes=sum(move.size_bytes for one in decisions for move in one.moves),
        later=sum(len(one.moves) for one in later),
        largest=max(second.values()) * len(host.nodes) / sum(second.values()),
    )


def _two_loads(
    chance: random.Random, idle: Mapping[InstanceKey, float], direction: str
) -> tuple[dict[InstanceKey, float], dict[InstanceKey, float]]:
    """Load before and after: half of the instances change, up, down, or half of them each."""
    order = chance.sample(sorted(idle), len(idle))
    half, quarter = set(order[: len(order) // 2]), set(order[: len(order) // 4])
    busy = {key: FACTOR * cpus for key, cpus in idle.items()}
    match direction:
        case "half get busy":
            return dict(idle), {key: (busy if key in half else idle)[key] for key in idle}
        case "half get idle":
            return busy, {key: (idle if key in half else busy)[key] for key in idle}
    was = {key: (busy if key in quarter else idle)[key] for key in idle}
    return was, {key: (busy if key in half - quarter else idle)[key] for key in idle}


def _passes(state: Snapshot, now_s: float, count: int) -> tuple[Snapshot, list[Decision]]:
    """So many passes, a hold time apart, each carried out before the next; the first finds the load uneven for long."""
    history = History(hot_since_s=dict.fromkeys(state.machine.node_by_id, now_s - LIMITS.hold_s))
    found = []
    for _ in range(count):
        made = decision.decide(state, history, now_s, PLACEMENT, LIMITS)
        history = made.history
        state = replace(state, observed={**state.observed, **_observed(made.plan, state.instances)})
        found.append(made)
        now_s += LIMITS.hold_s
    return state, found


def _speed(count: int, nodes: int) -> None:
    """Time of this process, for one decision."""
    host = builders.machine(nodes=nodes, cpus_per_node=16, nodes_per_socket=8)
    chance = random.Random(count)
    instances = _instances(chance, count)
    state = _placed(host, instances)
    even = {one.key: 0.5 * one.demand.weight for one in instances}
    half = set(chance.sample(sorted(even), count // 2))
    uneven = {key: cpus / FACTOR if key in half else cpus for key, cpus in even.items()}
    words = f"{count} instances on {nodes} nodes"
    wide = replace(LIMITS, margin=1.0)
    _time(replace(state, load=Load(cpus_by_instance=even)), wide, f"{words}, even load")
    changed = replace(state, load=Load(cpus_by_instance=uneven))
    _time(changed, LIMITS, f"{words}, half of them idle")
    _time(changed, replace(LIMITS, max_moves=1000, max_bytes=1 << 60), f"{words}, half of them idle, no budget")
    _time(changed, replace(LIMITS, move_price=50.0), f"{words}, half of them idle, nothing pays")


def _time(state: Snapshot, limits: RebalanceSettings, words: str) -> None:
    times = []
    for _ in range(9):
        began = time.process_time()
        made = decision.decide(state, History(), 0.0, PLACEMENT, limits, forced=True)
        times.append((time.process_time() - began) * 1000)
    changes = sum(1 for move in made.moves if move.with_key is not None)
    print(
        f"{words}: median {sorted(times)[4]:.1f} ms, most {max(times):.1f} ms; max/mean {made.imbalance:.2f} -> "
        f"{made.expected:.2f}, {len(made.moves)} moves, {changes} of them in exchange",
        flush=True,
    )


def _instances(chance: random.Random, count: int) -> tuple[Instance, ...]:
    found = []
    for index in range(count):
        vcpus = chance.choice(VCPUS)
        demand = Demand(vcpus=vcpus, weight=float(vcpus), memory_bytes=chance.choice(SIZES))
        found.append(Instance(key=InstanceKey("default", f"i{index:05}"), managed=True, demand=demand))
    return tuple(found)


def _placed(host: Machine, instances: tuple[Instance, ...]) -> Snapshot:
    fresh = Snapshot(machine=host, instances=instances)
    return replace(fresh, observed=_observed(planner.plan(fresh, PLACEMENT), instances))


def _observed(plan: Plan, instances: Sequence[Instance]) -> dict[InstanceKey, Observed]:
    """What is there once a plan is carried out: each instance uses half of its memory, on its own nodes."""
    sizes = {one.key: (one.demand.memory_bytes or 0) // 2 for one in instances}
    return {
        one.key: Observed(
            nodes=one.nodes,
            cpus=one.cpus,
            mems=one.mems or NodeSet(),
            decided=Decided(nodes=one.nodes, cpus=one.cpus),
            memory={node: sizes[one.key] // len(one.nodes) for node in one.nodes},
        )
        for one in plan.placements
    }
