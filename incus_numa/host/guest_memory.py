"""Where a virtual machine's memory is, and where it may be taken from.

Called by `virtual` and by the sampler, which share what was read.

Formats: proc(5), `/proc/PID/numa_maps`; policies are written by mpol_to_str() in the kernel's mm/mempolicy.c.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from incus_numa.cpuset import NodeSet
from incus_numa.errors import ReportError
from incus_numa.host import counters
from incus_numa.host.threads import read_file

PERIOD_S = 60.0
"""`numa_maps` of a process is read this often: the kernel walks all its pages for that, about 100 ns for each."""

PART = 0.01
"""... and less often where reading it would take more than this part of the time."""

AT_ONCE = 4
"""The memory of so many processes is read at a time by whoever reads that of all, in as many threads."""

_BIND = re.compile(rb"^[0-9a-f]+ bind(?:=[a-z|]+)?:([0-9,-]+)(?: |$)", re.MULTILINE)
"""A mapping that is bound, perhaps with flags: `7f2a40000000 bind=static|balancing:0-1 file=/memfd:...`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VmMemory:
    """Bytes by node that the process has, and the nodes that some of its mappings are bound to, empty for none.

    QEMU binds nothing but the guest's memory. None is what the kernel does not tell.
    """

    by_node: Mapping[int, int] | None = None
    bound: NodeSet | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """Memory as read last, when that began, and when it is to be read again. `started` tells the process."""

    started: int
    began_s: float
    due_s: float
    memory: VmMemory


class GuestMemory:
    """Reads `numa_maps`, seldom, and remembers it. May be called from several threads at once.

    What has to be read takes long, so whoever has others waiting reads it in a thread.
    """

    def __init__(self, procfs: str) -> None:
        self._procfs = procfs
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()

    def read(self, pid: int, started: int, *, fresh: bool = False) -> VmMemory:
        """Memory of a process by id and start; up to PERIOD_S old, or older where it is large, unless `fresh`."""
        began = time.monotonic()
        seen = self._seen.get(pid)
        if seen is not None and seen.started == started and began < seen.due_s and not fresh:
            return seen.memory
        memory = parse_memory(self._read_maps(pid))
        due_s = began + max(PERIOD_S, (time.monotonic() - began) / PART)
        self._keep(pid, _Seen(started=started, began_s=began, due_s=due_s, memory=memory))
        return memory

    def _keep(self, pid: int, found: _Seen) -> None:
        """Remember it, unless somebody who began later was done first."""
        with self._lock:
            before = self._seen.get(pid)
            if before is not None and before.began_s > found.began_s:
                return
            # Processes that nobody asks for any more are long overdue.
            kept = {one: known for one, known in self._seen.items() if found.began_s < known.due_s + PERIOD_S}
            self._seen = kept | {pid: found}

    def _read_maps(self, pid: int) -> bytes:
        try:
            return read_file(f"{self._procfs}/{pid}/numa_maps")
        except ReportError:
            return b""


def parse_memory(text: bytes) -> VmMemory:
    """A whole `numa_maps`. What is not understood is unknown."""
    if not text:
        return VmMemory()
    return VmMemory(by_node=counters.parse_numa_maps(text), bound=_parse_bound(text))


def _parse_bound(text: bytes) -> NodeSet | None:
    bound = NodeSet()
    for nodes in _BIND.findall(text):
        try:
            bound |= NodeSet.parse(nodes.decode())
        except ValueError:
            return None
    return bound
