"""What the kernel shows of an instance: the cgroup of a container, the QEMU of a virtual machine. Used by the world."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from incus_numa.daemon.seen import Seen
from incus_numa.errors import GoneError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.guest_memory import VmMemory
from incus_numa.host.virtual import Process, VirtualMachines
from incus_numa.model.instance import Instance, InstanceType
from incus_numa.model.snapshot import NOTHING, Decided, Observed
from incus_numa.server import demand
from incus_numa.server.protocol import Server, ServerInstance

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """Where an instance is found: the cgroup of a container, or the process of a virtual machine and its memory."""

    group: Path | None = None
    process: Process | None = None
    memory: VmMemory | None = None

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return self.group is not None or self.process is not None


class Payloads:
    """Finds and reads what the kernel has of instances."""

    def __init__(self, server: Server, cgroups: CgroupFiles, vms: VirtualMachines) -> None:
        self._server = server
        self._cgroups = cgroups
        self._vms = vms

    async def find(self, raw: ServerInstance, known: Seen | None) -> Payload:
        """The instance's payload; empty without one. `known` is what was seen of it before."""
        if raw.type is InstanceType.CONTAINER:
            return Payload(group=await self._group(raw, known))
        if known is not None and known.process is not None and self._vms.is_live(known.process):
            memory = VmMemory(by_node=known.observed.memory, bound=known.observed.bound)
            return Payload(process=known.process, memory=memory)
        pid = raw.pid if raw.pid is not None else await self._pid(raw)
        process = self._vms.find(pid) if pid else None
        if process is None:
            return Payload()
        # The kernel walks all pages of the guest for that, so it is read once; sampling reads it again now and then.
        return Payload(process=process, memory=await asyncio.to_thread(self._vms.memory, process))

    def observe(self, raw: ServerInstance, instance: Instance, payload: Payload) -> tuple[Observed, str | None]:
        """What the instance has, and why that could not be read. Raises GoneError."""
        nodes = demand.nodes_from(raw)
        try:
            if payload.process is not None:
                found = self._read_vm(payload.process, instance.demand.vcpus)
                memory = payload.memory or VmMemory()
                return replace(found, nodes=nodes, memory=memory.by_node, bound=memory.bound), None
            if payload.group is not None:
                state = self._cgroups.read(payload.group)
                memory_by_node = self._cgroups.memory_by_node(payload.group)
                return Observed(
                    nodes=nodes, cpus=state.cpus, mems=state.mems, decided=state.decided, memory=memory_by_node
                ), None
        except ReportError as error:
            log.debug("instance=%s not read: %s", raw.key, error)
            return replace(NOTHING, nodes=nodes), str(error)
        is_container = raw.type is InstanceType.CONTAINER
        return replace(NOTHING, nodes=nodes), (
            "it has no cgroup with cpuset files" if is_container else "its QEMU process was not found"
        )

    def observe_again(self, seen: Seen, *, memory: bool) -> Observed:
        """What an instance has by now, without `memory` only its CPUs. Raises GoneError, ReportError."""
        if seen.process is not None:
            found = self._read_vm(seen.process, seen.instance.demand.vcpus)
            return replace(seen.observed, cpus=found.cpus, around=found.around, even=found.even)
        if seen.group is None:
            return seen.observed
        mems = self._cgroups.read_mems(seen.group) if memory else seen.observed.mems
        return replace(seen.observed, cpus=self._cgroups.read_cpus(seen.group), mems=mems)

    def read_usage(self, payload: Payload) -> int | None:
        """Memory in use by a container in bytes; None when unknown. A virtual machine's is its limit."""
        return None if payload.group is None else self._cgroups.memory_usage(payload.group)

    async def read_memory(self, seen: Seen) -> Mapping[int, int] | None:
        """Memory of an instance in bytes by node, None when unknown."""
        if seen.process is not None:
            return (await asyncio.to_thread(self._vms.memory, seen.process, fresh=True)).by_node
        return None if seen.group is None else self._cgroups.memory_by_node(seen.group)

    def read_mark(self, seen: Seen) -> Decided | None:
        """The decision that is kept with an instance, None without one."""
        if seen.process is not None:
            return self._vms.read_mark(seen.process)
        return None if seen.group is None else self._cgroups.read_mark(seen.group)

    def _read_vm(self, process: Process, vcpus: int | None) -> Observed:
        state = self._vms.read(process, vcpus)
        return Observed(cpus=state.cpus, around=state.around, even=state.is_even, decided=state.decided)

    async def _group(self, raw: ServerInstance, known: Seen | None) -> Path | None:
        if known is not None and known.group is not None and self._cgroups.is_live(known.group):
            return known.group
        group = self._cgroups.find(raw.key)
        if group is None:
            pid = raw.pid if raw.pid is not None else await self._pid(raw)
            group = self._cgroups.find_by_pid(raw.key, pid) if pid else None
        return group

    async def _pid(self, raw: ServerInstance) -> int | None:
        try:
            return await self._server.get_pid(raw.key)
        except (GoneError, ReportError, RetryError):
            return None
