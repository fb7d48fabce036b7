"""The snapshot as it grows: what was last seen of the machine and of every instance. Called by the reconciler.

Observing is incremental: one instance, the cgroups, or everything is looked at again, the rest stays as last seen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from incus_numa.daemon.hardware import KEEP_NOTHING, Hardware
from incus_numa.daemon.seen import Seen, moved
from incus_numa.errors import GoneError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.plan import MovePages, PatchNodes, Plan, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import NOTHING, Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.server import demand
from incus_numa.server.protocol import Product, Server, ServerInfo, ServerInstance
from incus_numa.settings import HostSettings, MemorySettings, PlacementSettings

log = logging.getLogger(__name__)


class World:
    """What is known about the host and the server's instances. Not thread-safe: one event loop uses it."""

    def __init__(
        self,
        server: Server,
        cgroups: CgroupFiles,
        host: HostSettings,
        placement: PlacementSettings,
        memory: MemorySettings = KEEP_NOTHING,
    ) -> None:
        self.server = server
        self.cgroups = cgroups
        self._placement = placement
        self._hardware = Hardware(host, memory)
        self.problems: tuple[str, ...] = ()
        self.member: str | None = None
        self.nodes_key = demand.nodes_key(Product.INCUS)
        self._seen: dict[InstanceKey, Seen] = {}
        self._managed: dict[InstanceKey, None] = {}
        self._stopping: set[InstanceKey] = set()
        self._shared: set[InstanceKey] = set()
        self._gone: dict[InstanceKey, int] = {}
        self._turns = itertools.count(1)
        self._standing: Standing | None = None
        self._load = Load()

    @property
    def record_moves_cpus(self) -> bool:
        """Whether the server rewrites cpusets when the record is written, as LXD does."""
        return self.nodes_key != demand.VOLATILE_NODES

    @property
    def placement(self) -> PlacementSettings:
        """The settings that plans are made with."""
        return self._placement

    @property
    def machine(self) -> Machine:
        """The machine as last read; read now if it never was."""
        return self._hardware.machine

    def read_machine(self) -> bool:
        """Read the machine again if its CPUs or nodes changed; says whether they did."""
        changed = self._hardware.look()
        if changed:
            self._standing = None
        return changed

    async def greet(self, info: ServerInfo) -> None:
        """Note who the server is, and merge what only it knows of the machine; what it cannot say is left out."""
        self.member = info.member
        self.nodes_key = demand.nodes_key(info.product)
        try:
            self._hardware.use_resources(await self.server.get_resources())
            self._standing = None
        except ReportError as error:
            self._hardware.forget_resources()
            log.debug("resources of the server are left out: %s", error)

    def snapshot(self, judged: frozenset[InstanceKey] = frozenset()) -> Snapshot:
        """Everything as last seen. What those to be `judged` ask for counts, whatever was decided before."""
        return Snapshot(
            machine=self.machine,
            instances=tuple(
                seen.instance if key in judged else self._counted(seen.instance) for key, seen in self._seen.items()
            ),
            observed={key: seen.observed for key, seen in self._seen.items()},
            load=self._load,
        )

    def plan(self, keys: frozenset[InstanceKey]) -> tuple[Plan, Snapshot]:
        """A plan for these instances, all others staying as they are, and the snapshot it was made from."""
        seen = [self._seen[key] for key in keys if key in self._seen]
        if len(keys) > 1 or any(one.observed.decided is not None for one in seen):
            snapshot = self.snapshot(keys)
            return planner.plan(snapshot, self._placement, only=keys), snapshot
        # A start: what all others take is summed up already.
        snapshot = Snapshot(
            machine=self.machine,
            instances=tuple(one.instance for one in seen),
            observed={one.instance.key: one.observed for one in seen},
            load=self._load,
        )
        return planner.place_new(self._stand(), snapshot), snapshot

    def use_placement(self, placement: PlacementSettings) -> None:
        """Plan with other settings from now on."""
        self._placement = placement
        self._standing = None

    def check_memory(self, memory: MemorySettings) -> tuple[str, ...]:
        """Reservations that the machine as it is now cannot keep, one sentence each."""
        return self._hardware.check_memory(memory)

    def use_memory(self, memory: MemorySettings) -> None:
        """Keep other amounts of memory for the host from now on; huge pages are read again, too."""
        self._hardware.use_memory(memory)
        self._standing = None

    def note_load(self, load: Load, memory: Mapping[InstanceKey, Mapping[int, int]]) -> None:
        """Count measured load in everything planned from now on; `memory` is what instances have on which node."""
        before, self._load = self._load, load
        for key, by_node in memory.items():
            seen = self._seen.get(key)
            if seen is not None and seen.observed.memory != by_node:
                self._seen[key] = replace(seen, observed=replace(seen.observed, memory=by_node))
        if self._standing is None:
            return
        for key, seen in self._seen.items():
            weight = seen.instance.demand.weight
            known = (max(weight, one.cpus_by_instance.get(key, 0.0)) for one in (before, load))
            if len(set(known)) > 1:
                self._standing.see(self._counted(seen.instance), seen.observed, load)

    def look_at_memory(self, key: InstanceKey) -> None:
        """Read where an instance has its memory."""
        seen = self._seen.get(key)
        if seen is not None and seen.group is not None:
            memory = self._pages(seen.group)
            self._seen[key] = replace(seen, observed=replace(seen.observed, memory=memory))

    def get(self, key: InstanceKey) -> Seen | None:
        """One running instance as last seen, None if none was."""
        return self._seen.get(key)

    def managed(self) -> tuple[InstanceKey, ...]:
        """Keys of the managed running instances."""
        return tuple(self._managed)

    def released(self) -> tuple[InstanceKey, ...]:
        """Keys of the running instances that are no longer managed and still have what we decided for them."""
        return tuple(key for key, seen in self._seen.items() if seen.marked is not None and not seen.instance.managed)

    def count(self) -> int:
        """How many instances run."""
        return len(self._seen)

    def all_seen(self) -> tuple[Seen, ...]:
        """All running instances as last seen."""
        return tuple(self._seen.values())

    async def look_at_everything(self) -> None:
        """List all instances. Those looked at meanwhile by themselves keep what was seen then."""
        turn = next(self._turns)
        listing = await self.server.list_instances()
        self.read_machine()
        # Sums that are only ever added to and taken from gather rounding errors: they start anew here.
        self._standing = None
        self.problems = listing.problems
        present = set()
        for count, raw in enumerate(listing.instances):
            if count % 25 == 24:
                # Reading a thousand cgroups takes long enough to hold up a start.
                await asyncio.sleep(0)
            present.add(raw.key)
            await self._take(raw, turn)
        for key in [key for key, seen in self._seen.items() if seen.turn < turn and key not in present]:
            self.forget(key)
        self._gone.clear()

    async def look_at(self, key: InstanceKey) -> Seen | None:
        """Look at one instance; None if it is gone or does not run here."""
        turn = next(self._turns)
        try:
            raw = await self.server.get_instance(key)
        except GoneError:
            self._note_gone(key, turn)
            return None
        return await self._take(raw, turn)

    def look_at_cgroup(self, key: InstanceKey, *, memory: bool = True) -> Seen | None:
        """Read one instance's cgroup again, without `memory` only its CPUs; None if it is gone."""
        seen = self._seen.get(key)
        if seen is None or seen.group is None:
            return seen
        try:
            cpus = self.cgroups.read_cpus(seen.group)
            mems = self.cgroups.read_mems(seen.group) if memory else seen.observed.mems
        except GoneError:
            return None
        except ReportError as error:
            log.debug("instance=%s cgroup not read: %s", key, error)
            return seen
        if (cpus, mems) != (seen.observed.cpus, seen.observed.mems):
            seen = replace(seen, observed=replace(seen.observed, cpus=cpus, mems=mems))
            self._remember(key, seen)
        return seen

    def forget(self, key: InstanceKey) -> None:
        """The instance is gone or stopped; nothing happens if it was not known."""
        self._seen.pop(key, None)
        self._managed.pop(key, None)
        self._shared.discard(key)
        if self._standing is not None:
            self._standing.drop(key)

    def share(self, key: InstanceKey, *, shared: bool) -> None:
        """Note whether others may have the CPUs of an instance that asks for exclusive ones: it was refused."""
        seen = self._seen.get(key)
        if seen is None or shared == (key in self._shared):
            return
        (self._shared.add if shared else self._shared.discard)(key)
        if self._standing is not None:
            self._standing.see(self._counted(seen.instance), seen.observed, self._load)

    def _counted(self, instance: Instance) -> Instance:
        """The instance as it counts where others are planned: with exclusive CPUs only if it was given some."""
        if instance.key not in self._shared:
            return instance
        return replace(instance, demand=replace(instance.demand, exclusive=False))

    def decide(self, key: InstanceKey, decided: Decided) -> None:
        """Note a decision, so that everything planned from now on counts it."""
        seen = self._seen.get(key)
        if seen is not None and seen.observed.decided != decided:
            self._remember(key, replace(seen, observed=replace(seen.observed, decided=decided)))

    def note_mark(self, key: InstanceKey, decided: Decided) -> None:
        """Note that a decision was kept on the cgroup."""
        seen = self._seen.get(key)
        if seen is not None and seen.marked != decided:
            self._remember(key, replace(seen, marked=decided))

    def forget_etag(self, key: InstanceKey) -> None:
        """The server refused a write: its keys may have changed, so they are read again before the next one."""
        seen = self._seen.get(key)
        if seen is not None:
            self._remember(key, replace(seen, etag=None))

    def note_released(self, key: InstanceKey) -> None:
        """Note that no decision is kept on the cgroup any more."""
        seen = self._seen.get(key)
        if seen is not None:
            self._remember(key, replace(seen, marked=None))

    def note_done(self, step: Step) -> None:
        """Note what a step changed. A written record ends the ETag."""
        seen = self._seen.get(step.key)
        if seen is None:
            return
        match step:
            case PatchNodes():
                now = replace(seen, etag=None, observed=replace(seen.observed, nodes=step.nodes))
            case WriteCpus():
                now = replace(seen, observed=replace(seen.observed, cpus=step.cpus))
            case WriteMems():
                now = replace(seen, observed=replace(seen.observed, mems=step.mems))
            case MovePages():
                now = replace(seen, observed=replace(seen.observed, memory=self._pages(seen.group)))
            case _:
                assert_never(step)
        self._remember(step.key, now)

    async def _take(self, raw: ServerInstance, turn: int) -> Seen | None:
        """Remember an instance that runs on this member; forget it otherwise."""
        elsewhere = self.member is not None and raw.location not in (None, "", "none", self.member)
        if self._is_newer(raw.key, turn):
            return self._seen.get(raw.key)
        if not raw.running or elsewhere:
            self._note_gone(raw.key, turn)
            return None
        group = await self._group(raw) if raw.type is InstanceType.CONTAINER else None
        if self._is_newer(raw.key, turn):
            return self._seen.get(raw.key)
        try:
            if group is None and (raw.key in self._stopping or self._had_group(raw.key)):
                raise GoneError(f"the cgroup of {raw.key} no longer exists")
            observed, problem = self._observe(raw, group)
        except GoneError:
            # The server calls it running for a while after its cgroup is gone, and a write to its record now would
            # hold up what its user wants of it.
            self._note_gone(raw.key, turn)
            self._stopping.add(raw.key)
            return None
        marked = observed.decided
        if group is not None and problem is None and not raw.config.get("limits.memory"):
            usage = self.cgroups.memory_usage(group)
            raw = raw if usage is None else replace(raw, memory_usage=usage)
        instance = demand.instance_from(raw, self.machine, self._placement)
        if raw.type is InstanceType.VIRTUAL_MACHINE:
            # Threads of virtual machines are not handled yet: the server's own choice counts as load.
            instance = replace(instance, managed=False)
        if not instance.managed:
            # What was decided while it was managed says nothing about where it is now.
            observed = replace(observed, decided=None)
        seen = Seen(
            instance=instance,
            observed=observed,
            group=group,
            marked=marked,
            etag=raw.etag,
            turn=turn,
            problem=problem,
        )
        self._stopping.discard(raw.key)
        self._remember(raw.key, seen)
        return seen

    def _is_newer(self, key: InstanceKey, turn: int) -> bool:
        """Whether a look that began later than this one has told about the instance already."""
        known = self._seen.get(key)
        return self._gone.get(key, 0) > turn or (known is not None and known.turn > turn)

    def _remember(self, key: InstanceKey, seen: Seen) -> None:
        before = self._seen.get(key)
        self._seen[key] = seen
        if seen.instance.managed:
            self._managed[key] = None
        else:
            self._managed.pop(key, None)
        if self._standing is not None and (before is None or before.instance != seen.instance or moved(before, seen)):
            self._standing.see(self._counted(seen.instance), seen.observed, self._load)

    def _stand(self) -> Standing:
        if self._standing is None:
            self._standing = Standing(self.machine, self._placement)
            for seen in self._seen.values():
                self._standing.see(self._counted(seen.instance), seen.observed, self._load)
        return self._standing

    async def _group(self, raw: ServerInstance) -> Path | None:
        known = self._seen.get(raw.key)
        if known is not None and known.group is not None and self.cgroups.is_live(known.group):
            return known.group
        group = self.cgroups.find(raw.key)
        if group is None:
            pid = raw.pid if raw.pid is not None else await self._pid(raw.key)
            group = self.cgroups.find_by_pid(raw.key, pid) if pid else None
        return group

    def _note_gone(self, key: InstanceKey, turn: int) -> None:
        self.forget(key)
        self._stopping.discard(key)
        self._gone[key] = turn

    def _had_group(self, key: InstanceKey) -> bool:
        known = self._seen.get(key)
        return known is not None and known.group is not None

    async def _pid(self, key: InstanceKey) -> int | None:
        try:
            return await self.server.get_pid(key)
        except (GoneError, ReportError, RetryError):
            return None

    def _observe(self, raw: ServerInstance, group: Path | None) -> tuple[Observed, str | None]:
        """What the instance has, and why its cgroup could not be read. Raises GoneError."""
        nodes = demand.nodes_from(raw)
        if group is None:
            container = raw.type is InstanceType.CONTAINER
            return replace(NOTHING, nodes=nodes), "it has no cgroup with cpuset files" if container else None
        try:
            state = self.cgroups.read(group)
        except ReportError as error:
            log.debug("instance=%s cgroup not read: %s", raw.key, error)
            return replace(NOTHING, nodes=nodes), str(error)
        memory = self._pages(group)
        return Observed(nodes=nodes, cpus=state.cpus, mems=state.mems, decided=state.decided, memory=memory), None

    def _pages(self, group: Path | None) -> Mapping[int, int] | None:
        return None if group is None else self.cgroups.memory_by_node(group)
