"""Memory that is set aside for huge pages, by node, from `devices/system/node/nodeN/hugepages`.

Files: Documentation/admin-guide/mm/hugetlbpage.rst. The kernel counts this memory in the node's MemTotal.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.topology.files import KernelFiles

_SIZES = tuple(1 << power for power in range(16, 35))
"""Page sizes of all architectures are among these: 64 KiB to 16 GiB."""


def read_hugepages(files: KernelFiles, folder: str, node: int, memory_bytes: int | None) -> Mapping[int, int]:
    """Page size to bytes, of the sizes that have pages; {} where nothing is told.

    `{}` in the folder stands for the node. More than `memory_bytes`, its memory, cannot be right and counts as not
    told.
    """
    found = {}
    for size in _SIZES:
        pages = files.number(f"{folder.format(node)}/hugepages/hugepages-{size >> 10}kB/nr_hugepages")
        if pages is not None and pages > 0:
            found[size] = pages * size
    if memory_bytes is not None and sum(found.values()) > memory_bytes:
        files.notes.add(
            f"{files.shown}/{folder}/hugepages tells of more than the node's memory: expected less, so it is left out",
            node,
        )
        return {}
    return found
