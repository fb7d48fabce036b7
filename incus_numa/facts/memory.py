"""Free memory of the nodes as it is now. A machine that is kept has what was free when it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from incus_numa.host.counters import parse_free
from incus_numa.model.machine import Machine
from incus_numa.model.sample import Rates


def with_free(machine: Machine, free: Mapping[int, int]) -> Machine:
    """The machine with so many bytes free on these nodes; others have what they had."""
    nodes = tuple(replace(node, free_bytes=free.get(node.id, node.free_bytes)) for node in machine.nodes)
    return replace(machine, nodes=nodes)


def read_free(machine: Machine, rates: Rates | None, sysfs: Path) -> dict[int, int]:
    """Free bytes by node: as last sampled, else as the kernel says now; nodes of which neither is known are left out.

    `sysfs` is where the kernel shows its devices.
    """
    found = {}
    for node in machine.nodes:
        own = None if rates is None else rates.nodes.get(node.id)
        free = own.free_bytes if own is not None and own.free_bytes is not None else _read(sysfs, node.id)
        if free is not None:
            found[node.id] = free
    return found


def _read(sysfs: Path, node: int) -> int | None:
    try:
        return parse_free((sysfs / f"devices/system/node/node{node}/meminfo").read_bytes())
    except OSError:
        return None
