"""How long deciding takes: one arrival, plans of many, and the hardest sets of nodes to choose."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.settings import PlacementSettings
from incus_numa.simulator import scenario
from tests import builders

SETTINGS = PlacementSettings()
SMALL = (1, 1, 1, 2, 2, 2, 4, 4, 8)
MIXED = (1, 2, 2, 4, 4, 8, 8, 16, 24, 48)


def main() -> None:
    """Measure and print."""
    host = scenario.machine()
    _arrivals(host)
    for sizes, words in ((SMALL, "1 to 8 vCPUs"), (MIXED, "1 to 48 vCPUs")):
        for count in (250, 500, 1000, 2000):
            _many(host, count, sizes, f"{count} new instances of {words} on 24 nodes")
    large = builders.machine(nodes=64, cpus_per_node=16, nodes_per_socket=8)
    for count in (2500, 5000, 10_000):
        _many(large, count, SMALL, f"{count} new instances of 1 to 8 vCPUs on 64 nodes")
    _tight(host, 192, "24 nodes of 16 CPUs, 12 needed")
    _tight(host, 300, "24 nodes of 16 CPUs, 19 needed")
    wide = builders.machine(nodes=128, cpus_per_node=8, nodes_per_socket=16)
    for vcpus in (320, 512, 800):
        _tight(wide, vcpus, f"128 nodes of 8 CPUs, {vcpus // 8} needed")


def _arrivals(host: Machine) -> None:
    """One more among 1000, as the daemon decides it, and with the whole snapshot counted anew."""
    there = _instances(1000, MIXED)
    plan = planner.plan(Snapshot(machine=host, instances=there), SETTINGS)
    observed = _observed(plan)
    standing = Standing(host, SETTINGS)
    for one in there:
        standing.see(one, observed[one.key])
    news = [_instance(f"new{index}", MIXED[index % len(MIXED)]) for index in range(500)]
    alone = [_time(partial(planner.place_new, standing, Snapshot(machine=host, instances=(new,)))) for new in news]
    _say("one arrival among 1000 instances on 24 nodes, 384 CPUs", alone)
    anew = []
    for new in news[:100]:
        every = Snapshot(machine=host, instances=(*there, new), observed=observed)
        anew.append(_time(partial(planner.plan, every, SETTINGS, only=frozenset([new.key]))))
    _say("the same with all 1000 counted anew", anew)


def _many(host: Machine, count: int, sizes: Sequence[int], words: str) -> None:
    instances = _instances(count, sizes)
    fresh = Snapshot(machine=host, instances=instances)
    plan = planner.plan(fresh, SETTINGS)
    _say(words, [_time(lambda: planner.plan(fresh, SETTINGS)) for _ in range(5)])
    again = Snapshot(machine=host, instances=instances, observed=_observed(plan))
    _say("  and again, now that they are placed", [_time(lambda: planner.plan(again, SETTINGS)) for _ in range(5)])


def _tight(host: Machine, vcpus: int, words: str) -> None:
    """One wide instance on nodes that are loaded unevenly, so that no two sets are alike."""
    times, cut = [], 0
    for seed in range(20):
        chance, standing = random.Random(seed), Standing(host, SETTINGS)
        for index in range(300):
            node = chance.choice(host.nodes)
            standing.see(_instance(f"there{index}", chance.choice([1, 2, 3, 4])), Observed(cpus=node.cpus))
        snapshot = Snapshot(machine=host, instances=(_instance("wide", vcpus),))
        (placed,) = planner.place_new(standing, snapshot).placements
        cut += placed.proof is not None and placed.proof.bound < placed.proof.cost
        times.append(_time(partial(planner.place_new, standing, snapshot)))
    _say(f"{words}, unevenly loaded; search cut in {cut} of {len(times)}", times)


def _instances(count: int, sizes: Sequence[int]) -> tuple[Instance, ...]:
    chance = random.Random(count)
    return tuple(_instance(f"i{index:05}", chance.choice(sizes)) for index in range(count))


def _instance(name: str, vcpus: int) -> Instance:
    demand = Demand(vcpus=vcpus, weight=float(vcpus), memory_bytes=128 << 20)
    return Instance(key=InstanceKey("default", name), managed=True, demand=demand)


def _observed(plan: Plan) -> dict[InstanceKey, Observed]:
    return {
        one.key: Observed(
            nodes=one.nodes, cpus=one.cpus, mems=one.mems, decided=Decided(nodes=one.nodes, cpus=one.cpus)
        )
        for one in plan.placements
    }


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _say(what: str, times: Sequence[float]) -> None:
    ordered = sorted(times)
    text = f"{what}: median {ordered[len(ordered) // 2]:.2f} ms"
    if len(ordered) > 50:
        text += f", 99th percentile {ordered[len(ordered) * 99 // 100]:.2f} ms"
    print(f"{text}, most {ordered[-1]:.2f} ms", flush=True)
