"""When memory is bound, and to which nodes."""

from __future__ import annotations

from typing import assert_never

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import MemoryMode
from incus_numa.model.machine import Machine


def mems_for(machine: Machine, nodes: NodeSet, mode: MemoryMode) -> NodeSet | None:
    """The nodes to bind memory to, None to leave it to the kernel.

    A host with one node is never bound. `local` binds a one-node placement whose memory is known; `bind` binds to
    those nodes of the placement that have memory.
    """
    if len(machine.nodes) < 2:
        return None
    match mode:
        case MemoryMode.NONE:
            return None
        case MemoryMode.LOCAL:
            known = len(nodes) == 1 and bool(machine.node_by_id[nodes.lowest()].memory_bytes)
            return nodes if known else None
        case MemoryMode.BIND:
            return nodes & machine.memory_nodes or None
    assert_never(mode)
