"""What the API asks of the service behind it. All documents are plain values, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Notice

Document = dict[str, Any]
Written = msgspec.Raw
"""A document as JSON: written once for all who ask for it."""


def write(document: Any) -> Written:
    """A document as JSON."""
    return msgspec.Raw(msgspec.json.encode(document))


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeGauges:
    """One node as it is now. Memory in bytes, `load` in busy parts of its CPUs; None where unknown.

    `committed_vcpus` is the weight of the instances on it, `committed_bytes` the memory that they may take.
    """

    cpus: int
    usable_cpus: int
    committed_vcpus: float
    load: float | None
    memory_bytes: int | None
    free_bytes: int | None
    committed_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceGauges:
    """One managed instance as it is now: on how many nodes, busy CPUs, and the part of its memory on its nodes."""

    key: InstanceKey
    nodes: int
    load_cpus: float | None
    locality: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauges:
    """What is measured or known now. `imbalance` is the highest load of a node over the mean, None when unknown.

    `states` counts running instances by `placed`, `differs`, `refused` and `unmanaged`; `refused` by reason.
    """

    nodes: Mapping[int, NodeGauges] = field(default_factory=dict)
    instances: tuple[InstanceGauges, ...] = ()
    states: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    imbalance: float | None = None
    connected: bool = False


class Exposition(Protocol):
    """The metrics, as text."""

    def render(self, gauges: Gauges, max_instances: int, *, openmetrics: bool) -> tuple[bytes, str]:
        """Everything as text, and its content type; at most so many instances have metrics of their own."""


class Host(Protocol):
    """The running service, as the API sees it. Nothing but `set_policy`, `reset_policy` and `rebalance` changes it."""

    async def status(self) -> Document:
        """`version`, `started_at` (UTC), `server` (product, version, member, socket, connected), `nodes`, `cpus`,
        `instances` (running, managed, differ, refused), `imbalance`, `rebalancing`, `moving`, `policy_source`,
        `problems` (sentences), `warnings`."""

    async def topology(self) -> Document:
        """The machine, as `incus-numa topology --format json` prints it."""

    async def nodes(self) -> Written:
        """One per node: `node, cpus, load, memory_bytes, free_bytes, measured_load`, as `list` has them; and
        `cpu_busy` (CPU id to its busy part since it was asked for before, 0 to 1, empty where that is unknown),
        `instances` (`project` and `name` of those on it)."""

    async def instances(self, project: str | None = None) -> Written:
        """One per running instance, as `list --format json` has them."""

    async def instance(self, key: InstanceKey) -> Written | None:
        """Everything about one, as `explain --format json` prints it; None if it does not run here."""

    async def plan(self) -> Written:
        """What a pass would do now: `placements` and `rejections` as `plan --format json` has them, `steps`
        (sentences by `project/name`), and `by_load` as `rebalance --dry-run --format json` has it."""

    async def moves(self, limit: int) -> list[Document]:
        """The journal, newest first."""

    async def history(self) -> Document:
        """Measured load over the last hour: `step_s`, `at` (seconds since 1970), `load` (node to a load or null for
        each of these times)."""

    async def policy(self) -> Document:
        """`source` (`file` or `api`), `file`, `changes` (tables set by the API), `effective` (the tables placement,
        memory and rebalance with all keys), `meanings` (`table.key` to a sentence), `fixed` (keys not to be set),
        `left_out` (what was set and is not in force: `key`, `why`), `warnings` (sentences), `etag`."""

    async def set_policy(self, tables: Mapping[str, Any], only_if: Set[str] | None = None) -> Document:
        """Have these tables over those of the file from now on, and after a restart; then as `policy`.

        They replace those that were set before. Raises ConfigError with every problem, ChangedError where the `etag`
        is none of `only_if`, and ReportError where they cannot be kept; nothing has changed then.
        """

    async def reset_policy(self, only_if: Set[str] | None = None) -> Document:
        """Go back to the file; then as `policy`. Raises ConfigError when the file is bad, and as `set_policy`."""

    async def rebalance(self, *, dry_run: bool, max_moves: int | None = None, project: str | None = None) -> Document:
        """One pass by load now, from what was sampled last: `dry_run`, `moves`, `held`, `why`, `imbalance`, `expected`.

        Raises UnreachableError, RetryError while another one is under way, GoneError where there is no such project,
        and ReportError without any sample.
        """

    def gauges(self) -> Gauges:
        """What metrics show of the present. Cheap: it may be asked a hundred times a second."""

    def watch(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        """Call `watcher` with every notice from now on; returns what ends that."""
