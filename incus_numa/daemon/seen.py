"""What was last seen of a running instance: a value that the world keeps and everybody reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import NodeSet
from incus_numa.host.virtual import Process
from incus_numa.model.instance import Instance
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Decided, Observed
from incus_numa.server.demand import VOLATILE_NODES


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One running instance as last seen.

    `group` is the payload cgroup of a container, `process` the QEMU of a virtual machine; None where it was not found.
    `marked` is the decision that is kept with it, `etag` is None when it was seen in a listing, `turn` orders the
    looks. `problem` says why cgroup or threads could not be read, None when they could. `record` is the server's key
    for its nodes (None: there is none), `opted_in` says that it is ours whatever `limits.cpu.nodes` is.
    """

    instance: Instance
    observed: Observed
    group: Path | None
    marked: Decided | None
    etag: str | None
    turn: int
    problem: str | None = None
    process: Process | None = None
    record: str | None = VOLATILE_NODES
    opted_in: bool = False


def bound_nodes(seen: Seen, machine: Machine) -> NodeSet:
    """The nodes that the memory of a virtual machine is bound to where it stays there; none where it may be anywhere.

    All that the guest touches comes from there for as long as it runs.
    """
    bound = seen.observed.bound
    if not bound or not seen.instance.memory_stays or machine.memory_nodes <= bound:
        return NodeSet()
    return bound


def moved(before: Seen, now: Seen) -> bool:
    """Whether what an instance takes may have changed: where it was decided to be counts, else what it has."""
    if now.observed.decided is not None and now.observed.decided.cpus is not None:
        return now.observed.decided != before.observed.decided
    return now.observed != before.observed
