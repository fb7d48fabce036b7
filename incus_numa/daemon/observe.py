"""The snapshot as it grows: what was last seen of the machine and of every instance. Called by the reconciler.

Observing is incremental: one instance, the cgroups, or everything is looked at again, the rest stays as last seen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import NOTHING, Decided, Observed, Snapshot
from incus_numa.server import demand
from incus_numa.server.protocol import Product, Server, ServerInfo, ServerInstance
from incus_numa.settings import HostSettings, PlacementSettings
from incus_numa.topology import fingerprint, resources, sysfs

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One running instance as last seen; `etag` is None when it was seen in a listing, `turn` orders the looks."""

    instance: Instance
    observed: Observed
    group: Path | None
    etag: str | None
    turn: int


class World:
    """What is known about the host and the server's instances. Not thread-safe: one event loop uses it."""

    def __init__(self, server: Server, cgroups: CgroupFiles, host: HostSettings, placement: PlacementSettings) -> None:
        self.server = server
        self.cgroups = cgroups
        self.placement = placement
        self.problems: tuple[str, ...] = ()
        self.member: str | None = None
        self.nodes_key = demand.nodes_key(Product.INCUS)
        self._host = host
        self._machine: Machine | None = None
        self._resources: bytes | None = None
        self._fingerprint: tuple[str, ...] = ()
        self._seen: dict[InstanceKey, Seen] = {}
        self._turns = itertools.count(1)

    @property
    def machine(self) -> Machine:
        """The machine as last read; read now if it never was."""
        return self._machine or self._read_machine()

    def read_machine(self) -> bool:
        """Read the machine again if its CPUs or nodes changed; says whether they did."""
        before = self._machine
        if before is not None and fingerprint.read_fingerprint(Path(self._host.sysfs)) == self._fingerprint:
            return False
        self._read_machine()
        return before is not None

    def _read_machine(self) -> Machine:
        self._fingerprint = fingerprint.read_fingerprint(Path(self._host.sysfs))
        found = sysfs.read_machine(Path(self._host.sysfs), Path(self._host.procfs))
        if self._resources is not None:
            found = resources.merge_resources(found, self._resources)
        for warning in found.warnings:
            log.debug("%s", warning)
        self._machine = found
        return found

    async def greet(self, info: ServerInfo) -> None:
        """Note who the server is, and merge what only it knows of the machine; what it cannot say is left out."""
        self.member = info.member
        self.nodes_key = demand.nodes_key(info.product)
        try:
            self._resources = await self.server.get_resources()
            self._machine = None
            self.read_machine()
        except ReportError as error:
            self._resources = None
            log.debug("resources of the server are left out: %s", error)

    def snapshot(self) -> Snapshot:
        """Everything as last seen."""
        return Snapshot(
            machine=self.machine,
            instances=tuple(seen.instance for seen in self._seen.values()),
            observed={key: seen.observed for key, seen in self._seen.items()},
        )

    def get(self, key: InstanceKey) -> Seen | None:
        """One running instance as last seen, None if none was."""
        return self._seen.get(key)

    def managed(self) -> tuple[InstanceKey, ...]:
        """Keys of the managed running instances."""
        return tuple(key for key, seen in self._seen.items() if seen.instance.managed)

    def all_seen(self) -> tuple[Seen, ...]:
        """All running instances as last seen."""
        return tuple(self._seen.values())

    async def look_at_everything(self) -> None:
        """List all instances. Those looked at meanwhile by themselves keep what was seen then."""
        turn = next(self._turns)
        listing = await self.server.list_instances()
        self.read_machine()
        self.problems = listing.problems
        present = set()
        for count, raw in enumerate(listing.instances):
            if count % 25 == 24:
                # Reading a thousand cgroups takes long enough to hold up a start.
                await asyncio.sleep(0)
            present.add(raw.key)
            known = self._seen.get(raw.key)
            if known is None or known.turn < turn:
                await self._take(raw, turn)
        for key in [key for key, seen in self._seen.items() if seen.turn < turn and key not in present]:
            del self._seen[key]

    async def look_at(self, key: InstanceKey) -> Seen | None:
        """Look at one instance; None if it is gone or does not run here."""
        turn = next(self._turns)
        try:
            raw = await self.server.get_instance(key)
        except GoneError:
            self.forget(key)
            return None
        return await self._take(raw, turn)

    def look_at_cgroup(self, key: InstanceKey) -> Seen | None:
        """Read one instance's cgroup again; None if it is gone."""
        seen = self._seen.get(key)
        if seen is None or seen.group is None:
            return seen
        try:
            cpus, mems = self.cgroups.read_sets(seen.group)
        except GoneError:
            return None
        except ReportError as error:
            log.debug("instance=%s cgroup not read: %s", key, error)
            return seen
        if (cpus, mems) != (seen.observed.cpus, seen.observed.mems):
            seen = replace(seen, observed=replace(seen.observed, cpus=cpus, mems=mems))
            self._seen[key] = seen
        return seen

    def forget(self, key: InstanceKey) -> None:
        """The instance is gone or stopped; nothing happens if it was not known."""
        self._seen.pop(key, None)

    def decide(self, key: InstanceKey, decided: Decided) -> None:
        """Note a decision, so that everything planned from now on counts it."""
        seen = self._seen.get(key)
        if seen is not None and seen.observed.decided != decided:
            self._seen[key] = replace(seen, observed=replace(seen.observed, decided=decided))

    def note_nodes(self, key: InstanceKey, nodes: NodeSet) -> None:
        """Note that the server's record was written, which ends the ETag."""
        seen = self._seen.get(key)
        if seen is not None:
            self._seen[key] = replace(seen, etag=None, observed=replace(seen.observed, nodes=nodes))

    async def _take(self, raw: ServerInstance, turn: int) -> Seen | None:
        """Remember an instance that runs on this member; forget it otherwise."""
        elsewhere = self.member is not None and raw.location not in (None, "", "none", self.member)
        if not raw.running or elsewhere:
            self._seen.pop(raw.key, None)
            return None
        group = await self._group(raw) if raw.type is InstanceType.CONTAINER else None
        observed, usage = self._observe(raw, group)
        if usage is not None:
            raw = replace(raw, memory_usage=usage)
        instance = demand.instance_from(raw, self.machine, self.placement)
        if raw.type is InstanceType.VIRTUAL_MACHINE:
            # Threads of virtual machines are not handled yet: the server's own choice counts as load.
            instance = replace(instance, managed=False)
        seen = Seen(instance=instance, observed=observed, group=group, etag=raw.etag, turn=turn)
        self._seen[raw.key] = seen
        return seen

    async def _group(self, raw: ServerInstance) -> Path | None:
        known = self._seen.get(raw.key)
        if known is not None and known.group is not None and known.group.exists():
            return known.group
        group = self.cgroups.find(raw.key)
        if group is None:
            pid = raw.pid if raw.pid is not None else await self._pid(raw.key)
            group = self.cgroups.find_by_pid(pid) if pid else None
        return group

    async def _pid(self, key: InstanceKey) -> int | None:
        try:
            return await self.server.get_pid(key)
        except (GoneError, ReportError):
            return None

    def _observe(self, raw: ServerInstance, group: Path | None) -> tuple[Observed, int | None]:
        nodes = demand.nodes_from(raw)
        if group is None:
            return replace(NOTHING, nodes=nodes), None
        try:
            state = self.cgroups.read(group)
        except (GoneError, ReportError) as error:
            log.debug("instance=%s cgroup not read: %s", raw.key, error)
            return replace(NOTHING, nodes=nodes), None
        usage = None if raw.config.get("limits.memory") else self.cgroups.memory_usage(group)
        observed = Observed(nodes=nodes, cpus=state.cpus or CpuSet(), mems=state.mems, decided=state.decided)
        return observed, usage
