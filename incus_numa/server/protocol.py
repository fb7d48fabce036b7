"""What the rest of the program may ask of a server, and the values it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from incus_numa.model.instance import InstanceKey, InstanceType


class Product(Enum):
    """The two servers."""

    INCUS = "incus"
    LXD = "lxd"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """`GET /1.0`: who answers. `member` is this cluster member's name, None outside a cluster."""

    product: Product
    version: str
    extensions: frozenset[str]
    member: str | None = None


def is_elsewhere(location: str | None, member: str | None) -> bool:
    """Whether an instance or event of this location is another member's than `member`'s (None: there is no cluster)."""
    return member is not None and location not in (None, "", "none", member)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInstance:
    """One instance as the server has it, after profiles.

    `own` holds the keys set on the instance itself, `config` the expanded ones, and `devices` the expanded devices.
    `pid` is its init (container) or QEMU (VM), None unless it runs. `etag` is None in listings. `memory_usage` in
    bytes, None when unknown.
    """

    key: InstanceKey
    type: InstanceType
    running: bool
    config: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pid: int | None = None
    location: str | None = None
    etag: str | None = None
    memory_usage: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All instances that could be read. `problems` has one sentence for each that could not."""

    instances: tuple[ServerInstance, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """A project with its own keys, such as `restricted` and `limits.cpu`."""

    name: str
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A lifecycle event: `action` as the server calls it, such as `instance-started`.

    `key` is the instance that it is about, `project` the project; None for an event about anything else.
    """

    action: str
    key: InstanceKey | None
    location: str | None = None
    project: str | None = None


class Connected:
    """Sent once after every (re)connection of the event stream: events may have been missed, list everything."""


class Disconnected:
    """Sent once when a connection of the event stream is lost."""


Heard = Event | Connected | Disconnected
"""What comes out of an event stream."""


class Server(Protocol):
    """Incus or LXD. Every method may raise UnreachableError, and ReportError for an answer that makes no sense."""

    async def get_info(self) -> ServerInfo:
        """Who answers, and what it can do."""

    async def list_instances(self) -> Listing:
        """All instances of all projects, in one request, without ETag and pid. A broken one hides no other."""

    async def get_instance(self, key: InstanceKey) -> ServerInstance:
        """One instance with its ETag, in one request. Raises GoneError."""

    async def get_pid(self, key: InstanceKey) -> int | None:
        """The pid of a running instance's init or QEMU (`/state`), None when it does not run. Raises GoneError."""

    async def patch_config(self, key: InstanceKey, changes: Mapping[str, str], etag: str | None) -> None:
        """Change keys of one instance, if it still has the ETag.

        Raises RetryError (412, busy), GoneError, ForbiddenKeyError (the project forbids it), ReportError.
        """

    async def list_projects(self) -> tuple[Project, ...]:
        """All projects with their keys, in one request."""

    async def get_resources(self) -> bytes:
        """The `metadata` of `GET /1.0/resources`, as JSON for `topology.resources`."""

    def watch_events(self) -> AsyncIterator[Heard]:
        """Lifecycle events of all projects, for ever: reconnects by itself, with `Connected` first each time.

        `Disconnected` comes last of each connection.
        """

    async def close(self) -> None:
        """Give back connections."""
