"""Which sets of nodes can hold a demand, and the best one of the narrowest.

CPUs and memory are decided jointly: a set of nodes fits when the sum of its usable CPUs and the sum of its uncommitted
memory are both enough. CPUs may be shared, so committed CPUs do not make a set too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from incus_numa.cpuset import NodeSet
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.scoring import distance_matrix
from incus_numa.settings import PlacementSettings

SEARCH_LIMIT = 20_000
"""Node sets looked at per width; beyond it the best one found so far is taken. Counted, so plans are repeatable."""

UNKNOWN_MEMORY = 1 << 80
"""Room assumed on a node whose memory size is unknown: it never decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a set of nodes must hold: CPUs, the weight they commit, bytes of memory (0: memory does not matter)."""

    cpus: int
    weight: float
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A set of nodes that fits, and its cost (see scoring)."""

    nodes: NodeSet
    cost: float


@dataclass(kw_only=True, slots=True)
class Field:
    """The nodes to choose from, as parallel lists in order of load, and one search's best so far."""

    ids: list[int]
    cpus: list[int]
    room: list[int]
    load: list[float]
    far: list[list[float]]
    best: tuple[float, float, tuple[int, ...]] | None = None
    looked_at: int = 0
    chosen: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what an earlier width's search found."""
        self.best, self.looked_at, self.chosen = None, 0, []


def minimum_width(ledger: Ledger, need: Need) -> int:
    """A lower bound of the number of nodes: the larger of what CPUs and what memory need by themselves.

    0 when even all nodes together do not hold the need.
    """
    cpus = _count_needed(sorted(ledger.cpu_count.values(), reverse=True), need.cpus)
    memory = _count_needed(sorted((_room(ledger, node) for node in ledger.usable), reverse=True), need.memory_bytes)
    return max(cpus, memory, 1) if cpus is not None and memory is not None else 0


def fits(ledger: Ledger, need: Need, nodes: NodeSet) -> bool:
    """Whether the set's usable CPUs and its uncommitted memory are enough."""
    cpus = sum(ledger.cpu_count.get(node, 0) for node in nodes)
    return cpus >= need.cpus and sum(_room(ledger, node) for node in nodes) >= need.memory_bytes


def best(ledger: Ledger, need: Need, settings: PlacementSettings) -> Candidate | None:
    """The cheapest of the narrowest node sets that fit; ties go to the lower mean load, then to the lowest ids.

    None when no set fits. The search is complete up to SEARCH_LIMIT sets per width.
    """
    width = minimum_width(ledger, need)
    if not width:
        return None
    arena = _arena(ledger, need)
    while width <= len(arena.ids):
        found = _best_of_width(arena, need, width, settings)
        if found is not None:
            return found
        width += 1
    return None


def cost(ledger: Ledger, need: Need, nodes: NodeSet, settings: PlacementSettings) -> float:
    """The cost of one node set, whether or not it fits."""
    arena = _arena(ledger, need)
    position = {node: index for index, node in enumerate(arena.ids)}
    return _evaluate(arena, need, [position[node] for node in nodes if node in position], settings)[0]


def _room(ledger: Ledger, node: int) -> int:
    left = ledger.memory_left(node)
    return UNKNOWN_MEMORY if left is None else max(0, left)


def _count_needed(sizes: Sequence[int], amount: int) -> int | None:
    """How many of the largest sizes add up to the amount; None when all do not."""
    if amount <= 0:
        return 0
    for count, total in enumerate(accumulate(sizes), start=1):
        if total >= amount:
            return count
    return None


def _arena(ledger: Ledger, need: Need) -> Field:
    """Nodes that can contribute, least loaded first, then lowest id. Memory-only nodes only if memory is asked for."""
    ids = [
        node
        for node in ledger.usable
        if ledger.cpu_count[node] or (need.memory_bytes and (ledger.memory_left(node) or 0) > 0)
    ]
    ids.sort(key=lambda node: (not ledger.cpu_count[node], round(ledger.node_load[node], 9), node))
    return Field(
        ids=ids,
        cpus=[ledger.cpu_count[node] for node in ids],
        room=[_room(ledger, node) for node in ids],
        load=[ledger.node_load[node] for node in ids],
        far=distance_matrix(ledger.machine, ids),
    )


def _best_of_width(arena: Field, need: Need, width: int, settings: PlacementSettings) -> Candidate | None:
    arena.reset()
    for seed in _seeds(arena, need, width, settings):
        _consider(arena, need, seed, settings)
    _descend(arena, need, width, settings, start=0, pairs=0.0)
    if arena.best is None:
        return None
    return Candidate(nodes=NodeSet(arena.best[2]), cost=arena.best[0])


def _seeds(arena: Field, need: Need, width: int, settings: PlacementSettings) -> list[list[int]]:
    """Good first guesses: the roomiest sets, which fit if any does, and a set grown around each node."""
    everything = range(len(arena.ids))
    seeds = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):

        def share(index: int, part: float = part) -> float:
            cpus = arena.cpus[index] / max(1, need.cpus)
            memory = min(1.0, arena.room[index] / max(1, need.memory_bytes))
            return -(part * cpus + (1 - part) * memory)

        seeds.append(sorted(everything, key=share)[:width])
    for first in everything if width > 1 else ():
        near = sorted(
            (index for index in everything if index != first),
            key=lambda index: (
                settings.load_weight * arena.load[index] + settings.distance_weight * arena.far[first][index] / 2
            ),
        )
        seeds.append([first, *near[: width - 1]])
    return seeds


def _evaluate(
    arena: Field, need: Need, members: Sequence[int], settings: PlacementSettings
) -> tuple[float, float, tuple[int, ...]]:
    """Cost, mean load and ids: the order that sets are compared in. Rounded, so that sums in any order are equal."""
    cpus = sum(arena.cpus[index] for index in members)
    loads = [arena.load[index] for index in members if arena.cpus[index]]
    worst = max(loads, default=0.0) + (need.weight / cpus if cpus else 0.0)
    count = len(members)
    pairs = sum(arena.far[a][b] for place, a in enumerate(members) for b in members[place + 1 :])
    far = pairs / (count * (count - 1)) if count > 1 else 0.0
    total = settings.load_weight * worst + settings.distance_weight * far
    mean = sum(loads) / len(loads) if loads else 0.0
    return round(total, 9), round(mean, 9), tuple(sorted(arena.ids[index] for index in members))


def _consider(arena: Field, need: Need, members: Sequence[int], settings: PlacementSettings) -> None:
    if sum(arena.cpus[index] for index in members) < need.cpus:
        return
    if sum(arena.room[index] for index in members) < need.memory_bytes:
        return
    value = _evaluate(arena, need, members, settings)
    if arena.best is None or value < arena.best:
        arena.best = value


def _descend(arena: Field, need: Need, width: int, settings: PlacementSettings, *, start: int, pairs: float) -> None:
    """Depth-first over sets in order of load, cutting branches whose cost cannot beat the best so far."""
    chosen = arena.chosen
    missing = width - len(chosen)
    if not missing:
        arena.looked_at += 1
        _consider(arena, need, chosen, settings)
        return
    most_cpus = max(arena.cpus)
    enough = sum(arena.cpus[index] for index in chosen) + missing * most_cpus
    least_added = settings.load_weight * need.weight / max(1, enough)
    for index in range(start, len(arena.ids) - missing + 1):
        if arena.looked_at >= SEARCH_LIMIT:
            return
        added = pairs + sum(arena.far[index][other] for other in chosen)
        if arena.best is not None:
            worst = max(arena.load[other] for other in (*chosen, index))
            distance = added / (width * (width - 1)) if width > 1 else 0.0
            bound = settings.load_weight * worst + least_added + settings.distance_weight * distance
            if round(bound, 9) > arena.best[0]:
                # Nodes come in order of load, so without distances no later node can be better either.
                if not settings.distance_weight or width == 1:
                    return
                arena.looked_at += 1
                continue
        chosen.append(index)
        _descend(arena, need, width, settings, start=index + 1, pairs=added)
        chosen.pop()
