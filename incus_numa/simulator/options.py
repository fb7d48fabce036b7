"""What can be chosen about a simulated server. Read by every part of the simulator; set by tests, demo, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from incus_numa.server.protocol import Product

Span = tuple[float, float]
"""Shortest and longest duration in seconds; each use draws one between them from the seeded generator."""


BALANCED_NODES, CHOSEN_NODES = "numa_cpu_balanced", "numa_cpu_placement"
"""API extensions that bring `balanced` with its record, and `limits.cpu.nodes` as such."""

_COMMON = (
    "etag", "projects", "resources", "resources_v2", "instances", "virtual-machines", "container_full",
    "event_lifecycle", "event_location", CHOSEN_NODES, "instance_all_projects", "projects_restrictions", "clustering",
    "event_project",
)  # fmt: skip
EXTENSIONS = {Product.INCUS: frozenset({*_COMMON, BALANCED_NODES}), Product.LXD: frozenset(_COMMON)}
"""Of all API extensions of today's servers those that matter to a client that places instances."""


class Hierarchy(Enum):
    """How the host mounts control groups: one v2 tree, v1 trees alone, or v1 trees beside a v2 one without cpuset."""

    V2 = "v2"
    HYBRID = "hybrid"
    V1 = "v1"


class VmEvidence(Enum):
    """What tells the vCPU threads of simulated QEMUs: that they have run a guest, their names, or neither."""

    GUEST_TIME = "guest-time"
    NAMES = "names"
    NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorOptions:
    """Which server is simulated, and how badly it behaves.

    `start_s` passes between the start lock and the event, `lock_release_s` between the event and the release of the
    lock. `late_volatile_s` after the release, the server writes one more volatile key (None: it does not), which
    makes a client's ETag stale. `balance_delay_s` passes between a trigger and the rewrite of all cpusets,
    `balance_s` is how long one rewrite takes. `event_jitter_s` is how late an event can be, so that
    events overtake each other when it is not 0.

    `panics` is Incus 6.0.4: a too large `limits.cpu` with `balanced` kills the server (7.0.2 takes all nodes). It comes
    back after `restart_after_panic_s`, or only when told to. `picks_one_node` and `refuses_node_zero` are Incus before
    6.0.4 and 6.0.3: one node for any `limits.cpu`, and `volatile.cpu.nodes=0` is not accepted. `extensions` are those
    of the API (None: what this product has today). Older servers do not send `names_in_events`, only the address of
    what an event is about. `member` is the name in a cluster. `watches` turns the fake kernel's inotify
    on; without it, effective values follow only when it is told to settle. Where instances are `born_inside` their
    cgroups (CLONE_INTO_CGROUP), the first write of `cpuset.mems` moves nothing. While an instance works,
    its counters grow every `tick_s` (None: only when the driver says that time passes).
    """

    product: Product = Product.INCUS
    version: str = "6.0.4"
    seed: int = 0
    start_s: Span = (0.0, 0.0)
    lock_release_s: Span = (0.005, 0.03)
    late_volatile_s: Span | None = None
    balances: bool = True
    balance_delay_s: Span = (0.0, 0.05)
    balance_s: float = 0.02
    event_jitter_s: float = 0.0
    per_request_delay_s: float = 0.0
    extensions: frozenset[str] | None = None
    names_in_events: bool = True
    panics: bool = True
    restart_after_panic_s: float | None = None
    picks_one_node: bool = False
    refuses_node_zero: bool = False
    member: str | None = None
    watches: bool = True
    born_inside: bool = False
    tick_s: float | None = 0.05
    cgroup: Hierarchy = Hierarchy.V2
    vm_evidence: VmEvidence = VmEvidence.GUEST_TIME
    default_memory_bytes: int = 64 << 20
    projects: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def offered(self) -> frozenset[str]:
        """The API extensions of this server."""
        return EXTENSIONS[self.product] if self.extensions is None else self.extensions
