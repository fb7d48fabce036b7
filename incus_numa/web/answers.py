"""What is answered, as types: the OpenAPI document is made from them. More keys than these may come in later versions.

Sets of CPUs and nodes are in the kernel's list format; what is unknown is null.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class ServerFacts(TypedDict):
    """The server that is watched."""

    product: str | None
    version: str | None
    member: str | None
    socket: str
    connected: bool


class Counts(TypedDict):
    """Running instances."""

    running: int
    managed: int
    differ: int
    refused: int


class Status(TypedDict):
    """Who serves what, and how it goes. `imbalance` is the highest load of a node over the mean."""

    version: str
    started_at: str
    server: ServerFacts
    nodes: int
    cpus: int
    instances: Counts
    imbalance: float | None
    rebalancing: bool
    moving: bool
    policy_source: str
    problems: list[str]
    warnings: list[str]


class MachineNode(TypedDict):
    """One NUMA node."""

    id: int
    cpus: str
    memory_bytes: int | None
    free_bytes: int | None
    distances: dict[str, int]
    hugepages: NotRequired[dict[str, int]]


class MachineCpu(TypedDict):
    """One hardware thread; `core` and `l3` are the lowest CPU that shares it."""

    id: int
    node: int | None
    socket: int | None
    core: int
    l3: int | None
    kind: NotRequired[str]


class Unavailable(TypedDict, total=False):
    """What is told of a machine where there is any: CPUs that are plugged in and not online."""

    offline: str


class Topology(Unavailable):
    """The machine."""

    name: str
    nodes: list[MachineNode]
    cpus: list[MachineCpu]
    online: str
    isolated: str
    warnings: list[str]


class Name(TypedDict):
    """What identifies an instance."""

    project: str
    name: str


class NodeFacts(TypedDict):
    """One node now. `load` is committed vCPUs over CPUs, `cpu_busy` the busy part of each CPU (0 to 1)."""

    node: int
    cpus: str
    load: float | None
    memory_bytes: int | None
    free_bytes: int | None
    measured_load: float | None
    cpu_busy: dict[str, float]
    instances: list[Name]


class InstanceFacts(TypedDict):
    """One running instance in a row."""

    project: str
    name: str
    type: str
    vcpus: int | None
    memory_bytes: int | None
    nodes: str | None
    cpus: str | None
    mems: str | None
    state: str
    group: str | None
    exclusive: bool
    load_cpus: float | None
    locality: float | None


class Explanation(TypedDict):
    """Everything about one instance, as `incus-numa explain --format json` prints it."""

    instance: str
    project: str
    type: str
    managed: bool
    policy: str
    memory_binding: str
    vcpus: int | None
    pinned_cpus: str | None
    memory_bytes: int | None
    hugepages: dict[str, int] | None
    cores: str | None
    exclusive: bool
    group: str | None
    avoid: list[str]
    device_nodes: str | None
    devices: list[dict[str, Any]]
    has_nodes: str | None
    has_cpus: str | None
    has_mems: str | None
    vm: dict[str, Any] | None
    memory_by_node: dict[str, int] | None
    state: str
    decision: dict[str, Any] | None
    why: str
    placed_anew: dict[str, Any] | None
    proof: dict[str, Any] | None
    shared_with: str | None
    a_pass_would: list[str]
    load: dict[str, float | None] | None
    locality: float | None
    rebalancer: dict[str, Any] | None
    last_moves: list[dict[str, Any]]


class Placed(TypedDict):
    """Where an instance belongs."""

    project: str
    name: str
    nodes: str
    cpus: str
    mems: str | None
    moved: bool
    reason: str
    exclusive: bool
    proof: dict[str, float] | None


class Rejected(TypedDict):
    """Why an instance is refused."""

    project: str
    name: str
    reason: str
    detail: str


Moving = TypedDict(
    "Moving",
    {
        "project": str,
        "name": str,
        "from": str,
        "to": str,
        "gain": float,
        "price": float,
        "load_cpus": float,
        "size_bytes": int,
        "with": Name | None,
        "reason": str,
    },
)
"""A move by load that pays."""


class Holding(TypedDict):
    """Why an instance on a node that is too loaded stays."""

    project: str
    name: str
    hold: str
    detail: str


class ByLoad(TypedDict):
    """What measured load asks for. `expected` is the imbalance after the moves."""

    moves: list[Moving]
    held: list[Holding]
    imbalance: float | None
    expected: float | None
    measured_load: dict[str, float]
    why: str


class Plan(TypedDict):
    """What a pass would do now. `steps` are sentences by instance."""

    placements: list[Placed]
    rejections: list[Rejected]
    node_load: dict[str, float]
    elapsed_ms: float
    warnings: list[str]
    steps: dict[str, list[str]]
    by_load: ByLoad


Moved = TypedDict(
    "Moved",
    {
        "project": str,
        "name": str,
        "at": str | None,
        "from": str,
        "to": str,
        "result": str,
        "gain": float | None,
        "price": float | None,
        "moved_bytes": int,
        "took_s": float,
        "reason": str,
    },
)
"""A move that was made."""


class History(TypedDict):
    """Measured load of the nodes over the last hour: a load for each time of `at`, in seconds since 1970."""

    step_s: float
    at: list[int]
    load: dict[str, list[float | None]]


class LeftOut(TypedDict):
    """What was set and is not in force: a key such as `placement.smt`, a table, or null for all of it."""

    key: str | None
    why: str


class Policy(TypedDict):
    """What is in force, and where it comes from: `file` or `api`. `etag` names it for If-Match."""

    source: str
    file: str
    changes: dict[str, dict[str, Any]]
    left_out: list[LeftOut]
    effective: dict[str, dict[str, Any]]
    meanings: dict[str, str]
    fixed: list[str]
    warnings: list[str]
    etag: str


class Rebalanced(ByLoad):
    """What was decided; moves that are made are under way, and told as events when they end."""

    dry_run: bool


class Wrong(TypedDict):
    """One thing that is wrong with the request."""

    detail: str
    pointer: NotRequired[str]


class ProblemDetails(TypedDict):
    """RFC 9457: what could not be done, and why."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: NotRequired[list[Wrong]]
