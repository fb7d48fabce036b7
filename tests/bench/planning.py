"""How long deciding takes on the incus#1605 machine."""

from __future__ import annotations

import random
import time

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from incus_numa.simulator import scenario

SETTINGS = PlacementSettings()


def main() -> None:
    """Measure and print."""
    machine = scenario.machine()
    for vcpus in (4, 48, 192, 300):
        one = Snapshot(machine=machine, instances=(_instance("one", vcpus),))
        _print(f"one instance of {vcpus} vCPUs on the empty machine", one, None)
    chance = random.Random(1)
    mixed = tuple(_instance(f"i{n}", chance.choice([1, 2, 4, 8, 16, 24, 48])) for n in range(300))
    _print("300 instances of 1 to 48 vCPUs at once", Snapshot(machine=machine, instances=mixed), None)
    for count in (1000, 2000):
        small = tuple(_instance(f"i{n}", chance.choice([1, 2, 4])) for n in range(count))
        plan = planner.plan(Snapshot(machine=machine, instances=small), SETTINGS)
        new = _instance("new", 4)
        there = Snapshot(machine=machine, instances=(*small, new), observed=_observed(plan))
        _print(f"one more among {count}", there, frozenset([new.key]))
        _print(f"all {count} again", there, None)


def _instance(name: str, vcpus: int) -> Instance:
    demand = Demand(vcpus=vcpus, weight=float(vcpus), memory_bytes=128 << 20)
    return Instance(key=InstanceKey("default", name), managed=True, demand=demand)


def _observed(plan: Plan) -> dict[InstanceKey, Observed]:
    return {
        one.key: Observed(
            nodes=one.nodes, cpus=one.cpus, mems=one.mems, decided=Decided(nodes=one.nodes, cpus=one.cpus or CpuSet())
        )
        for one in plan.placements
    }


def _print(what: str, snapshot: Snapshot, only: frozenset[InstanceKey] | None) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        planner.plan(snapshot, SETTINGS, only=only)
        times.append((time.perf_counter() - began) * 1000)
    print(f"{what}: {sorted(times)[2]:.1f} ms (median of 5)")
