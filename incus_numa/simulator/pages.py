"""Memory of simulated instances, moved slice by slice. Used by tests, in the process that the simulator runs in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from incus_numa.errors import GoneError
from incus_numa.model.plan import MovePages
from incus_numa.simulator.groups import Group
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.virtual import VirtualMachine


class SimulatedPages:
    """A PageMover over the fake kernel. Slices have `slice_bytes`, whose pages of files move along."""

    def __init__(self, kernel: Kernel, slice_bytes: int = 16 << 20) -> None:
        self._kernel = kernel
        self._slice_bytes = slice_bytes

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        """Each item is the bytes of one slice, which goes to each of the targets in turn. Raises GoneError."""
        targets = cycle(step.targets)
        for source in step.sources - step.targets:
            while size := self._move_slice(group, source, next(targets)):
                yield size

    def _move_slice(self, group: Path, source: int, target: int) -> int:
        """The bytes that one slice moved; 0 when nothing is left, or the target is not allowed. Raises GoneError."""
        with self._kernel.memory:
            found = self._find(group)
            size = min(found.pages.get(source, 0), self._slice_bytes)
            # A kernel moves nothing to nodes that the cpuset, which may have been written meanwhile, forbids.
            if not size or (isinstance(found, Group) and found.mems and target not in found.mems):
                return 0
            pages = dict(found.pages)
            pages[source] -= size
            pages[target] = pages.get(target, 0) + size
            if isinstance(found, VirtualMachine):
                found.set_pages(pages)
            else:
                found.pages = pages
                found.write_pages()
            return size

    def _find(self, group: Path) -> Group | VirtualMachine:
        for found in tuple(self._kernel.groups.values()):
            if found.path == group:
                return found
        for machine in tuple(self._kernel.machines.values()):
            if machine.folder == group:
                return machine
        raise GoneError(f"{group} no longer exists")
