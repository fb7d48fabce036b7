"""NUMA nodes: their CPUs, memory, huge pages and distances, from `devices/system/node`.

Files: Documentation/ABI/stable/sysfs-devices-node. Node ids may have gaps; a distance row has one number per online
node, in order of their ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Node
from incus_numa.topology.cores import CPU_DIR
from incus_numa.topology.files import KernelFiles
from incus_numa.topology.hugepages import read_hugepages
from incus_numa.topology.meminfo import parse_meminfo

_NODE_DIR = "devices/system/node"
_NODE = f"{_NODE_DIR}/node{{}}"


def read_nodes(files: KernelFiles, online: CpuSet) -> tuple[Node, ...]:
    """The nodes in order of their ids; empty if the kernel shows none."""
    ids = _read_ids(files)
    links = {} if ids else _read_links(files, online)
    ids = ids or NodeSet(links)
    nodes = []
    for node in ids:
        total, free = _read_memory(files, node)
        nodes.append(
            Node(
                id=node,
                cpus=links[node] if links else _read_cpus(files, node, online),
                memory_bytes=total,
                free_bytes=free,
                distances=_read_distances(files, node, ids),
                hugepages=read_hugepages(files, _NODE, node, total),
            )
        )
    return tuple(nodes)


def _read_ids(files: KernelFiles) -> NodeSet:
    """The nodes that have a directory and, where the kernel lists them, are online."""
    shown = NodeSet(files.numbered(_NODE_DIR, "node") or ())
    listed = files.node_list(f"{_NODE_DIR}/online")
    if listed is None or listed == shown:
        return shown
    files.notes.add(f"{files.shown}/{_NODE_DIR}/online says {listed}, but there are directories for {shown or 'none'}")
    return (shown & listed) or shown


def _read_cpus(files: KernelFiles, node: int, online: CpuSet) -> CpuSet:
    """The online CPUs of a node. Old machines name offline or absent CPUs as well; the mask beats the list."""
    mask = files.cpus(_NODE, ("cpumap",), node)
    listed = files.cpus(_NODE, ("cpulist",), node)
    if mask is None and listed is None:
        links = CpuSet(cpu for cpu in online if node in (files.numbered(f"{CPU_DIR}/cpu{cpu}", "node") or ()))
        files.notes.add(
            f"{files.shown}/{_NODE}/cpumap and cpulist are missing: expected the node's CPUs,"
            f" so only what the CPUs' own directories say is known",
            node,
        )
        return links
    if mask is not None and listed is not None and (mask & online) != (listed & online):
        files.notes.add(f"{files.shown}/{_NODE}/cpulist contradicts cpumap, which is believed", node)
    found = mask if mask is not None else listed
    return CpuSet() if found is None else found & online


def _read_links(files: KernelFiles, online: CpuSet) -> dict[int, CpuSet]:
    """Nodes by the entries `cpuN/nodeM`, for a tree that has no node directory."""
    nodes: dict[int, CpuSet] = {}
    for cpu in online:
        for node in files.numbered(f"{CPU_DIR}/cpu{cpu}", "node") or ():
            nodes[node] = nodes.get(node, CpuSet()) | CpuSet((cpu,))
    return nodes


def _read_memory(files: KernelFiles, node: int) -> tuple[int | None, int | None]:
    info = parse_meminfo(files.text(f"{_NODE.format(node)}/meminfo") or "")
    if info.total_bytes is None:
        files.notes.add(
            f"{files.shown}/{_NODE}/meminfo is missing or has no MemTotal line: the node's memory is unknown", node
        )
    return info.total_bytes, info.free_bytes


def _read_distances(files: KernelFiles, node: int, ids: NodeSet) -> Mapping[int, int]:
    """Distances by node id, {} unless the row has one positive number for every node."""
    row = (files.text(f"{_NODE.format(node)}/distance") or "").split()
    numbers = [int(field) for field in row if re.fullmatch(r"[0-9]{1,9}", field)]
    if len(numbers) == len(row) == len(ids) and all(numbers):
        return dict(zip(ids, numbers, strict=True))
    files.notes.add(
        f"{files.shown}/{_NODE}/distance is missing or does not fit: expected one number for each of"
        f" {len(ids)} nodes, so the distances are unknown",
        node,
    )
    return {}
