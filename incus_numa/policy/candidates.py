"""Which sets of nodes can hold a demand, and the best one of the narrowest.

CPUs and memory are decided jointly: a set of nodes fits when the sum of its usable CPUs and the sum of its uncommitted
memory are both enough. CPUs may be shared, so committed CPUs do not make a set too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from incus_numa.cpuset import NodeSet
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.search import LEAST_LIMIT, SEARCH_LIMIT, Field, Need, Search
from incus_numa.settings import PlacementSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A set of nodes that fits, and its cost (see scoring)."""

    nodes: NodeSet
    cost: float


def minimum_width(ledger: Ledger, need: Need) -> int:
    """A lower bound of the number of nodes: the larger of what CPUs and what memory need by themselves.

    0 when even all nodes together do not hold the need.
    """
    cpus = _count_needed(sorted(ledger.cpu_count.values(), reverse=True), need.cpus)
    if not need.memory_bytes:
        return 0 if cpus is None else max(cpus, 1)
    rooms = sorted((ledger.rooms.open(node) for node in ledger.usable), reverse=True)
    memory = _count_needed(rooms, need.memory_bytes)
    return max(cpus, memory, 1) if cpus is not None and memory is not None else 0


def fits(ledger: Ledger, need: Need, nodes: NodeSet) -> bool:
    """Whether the set's usable CPUs and its uncommitted memory are enough."""
    return ledger.cpus_of(nodes) >= need.cpus and ledger.rooms.holds(nodes.mask, need.memory_bytes)


def best(ledger: Ledger, need: Need, settings: PlacementSettings) -> Candidate | None:
    """The cheapest of the narrowest node sets that fit; ties go to the lower mean load, then to the lowest ids.

    None when no set fits. The search is complete up to SEARCH_LIMIT.
    """
    if not fits(ledger, need, ledger.nodes):
        return None
    least = minimum_width(ledger, need)
    if not least:
        return None
    arena = _arena(ledger, need, settings, _useful(ledger, need))
    left = SEARCH_LIMIT
    for width in range(least, len(arena.ids) + 1):
        # A width that holds nothing may not use up what the next ones need to choose well.
        search = Search(arena=arena, width=width, limit=max(left // 2, LEAST_LIMIT))
        found = search.run()
        if found is not None:
            return Candidate(nodes=NodeSet(found[2]), cost=found[0])
        left -= search.work
    return None


def cost(ledger: Ledger, need: Need, nodes: NodeSet, settings: PlacementSettings) -> float:
    """The cost of one node set, whether or not it fits."""
    return _arena(ledger, need, settings, list(nodes)).value(range(len(nodes)))[0]


def _count_needed(sizes: Sequence[int], amount: int) -> int | None:
    """How many of the largest sizes add up to the amount; None when all do not."""
    if amount <= 0:
        return 0
    for count, total in enumerate(accumulate(sizes), start=1):
        if total >= amount:
            return count
    return None


def _useful(ledger: Ledger, need: Need) -> list[int]:
    """Nodes that can contribute. Memory-only nodes only if memory is asked for."""
    open_to = ledger.rooms.open
    return [node for node, count in ledger.cpu_count.items() if count or (need.memory_bytes and open_to(node))]


def _arena(ledger: Ledger, need: Need, settings: PlacementSettings, nodes: Sequence[int]) -> Field:
    count, load, far = ledger.cpu_count, ledger.node_load, ledger.machine.remoteness
    ids = sorted(nodes, key=lambda node: (not count[node], round(load[node], 9), node))
    return Field(
        ids=ids,
        cpus=[count[node] for node in ids],
        room=[ledger.rooms.open(node) for node in ids],
        load=[load[node] for node in ids],
        far=[[far[a][b] for b in ids] for a in ids],
        rooms=ledger.rooms,
        need=need,
        settings=settings,
    )
