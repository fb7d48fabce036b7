"""The snapshot as it grows: what was last seen of the machine and of every instance. Called by the reconciler.

Observing is incremental: one instance, the cgroups, or everything is looked at again, the rest stays as last seen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from incus_numa.daemon.counting import Counting
from incus_numa.daemon.hardware import KEEP_NOTHING, Hardware
from incus_numa.daemon.payloads import Payload, Payloads
from incus_numa.daemon.seen import Seen
from incus_numa.errors import GoneError, ReportError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.plan import MovePages, PatchNodes, PinThreads, Placement, Plan, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided, Snapshot
from incus_numa.policy import steps
from incus_numa.server import demand
from incus_numa.server.protocol import Server, ServerInfo, ServerInstance, is_elsewhere
from incus_numa.settings import HostSettings, MemorySettings, PlacementSettings, Settings

log = logging.getLogger(__name__)


class World:
    """What is known about the host and the server's instances. Not thread-safe: one event loop uses it."""

    def __init__(
        self,
        server: Server,
        cgroups: CgroupFiles,
        vms: VirtualMachines,
        *,
        host: HostSettings,
        placement: PlacementSettings,
        memory: MemorySettings = KEEP_NOTHING,
    ) -> None:
        self.server = server
        self.cgroups = cgroups
        self.vms = vms
        self._payloads = Payloads(server, cgroups, vms)
        self._hardware = Hardware(host, memory)
        self.problems: tuple[str, ...] = ()
        self.member: str | None = None
        self.nodes_key: str | None = demand.VOLATILE_NODES
        self._seen: dict[InstanceKey, Seen] = {}
        self._counting = Counting(self._seen, self._hardware, placement)
        self._managed: dict[InstanceKey, None] = {}
        self._stopping: set[InstanceKey] = set()
        self._gone: dict[InstanceKey, int] = {}
        self._turns = itertools.count(1)
        self.info: ServerInfo | None = None

    @property
    def record_moves_cpus(self) -> bool:
        """Whether the server rewrites cpusets when the record is written, as LXD does."""
        return self.nodes_key == demand.LIMIT_NODES

    @property
    def _vm_memory_follows(self) -> bool:
        return self.placement.vm_memory == "migrate"

    @property
    def placement(self) -> PlacementSettings:
        """The settings that plans are made with."""
        return self._counting.placement

    @property
    def machine(self) -> Machine:
        """The machine as last read; read now if it never was."""
        return self._hardware.machine

    def read_machine(self) -> bool:
        """Read the machine again if its CPUs or nodes changed; says whether they did."""
        changed = self._hardware.look()
        if changed:
            self._counting.begin_anew()
        return changed

    async def greet(self, info: ServerInfo) -> None:
        """Note who the server is, and merge what only it knows of the machine; what it cannot say is left out."""
        self.info, self.member = info, info.member
        self.nodes_key = demand.nodes_key(info)
        try:
            self._hardware.use_resources(await self.server.get_resources())
            self._counting.begin_anew()
        except ReportError as error:
            self._hardware.forget_resources()
            log.debug("resources of the server are left out: %s", error)

    def snapshot(self, judged: frozenset[InstanceKey] = frozenset()) -> Snapshot:
        """Everything as last seen. What those to be `judged` ask for counts, whatever was decided before."""
        return self._counting.snapshot(judged)

    def plan(self, keys: frozenset[InstanceKey]) -> tuple[Plan, Snapshot]:
        """A plan for these instances, all others staying as they are, and the snapshot it was made from."""
        return self._counting.plan(keys)

    def use_placement(self, placement: PlacementSettings) -> None:
        """Plan with other settings from now on."""
        self._counting.use(placement)

    def find_misfits(self, settings: Settings) -> tuple[str, ...]:
        """CPUs and memory that the machine as it is now cannot keep for the host, one sentence each."""
        return self._hardware.find_misfits(settings)

    def use_memory(self, memory: MemorySettings) -> None:
        """Keep other amounts of memory for the host from now on; huge pages are read again, too."""
        self._hardware.use_memory(memory)
        self._counting.begin_anew()

    def note_load(self, load: Load, memory: Mapping[InstanceKey, Mapping[int, int]]) -> None:
        """Count measured load in everything planned from now on; `memory` is what instances have on which node."""
        for key, by_node in memory.items():
            seen = self._seen.get(key)
            if seen is not None and seen.observed.memory != by_node:
                self._seen[key] = replace(seen, observed=replace(seen.observed, memory=by_node))
        self._counting.note_load(load)

    async def look_at_memory(self, key: InstanceKey) -> None:
        """Read where an instance has its memory."""
        seen = self._seen.get(key)
        if seen is None:
            return
        memory = await self._payloads.read_memory(seen)
        now = self._seen.get(key)
        if now is not None and (now.group, now.process) == (seen.group, seen.process):
            self._seen[key] = replace(now, observed=replace(now.observed, memory=memory))

    def read_mark(self, seen: Seen) -> Decided | None:
        """The decision that is kept with an instance, None without one."""
        return self._payloads.read_mark(seen)

    def diff(self, placement: Placement, seen: Seen, refused: Iterable[InstanceKey] = ()) -> tuple[Step, ...]:
        """The steps that lead an instance to a placement, where nothing is exclusive to those `refused`."""
        if seen.instance.type is InstanceType.CONTAINER:
            found, is_allowed = steps.diff_one(placement, seen.observed, self.machine.memory_nodes), True
        else:
            usable, migrates = self._counting.usable_by(placement.key, refused), not seen.instance.memory_stays
            found = steps.diff_vm(placement, seen.observed, self.machine, usable=usable, migrates=migrates)
            is_allowed = self.placement.vm_record == "once"
        has_record = is_allowed and seen.record is not None
        return tuple(step for step in found if has_record or not isinstance(step, PatchNodes))

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
        # Sums that are only ever added to and taken from gather rounding errors.
        self._counting.begin_anew()
        self.problems = listing.problems
        present = set()
        here = [raw for raw in listing.instances if raw.running and not is_elsewhere(raw.location, self.member)]
        await self._payloads.read_ahead(here, self._seen, follows=self._vm_memory_follows)
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
        """Read one instance's cgroup or threads again, without `memory` only its CPUs; None if it is gone."""
        seen = self._seen.get(key)
        if seen is None:
            return seen
        try:
            observed = self._payloads.observe_again(seen, memory=memory)
        except GoneError:
            return None
        except ReportError as error:
            log.debug("instance=%s not read: %s", key, error)
            return seen
        if observed != seen.observed:
            seen = replace(seen, observed=observed)
            self._remember(key, seen)
        return seen

    def forget(self, key: InstanceKey) -> None:
        """The instance is gone or stopped; nothing happens if it was not known."""
        self._seen.pop(key, None)
        self._managed.pop(key, None)
        self._counting.drop(key)

    def share(self, key: InstanceKey, *, shared: bool) -> None:
        """Note whether others may have the CPUs of an instance that asks for exclusive ones: it was refused."""
        seen = self._seen.get(key)
        if seen is not None:
            self._counting.share(seen, shared=shared)

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
            case PinThreads():
                found = None if seen.observed.cpus is None else step.cpus
                now = replace(seen, observed=replace(seen.observed, cpus=found, around=step.around, even=True))
            case MovePages():
                # Where its memory is now is read by whoever waited for it.
                now = seen
            case _:
                assert_never(step)
        self._remember(step.key, now)

    async def _take(self, raw: ServerInstance, turn: int) -> Seen | None:
        """Remember an instance that runs on this member; forget it otherwise."""
        if self._is_newer(raw.key, turn):
            return self._seen.get(raw.key)
        if not raw.running or is_elsewhere(raw.location, self.member):
            self._note_gone(raw.key, turn)
            return None
        payload = await self._payloads.find(raw, self._seen.get(raw.key), follows=self._vm_memory_follows)
        if self._is_newer(raw.key, turn):
            return self._seen.get(raw.key)
        try:
            if not payload and (raw.key in self._stopping or self._had_payload(raw.key)):
                raise GoneError(f"{raw.key} has no processes any more")
            seen = self._see(raw, payload, turn)
        except GoneError:
            # The server calls it running for a while after its cgroup is gone, and a write to its record now would
            # hold up what its user wants of it.
            self._note_gone(raw.key, turn)
            self._stopping.add(raw.key)
            return None
        self._stopping.discard(raw.key)
        self._remember(raw.key, seen)
        return seen

    def _see(self, raw: ServerInstance, payload: Payload, turn: int) -> Seen:
        """What is seen of an instance. Raises GoneError."""
        usage = None if raw.config.get("limits.memory") else self._payloads.read_usage(payload)
        raw = raw if usage is None else replace(raw, memory_usage=usage)
        instance = demand.instance_from(raw, self.machine, self.placement, self._hardware.find_devices(raw))
        observed, problem = self._payloads.observe(raw, instance, payload)
        if not demand.follows_nodes(raw):
            observed = replace(observed, followed=False)
        marked = observed.decided
        if not instance.managed or self._was_pinned(instance):
            # What was decided while it was managed, or for CPUs that it listed, says nothing about where it is now.
            observed = replace(observed, decided=None)
        return Seen(
            instance=instance,
            observed=observed,
            group=payload.group,
            process=payload.process,
            marked=marked,
            etag=raw.etag,
            turn=turn,
            problem=problem,
            record=demand.record_key(raw, self.nodes_key),
            opted_in=demand.has_opted_in(raw),
        )

    def _was_pinned(self, instance: Instance) -> bool:
        """Whether a list of CPUs that the instance had when it was last seen is gone."""
        known = self._seen.get(instance.key)
        before = None if known is None else known.instance.demand.pinned_cpus
        return before is not None and instance.demand.pinned_cpus is None

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
        self._counting.see(before, seen)

    def _note_gone(self, key: InstanceKey, turn: int) -> None:
        self.forget(key)
        self._stopping.discard(key)
        self._gone[key] = turn

    def _had_payload(self, key: InstanceKey) -> bool:
        known = self._seen.get(key)
        return known is not None and (known.group is not None or known.process is not None)
