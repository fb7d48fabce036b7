"""What the server says about an instance, and what follows from it: the demand. Built by `server.demand`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.devices import Device
from incus_numa.model.machine import CoreKind

GROUP_NAME = re.compile(r"[\w.:/@+-]{1,64}")
"""What a group may be called, as a whole."""

GROUP_RULE = "up to 64 letters, digits and . _ : / @ + -"
"""GROUP_NAME in words."""


class InstanceKey(NamedTuple):
    """Project and name: what identifies an instance on a server. Sorts by project, then name."""

    project: str
    name: str

    def __str__(self) -> str:
        return self.name if self.project == "default" else f"{self.project}/{self.name}"


class InstanceType(Enum):
    """The server's two kinds of instances."""

    CONTAINER = "container"
    VIRTUAL_MACHINE = "virtual-machine"


class Policy(Enum):
    """How nodes are chosen; the kubelet's names, and Incus' `balanced`."""

    BALANCED = "balanced"
    NONE = "none"
    BEST_EFFORT = "best-effort"
    RESTRICTED = "restricted"
    SINGLE_NUMA_NODE = "single-numa-node"


class MemoryMode(Enum):
    """When memory is bound to the placement's nodes: with a one-node placement, always, never."""

    LOCAL = "local"
    BIND = "bind"
    NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What an instance needs.

    `vcpus` is None when the instance has no CPU limit: it counts as 1 and gets all CPUs of its node.
    `pinned_cpus` is an explicit list in `limits.cpu`, which is respected and counted. `weight` is the load it
    commits, in CPUs. `memory_bytes` is its limit, else its usage (`memory_is_usage`); None when neither is known.
    `hugepages` are the bytes it asks for of each page size. `cores` is the kind of cores it prefers, None for any.
    `exclusive` CPUs are nobody else's.
    """

    vcpus: int | None = None
    weight: float = 1.0
    memory_bytes: int | None = None
    memory_is_usage: bool = False
    pinned_cpus: CpuSet | None = None
    hugepages: Mapping[int, int] = field(default_factory=dict)
    cores: CoreKind | None = None
    exclusive: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One running instance. Unmanaged ones are never touched and only count as load.

    `problems` say why a managed instance cannot be placed because of its own keys: (key, what is wrong with it).
    Members of a `group` belong near each other; instances in a group that another one names in `avoid` belong apart
    from it. `device_nodes` are the nodes that its `devices` draw it to, none if these
    are to be ignored. `bound_nodes` are those that its memory is bound to and draws it to, which no policy insists on.
    `memory_stays` where it is when the instance is moved.
    """

    key: InstanceKey
    type: InstanceType = InstanceType.CONTAINER
    managed: bool = False
    demand: Demand = field(default_factory=Demand)
    policy: Policy = Policy.BALANCED
    memory: MemoryMode = MemoryMode.LOCAL
    group: str | None = None
    avoid: tuple[str, ...] = ()
    device_nodes: NodeSet = field(default_factory=NodeSet)
    bound_nodes: NodeSet = field(default_factory=NodeSet)
    movable: bool = True
    problems: tuple[tuple[str, str], ...] = ()
    memory_stays: bool = False
    devices: tuple[Device, ...] = ()

    @property
    def problem(self) -> str | None:
        """All problems with its keys in one sentence, None without any."""
        return "; ".join(f"{key}: {what}" for key, what in self.problems) or None
