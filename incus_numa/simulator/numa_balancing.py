"""The kernel's NUMA balancing, which takes memory to where its threads run: of simulated containers that work.

Off unless it runs, as in tests that want memory to stay where they put it. Used by the demo.
"""

from __future__ import annotations

import asyncio

from incus_numa.cpuset import NodeSet
from incus_numa.simulator import trees
from incus_numa.simulator.groups import PAGE, Group
from incus_numa.simulator.kernel import Kernel

STEP_S = 0.25


class NumaBalancing:
    """Moves so many bytes in a second for each container, as a kernel does with `kernel.numa_balancing=1`."""

    def __init__(self, kernel: Kernel, bytes_per_second: int) -> None:
        self._kernel = kernel
        self._step_bytes = int(bytes_per_second * STEP_S) // PAGE * PAGE

    async def run(self) -> None:
        """Go on until it is cancelled."""
        trees.put(self._kernel.procfs / "sys/kernel/numa_balancing", "1\n")
        while True:
            self.step()
            await asyncio.sleep(STEP_S)

    def step(self) -> None:
        """What happens in STEP_S: pages that threads find elsewhere come to the nodes of their CPUs."""
        for key in self._kernel.work.working():
            group = self._kernel.groups.get(key)
            if group is not None:
                self._bring(group)

    def _bring(self, group: Group) -> None:
        machine = self._kernel.machine
        # It takes nothing beyond what the cpuset allows.
        home = machine.nodes_of(group.cpus) & machine.memory_nodes & (group.mems or machine.memory_nodes)
        with self._kernel.memory:
            moved = bring_home(group.pages, home, self._step_bytes)
            if moved != group.pages:
                group.pages = moved
                group.write_pages()


def bring_home(pages: dict[int, int], home: NodeSet, most: int) -> dict[int, int]:
    """Bytes by node after `most` of those elsewhere were brought home: to each of these nodes as much as to another."""
    moved, left = dict(pages), most if home else 0
    for node in sorted(pages.keys() - home):
        share = min(moved[node], left) // len(home) // PAGE * PAGE if home else 0
        moved[node] -= share * len(home)
        left -= share * len(home)
        for one in home:
            moved[one] = moved.get(one, 0) + share
    return moved
