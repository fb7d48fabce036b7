"""What the kernel shows of an instance: the cgroup of a container, the QEMU of a virtual machine. Used by the world."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from incus_numa.daemon.seen import Seen
from incus_numa.errors import GoneError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.guest_memory import AT_ONCE, VmMemory
from incus_numa.host.virtual import Process, VirtualMachines
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
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
        self._ahead: dict[InstanceKey, Process] = {}

    async def read_ahead(
        self, listed: Iterable[ServerInstance], known: Mapping[InstanceKey, Seen], *, follows: bool
    ) -> None:
        """Read where virtual machines have their memory that `find` is about to be asked for, several at a time."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def read(raw: ServerInstance, seen: Seen | None) -> None:
            async with gate:
                process = self._live(seen)
                if not _reads_memory(raw, seen if process is not None else None, follows=follows):
                    return
                process = process or await self._process(raw)
                if process is not None:
                    await asyncio.to_thread(self._vms.memory, process)
                    self._ahead[raw.key] = process

        self._ahead.clear()
        found = [raw for raw in listed if raw.type is InstanceType.VIRTUAL_MACHINE]
        await asyncio.gather(*(read(raw, known.get(raw.key)) for raw in found))

    async def find(self, raw: ServerInstance, known: Seen | None, *, follows: bool) -> Payload:
        """The instance's payload; empty without one. `known` is what was seen of it before.

        With `follows` memory of virtual machines is moved, so where it is is read again from time to time. Else that is
        read once, as the kernel walks all pages of the guest, and sampling reads it now and then.
        """
        if raw.type is InstanceType.CONTAINER:
            return Payload(group=await self._group(raw, known))
        process, ahead = self._live(known), self._ahead.pop(raw.key, None)
        if known is not None and process is not None and not _reads_memory(raw, known, follows=follows):
            memory = VmMemory(by_node=known.observed.memory, bound=known.observed.bound)
            return Payload(process=process, memory=memory)
        if process is None:
            process = ahead if ahead is not None and self._vms.is_live(ahead) else await self._process(raw)
        if process is None or not _reads_memory(raw, None, follows=follows):
            return Payload(process=process)
        return Payload(process=process, memory=await asyncio.to_thread(self._vms.memory, process))

    async def _process(self, raw: ServerInstance) -> Process | None:
        """The QEMU that the server names, None without one."""
        pid = raw.pid if raw.pid is not None else await self._pid(raw)
        return self._vms.find(pid) if pid else None

    def _live(self, known: Seen | None) -> Process | None:
        """The process that it was seen to have, if that still runs."""
        process = None if known is None else known.process
        return process if process is not None and self._vms.is_live(process) else None

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


def _reads_memory(raw: ServerInstance, known: Seen | None, *, follows: bool) -> bool:
    """Whether to read where a virtual machine has its memory: nobody needs that of one that is not to be placed."""
    return demand.asks_for_place(raw) and (follows or known is None or known.observed.bound is None)
