"""The rule of `smt = "spread"` over time: no core is shared while another one of the node stays idle.

Choosing CPUs keeps it for a new instance; it breaks when others leave. Only as many CPUs change as it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.rooms import bits


class IdleCores:
    """Cores that nobody has chosen, and how often each CPU was chosen.

    An instance that may run on all usable CPUs of a node has chosen none of them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        least = min((count for count in ledger.cpu_count.values() if count), default=0)
        some = 0
        for _, cpus, _, _ in ledger.entries.values():
            if cpus.bit_count() < least:
                some |= cpus
        self._full = not ledger.usable_mask & ~some
        self._taken: dict[int, int] = {}
        self._threads: dict[int, Mapping[int, int]] = {}
        self._counts: dict[int, dict[int, int]] = {}

    def spread_out(self, nodes: NodeSet, cpus: CpuSet) -> CpuSet:
        """The CPUs of an instance, those on shared cores replaced by CPUs of idle cores of the same node."""
        if self._full:
            return cpus
        mask = cpus.mask
        for node in nodes & self._ledger.cpu_nodes:
            usable = self._ledger.usable[node].mask
            own = mask & usable
            if own and own != usable and self._idle(node):
                mask = mask & ~own | self._spread_in(node, own)
        return cpus if mask == cpus.mask else CpuSet.from_mask(mask)

    def _spread_in(self, node: int, own: int) -> int:
        counts, usable = self._count(node), self._ledger.usable[node].mask
        idle = self._idle(node)
        for threads in self._cores(node).values():
            mine = own & threads
            if not mine:
                continue
            alone = all(counts[cpu] == (mine >> cpu & 1) for cpu in bits(threads & usable))
            for cpu in list(bits(mine & (mine - 1) if alone else mine)):
                if not idle:
                    return own
                new = self._take(node, idle, own)
                own = own & ~(1 << cpu) | 1 << new
                counts[cpu] -= 1
                counts[new] += 1
                self._taken[node] |= 1 << new
        return own

    def _take(self, node: int, idle: list[int], own: int) -> int:
        """A CPU of the least loaded idle core, then of one in an L3 that the instance uses. It is idle no more."""
        loads, known = self._ledger.cpu_load(node), self._ledger.machine.cpu_by_id
        caches = {known[cpu].l3 for cpu in bits(own)}
        usable = self._ledger.usable[node].mask

        def merit(core: int) -> tuple[float, bool, int]:
            threads = self._cores(node)[core]
            return round(sum(loads[cpu] for cpu in bits(threads)), 9), known[core].l3 not in caches, core

        best = min(idle, key=merit)
        idle.remove(best)
        threads = self._cores(node)[best] & usable
        return (threads & -threads).bit_length() - 1

    def _cores(self, node: int) -> Mapping[int, int]:
        """The threads of each core of a node, as masks."""
        cores = self._threads.get(node)
        if cores is None:
            found: dict[int, int] = {}
            for cpu in self._ledger.machine.cpus_by_node[node]:
                found[cpu.core] = found.get(cpu.core, 0) | 1 << cpu.id
            cores = self._threads[node] = found
        return cores

    def _idle(self, node: int) -> list[int]:
        usable = self._ledger.usable[node].mask
        taken = self._taken.get(node)
        if taken is None:
            taken = 0
            for _, cpus, _, _ in self._ledger.entries.values():
                here = cpus & usable
                if here != usable:
                    taken |= here
            self._taken[node] = taken
        if not usable & ~taken:
            return []
        return [core for core, threads in self._cores(node).items() if threads & usable and not threads & taken]

    def _count(self, node: int) -> dict[int, int]:
        counts = self._counts.get(node)
        if counts is None:
            usable = self._ledger.usable[node].mask
            counts = self._counts[node] = dict.fromkeys(bits(usable), 0)
            for entry in self._ledger.entries.values():
                if entry.cpus & usable and usable & ~entry.cpus:
                    for cpu in bits(entry.cpus & usable):
                        counts[cpu] += 1
        return counts
