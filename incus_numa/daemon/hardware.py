"""The machine as the host's files and the server describe it, with what is kept for the host. Used by the world."""

from __future__ import annotations

import logging
from pathlib import Path

from incus_numa.model.devices import Found
from incus_numa.model.machine import Machine
from incus_numa.policy import reservations
from incus_numa.server import devices
from incus_numa.server.protocol import ServerInstance
from incus_numa.settings import HostSettings, MemorySettings, Settings
from incus_numa.topology import fingerprint, reported, resources, sysfs
from incus_numa.topology.devices import DeviceFinder

log = logging.getLogger(__name__)

KEEP_NOTHING = MemorySettings()
"""No memory is kept for the host."""


class Hardware:
    """The machine as last read. It is read again only where its fingerprint, which costs little, has changed."""

    def __init__(self, host: HostSettings, memory: MemorySettings) -> None:
        self._host = host
        self._memory = memory
        self._misfits: tuple[str, ...] = ()
        self._machine: Machine | None = None
        self._resources: bytes | None = None
        self._fingerprint: tuple[str, ...] = ()
        self._devices = DeviceFinder(Path(host.sysfs))

    @property
    def machine(self) -> Machine:
        """The machine as last read; read now if it never was."""
        return self._machine or self._read()

    def look(self) -> bool:
        """Read the machine again if its CPUs or nodes changed; says whether they did."""
        before = self._machine
        if before is not None and self._read_fingerprint() == self._fingerprint:
            return False
        self._read()
        return before is not None

    def use_resources(self, body: bytes) -> None:
        """Merge what the server says of the machine from now on. Raises ReportError if it makes no sense."""
        self._resources = body
        self._devices.use_reported(reported.parse_reported(body))
        self._read()

    def forget_resources(self) -> None:
        """Leave out what the server says."""
        self._resources = None
        self._devices.use_reported({})

    def find_devices(self, raw: ServerInstance) -> Found:
        """What the instance's devices are on the host. Each is looked up once for every reading of the machine."""
        return self._devices.find(devices.list_wanted(raw).values())

    def find_misfits(self, settings: Settings) -> tuple[str, ...]:
        """CPUs and memory that the machine as it is now cannot keep for the host, one sentence each."""
        placement, memory = settings.placement, settings.memory
        cpus: tuple[str, ...] = ()
        if placement.reserved_cpus:
            present = sysfs.read_present(Path(self._host.sysfs))
            cpus = reservations.check_reserved_cpus(placement, self.machine, present)
        if memory.policy == "none":
            return cpus
        return (*cpus, *reservations.check_reservations(memory, self._look_at_machine()))

    def use_memory(self, memory: MemorySettings) -> None:
        """Keep other amounts of memory for the host from now on; huge pages are read again, too."""
        self._memory = memory
        self._read()

    def _read(self) -> Machine:
        self._devices.forget()
        self._fingerprint = self._read_fingerprint()
        found = self._look_at_machine()
        for warning in found.warnings:
            log.debug("%s", warning)
        self._machine = self._reserve(found)
        return self._machine

    def _read_fingerprint(self) -> tuple[str, ...]:
        return fingerprint.read_fingerprint(Path(self._host.sysfs), Path(self._host.procfs))

    def _look_at_machine(self) -> Machine:
        found = sysfs.read_machine(Path(self._host.sysfs), Path(self._host.procfs))
        return found if self._resources is None else resources.merge_resources(found, self._resources)

    def _reserve(self, machine: Machine) -> Machine:
        """The machine with the host's memory set aside. What no longer fits is cut, and said once."""
        misfits = reservations.check_reservations(self._memory, machine)
        for misfit in misfits:
            if misfit not in self._misfits:
                log.warning("%s; as much as there is is kept", misfit)
        self._misfits = misfits
        return reservations.reserve(machine, self._memory)
