"""The kubelet's merge of topology hints, as its documentation tells it, beside our planner on the same machine.

Every resource names the sets of nodes that could serve it, and which of them are narrow enough to be preferred. The
merge looks at every combination of one hint of each resource: its set is what all have in common, it is preferred if
all are and name the same set, and the narrowest preferred one wins. Eight nodes and four resources are up to 255^4
combinations, which nobody can wait for: a demand with fewer hints is measured and the rest is reckoned from its rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import NamedTuple

from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import GIB, machine

NODES, CPUS_PER_NODE, RESOURCES = 8, 16, 4
ALL_SETS = 2**NODES - 1
RUNS = 50


class Hint(NamedTuple):
    """A set of nodes as a mask, and whether it is as narrow as the resource allows."""

    mask: int
    preferred: bool


def hints(sizes: Sequence[int], wanted: int) -> list[Hint]:
    """All sets that have enough of a resource, those of the least width preferred."""
    enough = [
        chosen
        for width in range(1, len(sizes) + 1)
        for chosen in combinations(range(len(sizes)), width)
        if sum(sizes[node] for node in chosen) >= wanted
    ]
    least = min((len(chosen) for chosen in enough), default=0)
    return [Hint(sum(1 << node for node in chosen), len(chosen) == least) for chosen in enough]


def merge(providers: Iterable[Sequence[Hint]], everything: int) -> Hint:
    """The best merged hint; all nodes, not preferred, where nothing better is found."""
    best = Hint(everything, preferred=False)
    for combination in product(*providers):
        mask, preferred, first = everything, True, combination[0].mask
        for hint in combination:
            mask &= hint.mask
            preferred = preferred and hint.preferred and hint.mask == first
        if mask and _is_better(Hint(mask, preferred), best):
            best = Hint(mask, preferred)
    return best


def _is_better(one: Hint, other: Hint) -> bool:
    if one.preferred != other.preferred:
        return one.preferred
    narrower = one.mask.bit_count() - other.mask.bit_count()
    return narrower < 0 or (narrower == 0 and one.mask < other.mask)


def main() -> None:
    """Measure and print."""
    everything = 2**NODES - 1
    demand = Demand(vcpus=6 * CPUS_PER_NODE, weight=6.0 * CPUS_PER_NODE, memory_bytes=180 * GIB)
    ours = min(_plan_s(demand) for _ in range(RUNS))
    found = hints([CPUS_PER_NODE] * NODES, demand.vcpus or 1)
    began = time.perf_counter()
    best = merge([found] * RESOURCES, everything)
    took = time.perf_counter() - began
    count = len(found) ** RESOURCES
    print(
        f"{NODES} nodes, one instance that needs 6 of them, {RESOURCES} resources with the same {len(found)} hints "
        f"each, {count} combinations: the kubelet's merge {took * 1e3:.0f} ms ({best.mask.bit_count()} nodes), our "
        f"planner {ours * 1e3:.2f} ms (best of {RUNS}): {took / ours:.0f} times as long"
    )
    small = min(_plan_s(Demand(vcpus=4, weight=4.0, memory_bytes=GIB)) for _ in range(RUNS))
    reckoned = ALL_SETS**RESOURCES * took / count
    print(
        f"ESTIMATE, not run: an instance that needs one node has {ALL_SETS} hints for each resource; "
        f"{ALL_SETS}^{RESOURCES} combinations at the measured {took / count * 1e9:.0f} ns each are "
        f"{reckoned / 60:.0f} min, our planner {small * 1e3:.2f} ms: {reckoned / small:.2g} times as long"
    )


def _plan_s(demand: Demand) -> float:
    host = machine(nodes=NODES, cpus_per_node=CPUS_PER_NODE, nodes_per_socket=4)
    one = Instance(key=InstanceKey("default", "one"), managed=True, demand=demand)
    snapshot = Snapshot(machine=host, instances=(one,))
    began = time.perf_counter()
    planner.plan(snapshot, PlacementSettings())
    return time.perf_counter() - began
