"""The machine and the instances of incus#1605, for `incus-numa demo`.

Two 96-core CPUs that show 24 nodes of 16 threads, and instances of up to 48 vCPUs on them. Pure values.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import Cpu, Machine, Node

_NODES = 24
_NODES_PER_SOCKET = 12
_CORES_PER_NODE = 8
_CORES = _NODES * _CORES_PER_NODE
_NODE_BYTES = 31 << 30

INSTANCES: tuple[tuple[str, int, int], ...] = (
    *(("web1", 2, 1), ("ci1", 16, 8), ("web2", 2, 1), ("db1", 48, 24), ("web3", 2, 1), ("cache1", 8, 12)),
    *(("ci2", 16, 8), ("web4", 2, 1), ("build1", 16, 8), ("mail", 4, 4), ("db2", 48, 24), ("web5", 2, 1)),
    *(("web6", 2, 1), ("ci3", 16, 8), ("analytics", 64, 32), ("web7", 2, 1), ("cache2", 8, 12), ("web8", 2, 1)),
    *(("ci4", 16, 8), ("proxy", 4, 1), ("build2", 16, 8), ("web9", 2, 1), ("dns1", 1, 1), ("db3", 48, 24)),
    *(("dns2", 1, 1), ("ci5", 16, 8), ("ldap", 2, 2), ("log", 4, 8)),
)
"""Name, `limits.cpu`, `limits.memory` in GiB, in the order in which they are started."""

WORK: Mapping[str, float] = {
    name: cpus
    for cpus, names in (
        (24.0, ("analytics",)),
        (20.0, ("db1",)),
        (12.0, ("db2",)),
        (7.5, ("cache1",)),
        (5.0, ("ci1", "build1")),
        (3.8, ("proxy", "mail", "db3")),
        (1.9, tuple(f"web{number}" for number in range(1, 10))),
        (1.5, ("ci2", "build2", "ldap")),
        (0.2, ("log", "dns1", "dns2")),
    )
    for name in names
}
"""CPUs that instances keep busy where they are to work; the others idle."""


def machine() -> Machine:
    """The host: siblings are CPU n and n + 192, one L3 per node; distances 11 and 12 in a socket, 32 across."""
    cpus = tuple(
        Cpu(
            id=cpu,
            node=cpu % _CORES // _CORES_PER_NODE,
            socket=cpu % _CORES // _CORES_PER_NODE // _NODES_PER_SOCKET,
            core=cpu % _CORES,
            l3=cpu % _CORES // _CORES_PER_NODE * _CORES_PER_NODE,
        )
        for cpu in range(2 * _CORES)
    )
    nodes = tuple(
        Node(
            id=node,
            cpus=CpuSet(cpu.id for cpu in cpus if cpu.node == node),
            memory_bytes=_NODE_BYTES,
            free_bytes=_NODE_BYTES * 9 // 10,
            distances={other: _distance(node, other) for other in range(_NODES)},
        )
        for node in range(_NODES)
    )
    return Machine(name="incus1605", nodes=nodes, cpus=cpus, online=CpuSet(range(2 * _CORES)))


def _distance(a: int, b: int) -> int:
    if a == b:
        return 10
    if a // _NODES_PER_SOCKET != b // _NODES_PER_SOCKET:
        return 32
    return 11 if a // 3 == b // 3 else 12
