"""The tables of the configuration file: one frozen type each, with defaults, meaning and limits beside each key."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86400)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Margin = Annotated[float, msgspec.Meta(ge=0.01, le=10)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


LEAST_PACE = 1 << 20
"""Bytes per second below which memory would never arrive."""


def key(default: Any, meaning: str, *, restart: bool = False) -> Any:
    """A settings key with its default and the sentence that `config show` and the example print.

    `restart` is for what a running daemon does not take over; the sentence ends with it.
    """
    told = f"{meaning} (restart)" if restart else meaning
    return field(default=default, metadata={"meaning": told, "restart": restart})


class Reservation(NamedTuple):
    """Memory of one node that is kept for the host."""

    node: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How to reach Incus or LXD."""

    product: Literal["auto", "incus", "lxd"] = key(
        "auto", 'Which server is meant where both are installed; "auto": Incus if there is one, else LXD.', restart=True
    )
    socket: str = key("", "Unix socket of the server; empty: where the server usually has it.", restart=True)
    timeout_s: Seconds = key(30.0, "How long one request may take, in seconds (0.1 to 86400).", restart=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """Where the kernel's trees are. Other values than the defaults serve tests and the simulator."""

    sysfs: str = key("/sys", "Mount point of sysfs.", restart=True)
    procfs: str = key("/proc", "Mount point of procfs.", restart=True)
    cgroup: str = key(
        "/sys/fs/cgroup",
        "Mount point of the cgroup v2 hierarchy, or of the folder with the cgroup v1 hierarchies.",
        restart=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementSettings:
    """How nodes and CPUs are chosen."""

    smt: Literal["spread", "pack"] = key(
        "spread", 'How threads of a core are used: "spread" takes idle cores first, "pack" fills cores.'
    )
    memory: Literal["local", "bind", "none"] = key(
        "local",
        'Memory binding where user.numa.memory is not set: "local" binds one-node placements, "bind" all, "none" none.',
    )
    reserved_cpus: str = key("", "CPUs kept for the host, in kernel list format; never given to an instance.")
    vm_memory: Literal["keep", "migrate"] = key(
        "keep",
        'Memory that a VM has on other nodes than its placement: "keep" leaves it there, "migrate" moves it; what the '
        "guest touches later still comes from where the server bound it at start.",
    )
    vm_record: Literal["once", "never"] = key(
        "once",
        'Whether volatile.cpu.nodes of a running VM is written, "once" for each placement; the server then restarts '
        "QEMU at the guest's next reboot.",
    )
    restricted_record: Literal["none", "limits"] = key(
        "none",
        'Where a project forbids volatile.cpu.nodes: "none" sets CPUs and memory only, "limits" also writes the nodes '
        "to limits.cpu.nodes, in the place of balanced.",
    )
    load_weight: Weight = key(1.0, "Weight of the resulting load of the chosen nodes (0 to 1000).")
    distance_weight: Weight = key(
        0.1, "Weight of the mean distance between the chosen nodes, local distance being 1 (0 to 1000)."
    )
    device_weight: Weight = key(2.0, "Weight of the mean distance to the nodes of the instance's devices (0 to 1000).")
    group_weight: Weight = key(2.0, "Weight of the mean distance to members of the same user.numa.group (0 to 1000).")
    avoid_weight: Weight = key(
        3.0, "Weight of sharing nodes with instances that are kept apart by user.numa.avoid (0 to 1000)."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """What is kept of the nodes' memory for the host. Amounts are 8GiB, 8G, 500M, 8500Mi or bytes.

    `reserved` is ordered by node.
    """

    policy: Literal["none", "static"] = key(
        "none", '"none": nothing is kept and the reservations are ignored; "static": they are, and must be right.'
    )
    reserved_total: int = key(
        0, 'What is kept for the host in all; with "static" the reservations of the nodes must add up to it.'
    )
    reserved: tuple[Reservation, ...] = key(
        (), 'What is kept of each node: node id to amount, such as {"0" = "2GiB", "1" = "1GiB"}.'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonSettings:
    """When the daemon looks."""

    resync_s: Seconds = key(60.0, "Everything is looked at again this often, in seconds (0.1 to 86400).")
    verify_s: tuple[Seconds, ...] = key(
        (0.5, 2.0, 10.0), "After a start, stop or change the cpusets are read again after these seconds."
    )
    write_timeout_s: Seconds = key(
        30.0,
        "How long a write of cpuset.mems, which moves memory, is waited for, in seconds (0.1 to 86400).",
        restart=True,
    )
    run_dir: str = key(
        "/run/incus-numa", "Where the daemon's lock is: there can be one daemon for each such directory.", restart=True
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RebalanceSettings:
    """When running instances are moved by their measured load, and how fast."""

    enabled: bool = key(
        default=True, meaning="Whether the daemon and the timer move running instances by measured load."
    )
    interval_s: Seconds = key(10.0, "The daemon samples and decides this often, in seconds (0.1 to 86400).")
    time_constant_s: Seconds = key(
        30.0, "Rates are smoothed with this time constant, in seconds (0.1 to 86400): older use counts less and less."
    )
    margin: Margin = key(
        0.1, "Act when the highest load of a node is above the mean by more than this part of it (0.01 to 10)."
    )
    hold_s: Seconds = key(30.0, "... and has been for so long, in seconds (0.1 to 86400).")
    cooldown_s: Seconds = key(600.0, "An instance that was moved stays for so long, in seconds (0.1 to 86400).")
    max_moves: Count = key(10, "Move at most so many instances at a time (1 to 10000).")
    max_bytes: int = key(
        16 << 30, "Move at most so much memory at a time, or one larger instance: 16GiB, 500M or bytes."
    )
    move_price: Weight = key(
        0.01,
        "What any move costs; it must gain more: one busy CPU on a node less loaded by 0.005 gains this (0 to 1000).",
    )
    gib_price: Weight = key(
        0.005, "... and in addition for each GiB that follows, times the distance over the local one (0 to 1000)."
    )
    bytes_per_second: int = key(1 << 30, "Memory follows no faster than this: 1GiB, 500M or bytes.", restart=True)
    window_s: Seconds = key(10.0, "`incus-numa rebalance` samples for so long, in seconds (0.1 to 86400).")
    journal: str = key(
        "/var/lib/incus-numa/moves.jsonl", "Where moves are noted; may be deleted at any time.", restart=True
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiSettings:
    """The API of the daemon, with metrics and dashboard."""

    enabled: bool = key(default=True, meaning="Whether the daemon has an API at all.", restart=True)
    socket: str = key(
        "/run/incus-numa/api.sock", "Unix socket of the API; who may open it may read and write.", restart=True
    )
    group: str = key(
        "",
        "Group that may open the socket beside root; empty: incus-admin or lxd, whichever there is first.",
        restart=True,
    )
    listen: str = key(
        "", 'Address and port for TCP, such as "127.0.0.1:9714" or "[::1]:9714"; empty: no TCP.', restart=True
    )
    token_file: str = key(
        "",
        "File with a token, which writes over TCP need, and everything on another address than loopback.",
        restart=True,
    )
    tls_certificate: str = key(
        "", "PEM file with the certificate for TCP; needed on other addresses than loopback.", restart=True
    )
    tls_key: str = key("", "PEM file with the key of the certificate; empty: it is in the same file.", restart=True)
    hosts: tuple[str, ...] = key(
        (), "Names under which TCP is reached, beside localhost and the address listened on.", restart=True
    )
    max_clients: Count = key(
        64, "So many requests are worked on at a time (1 to 10000); others must come again.", restart=True
    )
    policy_file: str = key(
        "/var/lib/incus-numa/policy.json",
        "Where a policy that was set by the API is kept; deleting it ends that.",
        restart=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSettings:
    """What the API's /metrics shows."""

    max_instances: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = key(
        1000, "Metrics of single instances are shown of so many at most (0 to 100000), in the order of their names."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All tables of the configuration file."""

    server: ServerSettings = field(default_factory=ServerSettings)
    host: HostSettings = field(default_factory=HostSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    rebalance: RebalanceSettings = field(default_factory=RebalanceSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


LIVE_TABLES = ("placement", "memory", "rebalance")
"""What the API can set while the daemon runs; the other tables are about the daemon itself."""

RESTART_KEYS = frozenset(
    (name, one.name) for name in LIVE_TABLES for one in fields(getattr(Settings(), name)) if one.metadata["restart"]
)
"""Keys of these tables that need a restart all the same."""
