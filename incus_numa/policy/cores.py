"""The rule of `smt = "spread"` over time: no core is shared while another one of the node stays idle.

Choosing CPUs keeps it for a new instance; it breaks when others leave. Only as many CPUs change as it takes.
"""

from __future__ import annotations

from functools import cached_property

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Core, CoreKind
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.picking import units
from incus_numa.policy.rooms import bits


class IdleCores:
    """Cores that nobody has chosen, and how often each CPU was chosen, as the ledger is when this is made.

    An instance that may run on all usable CPUs of a node has chosen none of them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        least = min((count for count in ledger.cpu_count.values() if count), default=0)
        some = 0
        for entry in ledger.entries.values():
            if entry.cpus.bit_count() < least:
                some |= entry.cpus
        self._full = not ledger.usable_mask & ~some
        self._boards: dict[int, Board] = {}

    def spread_out(self, nodes: NodeSet, cpus: CpuSet, cores: CoreKind | None = None) -> CpuSet:
        """The CPUs of an instance, those on shared cores replaced by CPUs of idle cores of the same node.

        The very same value where nothing changes. A CPU of the kind of cores asked for is not replaced by another kind.
        """
        if self._full:
            return cpus
        mask = cpus.mask
        for node in nodes & self._ledger.cpu_nodes:
            usable = self._ledger.usable[node].mask
            own = mask & usable
            if own and own != usable:
                board = self._boards.get(node)
                if board is None:
                    board = self._boards[node] = Board(self._ledger, node, self._chosen.get(node, []))
                if board.idle and own & board.crowded:
                    mask = mask & ~own | board.spread_out(own, cores)
        return cpus if mask == cpus.mask else CpuSet.from_mask(mask)

    @cached_property
    def _chosen(self) -> dict[int, list[int]]:
        """What the instances have chosen, as masks, by node."""
        usable = [(node, cpus.mask) for node, cpus in self._ledger.usable.items() if cpus]
        home = {cpu: (node, mask) for node, mask in usable for cpu in bits(mask)}
        chosen: dict[int, list[int]] = {node: [] for node, _ in usable}
        whole = self._ledger.usable_mask
        for entry in self._ledger.entries.values():
            left = entry.cpus & whole
            while left:
                node, mask = home[(left & -left).bit_length() - 1]
                if mask & ~left:
                    chosen[node].append(left & mask)
                left &= ~mask
        return chosen


class Board:
    """One node: who has how many CPUs, its idle cores, and the CPUs of cores that more than one CPU is chosen of."""

    def __init__(self, ledger: Ledger, node: int, chosen: list[int]) -> None:
        self._loads = ledger.cpu_load(node)
        self._usable = usable = ledger.usable[node].mask
        self._cores = [core for core in ledger.machine.cores_by_node[node] if core.mask & usable]
        self._counts = dict.fromkeys(bits(usable), 0)
        for mask in chosen:
            for cpu in bits(mask):
                self._counts[cpu] += 1
        self.idle: list[Core] = []
        self.crowded = 0
        for core in self._cores:
            self._judge(core)

    def spread_out(self, own: int, cores: CoreKind | None) -> int:
        """CPUs of an instance on idle cores instead of shared ones, for as long as there are some."""
        for core in self._cores:
            mine = own & core.mask
            if not mine & self.crowded:
                continue
            idle = (
                self.idle
                if cores is None or core.kind is not cores
                else [one for one in self.idle if one.kind is cores]
            )
            alone = all(self._counts[cpu] == (mine >> cpu & 1) for cpu in bits(core.mask & self._usable))
            for cpu in list(bits(mine & (mine - 1) if alone else mine)):
                if not idle:
                    break
                own ^= 1 << cpu | 1 << self._take(idle, own, cores)
                self._counts[cpu] -= 1
            self._judge(core)
        return own

    def _take(self, idle: list[Core], own: int, cores: CoreKind | None) -> int:
        """A CPU of the least loaded idle core, then of one in an L3 that the instance uses. It is idle no more."""
        caches = {core.l3 for core in self._cores if core.mask & own}

        def merit(core: Core) -> tuple[bool, int, bool, int]:
            load = units(sum(self._loads[cpu] for cpu in core.threads))
            return core.kind is not cores, load, core.l3 not in caches, core.id

        best = min(idle, key=merit)
        idle.remove(best)
        if idle is not self.idle:
            self.idle.remove(best)
        free = best.mask & self._usable
        new = (free & -free).bit_length() - 1
        self._counts[new] += 1
        return new

    def _judge(self, core: Core) -> None:
        """See whether a core is crowded, and when the counts are new, whether it is idle."""
        total = sum(self._counts[cpu] for cpu in bits(core.mask & self._usable))
        self.crowded = self.crowded | core.mask if total > 1 else self.crowded & ~core.mask
        if not total:
            self.idle.append(core)
