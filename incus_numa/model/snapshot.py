"""Everything a plan is decided from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """What we decided for an instance since it started. `cpus` is None where only the nodes are known."""

    nodes: NodeSet
    cpus: CpuSet | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What an instance has now.

    `nodes` is what the server's configuration says (`volatile.cpu.nodes`), `followed` whether the server keeps it
    there; a record that it does not follow may be of long ago. `cpus` and `mems` are what its cgroup says; None when
    there is no value. An empty `mems` means that memory is not bound. Without `decided`, nodes and CPUs
    are the server's own choice, which is kept only where it is not worse than ours. `memory` is its anonymous memory by
    node in bytes, None when it was not read.

    A virtual machine has no cgroup of its own: `cpus` are those that its vCPU threads may run on, `around` those of its
    other threads (None for both where they were not found), `mems` is None, and `bound` are the nodes that the server
    bound the guest's memory to at start, empty for none and None when that was not read. `even` says that all vCPUs
    have the same CPUs, or each has its own.
    """

    nodes: NodeSet | None = None
    cpus: CpuSet | None = None
    mems: NodeSet | None = None
    decided: Decided | None = None
    memory: Mapping[int, int] | None = None
    around: CpuSet | None = None
    bound: NodeSet | None = None
    even: bool = True
    followed: bool = True

    @property
    def given(self) -> NodeSet | None:
        """The nodes in the server's configuration where they mean something: it follows them, or we decided them."""
        return self.nodes if self.followed or self.decided is not None else None

    @property
    def home(self) -> NodeSet | None:
        """The nodes that it belongs on: those that we decided, else those that the server chose or was told."""
        return self.decided.nodes if self.decided is not None else self.given


NOTHING = Observed()


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Machine, running instances and what they have now. The order of `instances` never matters."""

    machine: Machine
    instances: tuple[Instance, ...] = ()
    observed: Mapping[InstanceKey, Observed] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
