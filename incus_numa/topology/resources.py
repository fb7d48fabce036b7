"""What the server says about the host in `GET /1.0/resources`, merged into what sysfs says.

Called by the daemon and the one-shot commands after `sysfs.read_machine`. The server has no distances and no L3
sharing, counts what it does not know as node 0, and caches for seconds, so sysfs wins wherever both speak.
Fields: Resources in shared/api/resource.go of Incus; LXD answers alike.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from incus_numa.cpuset import MAX_ID, CpuSet, NodeSet
from incus_numa.errors import ReportError
from incus_numa.model.machine import Machine, Node


class _Thread(msgspec.Struct):
    id: int
    numa_node: int = 0
    online: bool = True
    isolated: bool = False


class _Core(msgspec.Struct):
    threads: list[_Thread] | None = None


class _Socket(msgspec.Struct):
    cores: list[_Core] | None = None


class _Processors(msgspec.Struct):
    sockets: list[_Socket] | None = None


class _MemoryNode(msgspec.Struct):
    total: int
    numa_node: int = 0
    used: int = 0


class _Memory(msgspec.Struct):
    total: int = 0
    used: int = 0
    nodes: list[_MemoryNode] | None = None


class _Resources(msgspec.Struct):
    cpu: _Processors | None = None
    memory: _Memory | None = None


class _Answer(_Resources):
    """The whole response, or its `metadata` alone."""

    metadata: _Resources | None = None


def merge_resources(machine: Machine, resources: bytes) -> Machine:
    """The machine plus what only the server knows: isolated CPUs and memory that sysfs does not tell.

    `resources` is the body of `GET /1.0/resources` or its `metadata`. A contradiction is a warning and sysfs wins.
    Raises ReportError if it is not such a document.
    """
    found = _decode(resources)
    threads = _threads(found)
    memory = found.memory or _Memory()
    isolated = CpuSet(thread.id for thread in threads if thread.isolated)
    warnings = _check_threads(machine, threads, isolated) + _check_memory(machine, memory)
    return replace(
        machine,
        nodes=_merge_memory(machine.nodes, memory),
        isolated=machine.isolated or isolated,
        warnings=machine.warnings + warnings,
    )


def count_cpus(resources: bytes) -> tuple[int, int]:
    """How many CPUs and nodes with CPUs the server sees, isolated and offline ones too: what its own balancing counts.

    0 where it lists none. Raises ReportError like `merge_resources`.
    """
    threads = _threads(_decode(resources))
    return len({thread.id for thread in threads}), len({thread.numa_node for thread in threads})


def _threads(found: _Resources) -> list[_Thread]:
    return [
        thread
        for socket in (found.cpu and found.cpu.sockets) or ()
        for core in socket.cores or ()
        for thread in core.threads or ()
        if 0 <= thread.id < MAX_ID
    ]


def _decode(resources: bytes) -> _Resources:
    try:
        answer = msgspec.json.decode(resources, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise ReportError(f"the server's resources cannot be read: {exc}") from exc
    found = answer.metadata or answer
    if found.cpu is None and found.memory is None:
        raise ReportError("the server's resources have neither cpu nor memory")
    return found


def _merge_memory(nodes: tuple[Node, ...], memory: _Memory) -> tuple[Node, ...]:
    known = {one.numa_node: one for one in memory.nodes or ()}
    if not known and len(nodes) == 1 and memory.total > 0:
        known = {nodes[0].id: _MemoryNode(total=memory.total, used=memory.used)}
    return tuple(_add_memory(node, known.get(node.id)) for node in nodes)


def _add_memory(node: Node, known: _MemoryNode | None) -> Node:
    """Fill in what is unknown; free memory only where the server means the same total."""
    if known is None or known.total < 0 or node.memory_bytes not in (None, known.total):
        return node
    sane = 0 <= known.used <= known.total
    free = node.free_bytes if node.free_bytes is not None or not sane else known.total - known.used
    return replace(node, memory_bytes=known.total, free_bytes=free)


def _check_threads(machine: Machine, threads: list[_Thread], isolated: CpuSet) -> tuple[str, ...]:
    online = CpuSet(thread.id for thread in threads if thread.online)
    warnings = []
    if threads and online != machine.online:
        warnings.append(f"the server says that CPUs {online or 'none'} are online, sysfs says {machine.online}")
    if threads and machine.isolated and isolated != machine.isolated:
        warnings.append(f"the server says that CPUs {isolated or 'none'} are isolated, sysfs says {machine.isolated}")
    elsewhere: dict[tuple[int, int], list[int]] = {}
    for thread in threads:
        cpu = machine.cpu_by_id.get(thread.id)
        if cpu is not None and cpu.node is not None and cpu.node != thread.numa_node:
            elsewhere.setdefault((thread.numa_node, cpu.node), []).append(cpu.id)
    warnings += [
        f"the server counts CPUs {CpuSet(cpus)} in node {theirs}, sysfs in node {ours}"
        for (theirs, ours), cpus in sorted(elsewhere.items())
    ]
    return tuple(warnings)


def _check_memory(machine: Machine, memory: _Memory) -> tuple[str, ...]:
    warnings = []
    for one in sorted(memory.nodes or (), key=lambda one: one.numa_node):
        node = machine.node_by_id.get(one.numa_node)
        if node is None:
            warnings.append(
                f"the server has memory in node {one.numa_node}, sysfs has nodes {NodeSet(machine.node_by_id)}"
            )
        elif node.memory_bytes not in (None, one.total):
            warnings.append(
                f"the server says that node {node.id} has {one.total} bytes of memory, sysfs says {node.memory_bytes}"
            )
    return tuple(warnings)
