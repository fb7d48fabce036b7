"""Which sets of nodes can hold a demand, and the best one of the narrowest.

CPUs, memory, huge pages and device nodes are decided jointly: a set of nodes fits when its usable CPUs, its uncommitted
memory and its huge pages are all enough, and when it has the nodes it must have. CPUs may be shared, so committed CPUs
do not make a set too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

from incus_numa.cpuset import NodeSet
from incus_numa.policy.field import Field, Need
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.rooms import Rooms
from incus_numa.policy.scoring import price
from incus_numa.policy.search import LEAST_LIMIT, Search
from incus_numa.settings import PlacementSettings

NEAREST_LIMIT = 4_000
"""Work for one search of the nearest nodes, see field.SEARCH_LIMIT."""

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A set of nodes that fits, and its cost (see scoring).

    No set of as many nodes that fits costs less than `bound`, which is the cost itself where the search was complete;
    no set of fewer than `least_width` nodes fits.
    """

    nodes: NodeSet
    cost: float
    bound: float
    least_width: int


def minimum_width(ledger: Ledger, need: Need) -> int:
    """A lower bound of the number of nodes: the largest of what CPUs, memory, huge pages and devices need.

    0 when even all nodes together do not hold the need.
    """
    counts = [_count_needed(sorted(ledger.cpu_count.values(), reverse=True), need.cpus), need.must.bit_count(), 1]
    if need.memory_bytes:
        counts.append(_count_needed(_open_rooms(ledger, ledger.rooms), need.memory_bytes))
    for size, amount in need.hugepages:
        rooms = ledger.huge.get(size)
        counts.append(_count_needed(_open_rooms(ledger, rooms) if rooms else (), amount))
    known = [count for count in counts if count is not None]
    return max(known) if len(known) == len(counts) else 0


def fits(ledger: Ledger, need: Need, nodes: NodeSet) -> bool:
    """Whether the set's usable CPUs, its uncommitted memory and its huge pages are enough."""
    return (
        ledger.cpus_of(nodes) >= need.cpus
        and not need.must & ~nodes.mask
        and ledger.rooms.holds(nodes.mask, need.memory_bytes)
        and all(size in ledger.huge and ledger.huge[size].holds(nodes.mask, amount) for size, amount in need.hugepages)
    )


def best(ledger: Ledger, need: Need, settings: PlacementSettings) -> Candidate | None:
    """The cheapest of the narrowest node sets that fit; ties go to the lower mean load, then to the lowest ids.

    None when no set fits that is as narrow as the need wants it. The search is complete up to the need's limit.
    """
    one = _best_one(ledger, need, settings)
    if one is not None:
        return one
    if not fits(ledger, need, ledger.nodes):
        return None
    least = minimum_width(ledger, need)
    if not least:
        return None
    arena = _arena(ledger, need, settings, _useful(ledger, need))
    left, most = need.limit, min(len(arena.ids), need.most_width or len(arena.ids))
    # One node was tried.
    proved = least = max(2, least)
    for width in range(least, most + 1):
        # A width that holds nothing may not use up what the next ones need to choose well.
        search = Search(arena=arena, width=width, limit=max(left // 2, LEAST_LIMIT))
        found = search.run()
        if found is not None:
            bound = found[0] if search.bound is None else min(found[0], search.bound)
            return Candidate(nodes=NodeSet(found[2]), cost=found[0], bound=bound, least_width=min(proved, width))
        if search.bound is None and proved == width:
            proved = width + 1
        left -= search.work
    return None


def nearest(ledger: Ledger, need: Need, settings: PlacementSettings, *, width: int, most_load: float) -> NodeSet | None:
    """The set of so many nodes with the least mean distance whose highest load is not above `most_load` afterwards.

    None when no set fits or none is found within NEAREST_LIMIT.
    """
    least_more = need.weight / max(1, sum(sorted(ledger.cpu_count.values())[-width:]))
    nodes = [node for node in _useful(ledger, need) if ledger.node_load[node] + least_more <= most_load + ROUNDING]
    arena = _arena(ledger, need, replace(settings, load_weight=0.0), nodes, most_load)
    if len(arena.ids) < width:
        return None
    found = Search(arena=arena, width=width, limit=NEAREST_LIMIT).run()
    return None if found is None else NodeSet(found[2])


def cost(ledger: Ledger, need: Need, nodes: NodeSet, settings: PlacementSettings) -> float:
    """The cost of one node set, whether or not it fits."""
    return _arena(ledger, need, settings, list(nodes)).value(range(len(nodes)))[0]


def _best_one(ledger: Ledger, need: Need, settings: PlacementSettings) -> Candidate | None:
    """The best single node that fits, None when none does: most instances need no search."""
    load, weight, asked = ledger.node_load, need.weight, max(1, need.cpus)
    after = {node: load[node] + weight / count for node, count in ledger.cpu_count.items() if count >= asked}
    full, size, unusual = ledger.full_with(weight), need.memory_bytes, need.must or need.hugepages
    if need.pull or not settings.load_weight:
        after = {
            node: settings.load_weight * price(value, full) + need.pull.get(node, 0.0) for node, value in after.items()
        }
    while after:
        least = min(after.values()) + ROUNDING
        node = min((round(load[node], 9), node) for node, value in after.items() if value <= least)[1]
        nodes = NodeSet.from_mask(1 << node)
        if (not size or ledger.rooms.holds(1 << node, size)) and (not unusual or fits(ledger, need, nodes)):
            value = settings.load_weight * price(load[node] + weight / ledger.cpu_count[node], full)
            value = round(value + need.pull.get(node, 0.0), 9)
            return Candidate(nodes=nodes, cost=value, bound=value, least_width=1)
        del after[node]
    return None


def _count_needed(sizes: Sequence[int], amount: int) -> int | None:
    """How many of the largest sizes add up to the amount; None when all do not."""
    if amount <= 0:
        return 0
    for count, total in enumerate(accumulate(sizes), start=1):
        if total >= amount:
            return count
    return None


def _open_rooms(ledger: Ledger, rooms: Rooms) -> list[int]:
    return sorted((rooms.open(node) for node in ledger.cpu_count), reverse=True)


def _useful(ledger: Ledger, need: Need) -> list[int]:
    """Nodes that can contribute. Memory-only nodes only if memory is asked for."""
    wanted = need.must
    for rooms in (
        *([ledger.rooms] if need.memory_bytes else []),
        *(ledger.huge[size] for size, _ in need.hugepages if size in ledger.huge),
    ):
        wanted |= sum(1 << node for node in ledger.cpu_count if rooms.open(node))
    return [node for node, count in ledger.cpu_count.items() if count or wanted >> node & 1]


def _arena(
    ledger: Ledger, need: Need, settings: PlacementSettings, nodes: Sequence[int], most_load: float = inf
) -> Field:
    count, load, far = ledger.cpu_count, ledger.node_load, ledger.machine.remoteness
    ids = sorted(nodes, key=lambda node: (not count[node], round(load[node], 9), node))
    return Field(
        ids=ids,
        cpus=[count[node] for node in ids],
        room=[ledger.rooms.open(node) for node in ids],
        load=[load[node] for node in ids],
        far=[[row[b] for b in ids] for row in (far[a] for a in ids)],
        nearest=[ledger.machine.nearest[node] for node in ids],
        alike=ledger.machine.alike,
        least_pairs=ledger.machine.least_remoteness,
        pull=[need.pull.get(node, 0.0) for node in ids],
        rooms=ledger.rooms,
        huge=ledger.huge,
        full=ledger.full_with(need.weight),
        most_load=most_load + ROUNDING,
        need=need,
        settings=settings,
    )
