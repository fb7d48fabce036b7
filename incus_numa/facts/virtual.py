"""Threads and memory of a virtual machine as facts."""

from __future__ import annotations

from typing import Any

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.seen import Seen
from incus_numa.facts.words import show_nodes
from incus_numa.model.instance import InstanceType
from incus_numa.model.machine import Machine
from incus_numa.settings import PlacementSettings


def explain(seen: Seen, machine: Machine, settings: PlacementSettings) -> dict[str, Any] | None:
    """Threads and memory as plain values; None for a container.

    `vcpus_found` is false where vCPUs could not be told from other threads. `memory_bound` are the nodes that the
    server bound the guest's memory to at start, "" for none and None when unknown; `remote` says what is wrong with it.
    """
    if seen.instance.type is InstanceType.CONTAINER:
        return None
    observed = seen.observed
    return {
        "pid": None if seen.process is None else seen.process.pid,
        "vcpus_found": observed.cpus is not None,
        "others_cpus": None if observed.around is None else str(observed.around),
        "memory_bound": None if observed.bound is None else str(observed.bound),
        "remote": _remote(seen, machine, settings),
    }


def _remote(seen: Seen, machine: Machine, settings: PlacementSettings) -> str | None:
    observed = seen.observed
    home = (observed.home or NodeSet()) & machine.memory_nodes
    bound = observed.bound or NodeSet()
    if not home or not bound or bound <= home or not seen.instance.managed:
        return None
    text = f"what the guest touches from now on is on {show_nodes(bound)}, and its vCPUs are on {show_nodes(home)}"
    if settings.vm_memory == "migrate":
        return f'{text}; placement.vm_memory = "migrate" moves what is there, future faults keep the old policy'
    return f'{text}; to move what is there set placement.vm_memory = "migrate" (future faults keep the old policy)'
