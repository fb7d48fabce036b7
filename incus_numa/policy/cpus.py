"""Which CPUs inside the chosen nodes: even over the nodes, least loaded core first, whole cores before siblings
(`smt = "spread"`) or filled cores (`smt = "pack"`), one L3 before two, and what it has where that is not worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Cpu
from incus_numa.policy.ledger import Ledger

LEAST_PART = 1e-6
"""Load that a CPU is counted with at least, so that an instance without weight is spread, too."""

Rank = tuple[float, int, float, bool, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuWish:
    """How many CPUs, the weight they commit, the SMT rule, and the CPUs it has (kept where they are as good)."""

    count: int
    weight: float
    pack: bool = False
    has: CpuSet


def even_shares(ledger: Ledger, nodes: NodeSet, count: int) -> dict[int, int]:
    """CPUs per node: as equal as the nodes' sizes allow; what does not divide goes to the least loaded nodes."""
    order = sorted(
        (node for node in nodes if ledger.cpu_count.get(node)),
        key=lambda node: (round(ledger.node_load[node], 9), node),
    )
    shares = dict.fromkeys(order, 0)
    left = min(count, sum(ledger.cpu_count[node] for node in order))
    while left:
        open_nodes = [node for node in order if shares[node] < ledger.cpu_count[node]]
        lowest = min(shares[node] for node in open_nodes)
        for node in [node for node in open_nodes if shares[node] == lowest][:left]:
            shares[node] += 1
            left -= 1
    return shares


def is_even(ledger: Ledger, nodes: NodeSet, cpus: CpuSet) -> bool:
    """Whether no usable CPU of another node of the set could take over from a node that has more."""
    used = {node: len(ledger.usable[node] & cpus) for node in nodes & ledger.cpu_nodes}
    roomy = [amount for node, amount in used.items() if amount < ledger.cpu_count[node]]
    return not roomy or max(used.values()) - min(roomy) <= 1


def legal(ledger: Ledger, nodes: NodeSet, cpus: CpuSet, count: int) -> bool:
    """Whether the CPUs are as many as asked, usable, inside the nodes, and even over them."""
    allowed = 0
    for node in nodes & ledger.nodes:
        allowed |= ledger.usable[node].mask
    return len(cpus) == count and not cpus.mask & ~allowed and is_even(ledger, nodes, cpus)


def choose(ledger: Ledger, nodes: NodeSet, wish: CpuWish) -> CpuSet:
    """The best CPUs of the nodes for the wish. Fewer than asked only where the nodes have fewer."""
    chosen = 0
    for node, share in even_shares(ledger, nodes, wish.count).items():
        usable = ledger.usable[node]
        if share == len(usable):
            chosen |= usable.mask
        elif share:
            chosen |= _choose_in_node(ledger, node, share, wish).mask
    return CpuSet.from_mask(chosen)


def burden(ledger: Ledger, cpus: CpuSet, weight: float) -> tuple[float, int]:
    """How bad a choice is: squared load of the cores it would use, then the number of L3 caches. Lower is better."""
    machine = ledger.machine
    chosen = [machine.cpu_by_id[cpu] for cpu in cpus]
    core_load: dict[int, float] = {}
    for node in machine.nodes_of(cpus):
        core_load |= _core_loads(ledger, node)
    return round(_squares(chosen, weight / max(1, len(cpus)), core_load), 9), len({cpu.l3 for cpu in chosen})


def _core_loads(ledger: Ledger, node: int) -> dict[int, float]:
    """Committed load of each core of a node: of all its threads, whether usable or not."""
    loads, sums = ledger.cpu_load(node), dict[int, float]()
    for cpu in ledger.machine.cpus_by_node[node]:
        sums[cpu.core] = sums.get(cpu.core, 0.0) + loads[cpu.id]
    return sums


def _choose_in_node(ledger: Ledger, node: int, share: int, wish: CpuWish) -> CpuSet:
    """One L3 if one is as good as any CPUs of the node, else the best CPUs."""
    usable, loads = ledger.usable[node].mask, ledger.cpu_load(node)
    everywhere = [cpu for cpu in ledger.machine.cpus_by_node[node] if usable >> cpu.id & 1]
    groups: dict[int | None, list[Cpu]] = {}
    for cpu in everywhere:
        groups.setdefault(cpu.l3, []).append(cpu)
    part = max(wish.weight / max(1, wish.count), LEAST_PART)
    picking = Picking(wish=wish, part=part, loads=loads, core_load=_core_loads(ledger, node))
    options = [picking.pick(everywhere, share)]
    if len(groups) > 1:
        options += [picking.pick(group, share) for group in groups.values() if len(group) >= share]

    def quality(option: Sequence[Cpu]) -> tuple[float, float, int, int, tuple[int, ...]]:
        ids = tuple(sorted(cpu.id for cpu in option))
        return (
            round(_squares(option, part, picking.core_load), 9) if not wish.pack else 0.0,
            round(sum(loads[cpu] for cpu in ids), 9),
            len({cpu.l3 for cpu in option}),
            -sum(cpu in wish.has for cpu in ids),
            ids,
        )

    return CpuSet(cpu.id for cpu in min(options, key=quality))


def _squares(option: Iterable[Cpu], part: float, core_load: Mapping[int, float]) -> float:
    own: dict[int, float] = {}
    for cpu in option:
        own[cpu.core] = own.get(cpu.core, 0.0) + part
    return sum((core_load[core] + mine) ** 2 for core, mine in own.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Picking:
    """How CPUs of one node are picked, one after the other; each choice sees what the earlier ones added."""

    wish: CpuWish
    part: float
    loads: Mapping[int, float]
    core_load: Mapping[int, float]

    def pick(self, cpus: Sequence[Cpu], share: int) -> list[Cpu]:
        """So many of the CPUs. Those of one L3 wait in a heap, so that a pick looks at one CPU per L3 only."""
        known = {cpu.id: cpu for cpu in cpus}
        rank = {cpu.id: self._rank(cpu, 0) for cpu in cpus}
        siblings: dict[int, list[Cpu]] = {}
        heaps: dict[int | None, list[Rank]] = {}
        for cpu in cpus:
            siblings.setdefault(cpu.core, []).append(cpu)
            heaps.setdefault(cpu.l3, []).append(rank[cpu.id])
        for heap in heaps.values():
            heapify(heap)
        room = {l3: len(heap) for l3, heap in heaps.items()}
        threads, caches = dict.fromkeys(siblings, 0), dict.fromkeys(heaps, 0)
        picked: list[Cpu] = []
        for _ in range(share):
            heads = [(_head(heap, rank), l3) for l3, heap in heaps.items() if heap]
            best = min((*one[:2], -caches[l3], *one[2:4], -room[l3], one[4]) for one, l3 in heads if one)
            cpu = known[best[-1]]
            picked.append(cpu)
            del rank[cpu.id]
            threads[cpu.core] += 1
            caches[cpu.l3] += 1
            for sibling in siblings[cpu.core]:
                if sibling.id in rank:
                    rank[sibling.id] = self._rank(sibling, threads[cpu.core])
                    heappush(heaps[sibling.l3], rank[sibling.id])
        return picked

    def _rank(self, cpu: Cpu, mine: int) -> Rank:
        """The order of CPUs in one L3 when the instance already has `mine` threads of the core."""
        core, load = self.core_load[cpu.core], round(self.loads[cpu.id], 9)
        if self.wish.pack:
            return load, -mine, -round(core, 9), cpu.id not in self.wish.has, cpu.id
        return round(core + self.part * mine, 9), mine, load, cpu.id not in self.wish.has, cpu.id


def _head(heap: list[Rank], rank: Mapping[int, Rank]) -> Rank | None:
    """The best CPU of a heap that is not picked, dropping entries whose rank has changed since."""
    while heap and rank.get(heap[0][4]) is not heap[0]:
        heappop(heap)
    return heap[0] if heap else None
