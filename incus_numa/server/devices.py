"""What an instance's devices are on the host, and which nodes they draw it to. Pure.

Keys and types: doc/reference/devices_*.md of Incus; what the server notes in `volatile.NAME.*` while an instance runs
beats them, because it names the one device of several that it took. Whoever looks at an instance asks `list_wanted`,
has that found on the host (see `topology.devices`), and gives what was found to `locate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.devices import Device, DeviceKind, Found, Slot, Wanted
from incus_numa.model.machine import Machine
from incus_numa.server.protocol import ServerInstance
from incus_numa.settings import PlacementSettings

_ON_INTERFACE = frozenset({"physical", "sriov", "macvlan", "ipvlan"})
"""Kinds of network devices whose packets go through the interface that is their parent, and through no bridge."""

_PAIRED = re.compile(r"(veth|tap)")
"""How the server's names for host ends begin that lead to a bridge."""

_SHORT_ADDRESS = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def list_wanted(raw: ServerInstance) -> dict[str, Wanted]:
    """What each device of an instance is on the host, by its name, in order; devices without hardware are left out."""
    found = {}
    for name, device in sorted(raw.devices.items()):
        volatile = _Volatile(raw.config, name)
        wanted = _wanted(device, volatile)
        if wanted is not None:
            found[name] = wanted
    return found


def locate(raw: ServerInstance, found: Found, machine: Machine, settings: PlacementSettings) -> tuple[Device, ...]:
    """The instance's devices with the nodes that they draw it to, in order of their names."""
    wanted = list_wanted(raw)
    if not wanted:
        return ()
    seats = _Seats(machine, settings)
    located = (_locate(name, one, found.get(one), seats) for name, one in wanted.items())
    return tuple(one for one in located if one is not None)


def ignore(raw: ServerInstance, because: str) -> tuple[Device, ...]:
    """The same where none is to count."""
    note = f"ignored: {because}"
    return tuple(
        Device(name=name, what=str(wanted), nodes=NodeSet(), note=note) for name, wanted in list_wanted(raw).items()
    )


def nodes_of(devices: Iterable[Device]) -> NodeSet:
    """All nodes that devices draw their instance to."""
    return NodeSet(node for device in devices for node in device.nodes)


class _Volatile:
    """What the server notes about one device while the instance runs."""

    def __init__(self, config: Mapping[str, str], name: str) -> None:
        self._config = config
        self._prefix = f"volatile.{name}."

    def first(self, *keys: str) -> str:
        """The value of the first key that has one, else empty text."""
        return next((value for key in keys if (value := self._config.get(self._prefix + key, ""))), "")


class _Seats:
    """Which nodes instances can be on for the sake of a device."""

    def __init__(self, machine: Machine, settings: PlacementSettings) -> None:
        self._machine = machine
        self._free = machine.online - machine.isolated - CpuSet.parse(settings.reserved_cpus)

    def find(self, node: int) -> tuple[int | None, str | None]:
        """The node itself if it has usable CPUs, else the nearest one that has some; with a note if it is another."""
        if node not in self._machine.node_by_id:
            return None, f"it is on node {node}, which is not online"
        if self._machine.node_by_id[node].cpus & self._free:
            return node, None
        if not self._machine.node_by_id[node].distances:
            return None, f"it is on node {node}, which has no usable CPUs and is at unknown distances"
        far = self._machine.remoteness[node]
        usable = (one.id for one in self._machine.nodes if one.cpus & self._free)
        nearest = min(usable, key=lambda one: (far[one], one), default=None)
        return nearest, f"it is on node {node}, which has no usable CPUs"


def _locate(name: str, wanted: Wanted, slots: tuple[Slot, ...] | None, seats: _Seats) -> Device | None:
    """The device; None if there is no hardware behind it."""
    if slots is None:
        return Device(name=name, what=str(wanted), nodes=NodeSet(), note="this host shows no such device")
    if not slots:
        return None
    notes: list[str] = []
    nodes = set()
    for slot in slots:
        node, note = (None, "the kernel does not know its node") if slot.node is None else seats.find(slot.node)
        if node is not None:
            nodes.add(node)
        if note is not None and note not in notes:
            notes.append(note)
    return Device(name=name, what=_name(wanted, slots), nodes=NodeSet(nodes), note="; ".join(notes) or None)


def _name(wanted: Wanted, slots: tuple[Slot, ...]) -> str:
    addresses = ", ".join(slot.address for slot in slots if slot.address)
    return str(wanted) if not addresses or addresses == wanted.name else f"{wanted} ({addresses})"


def _wanted(device: Mapping[str, str], volatile: _Volatile) -> Wanted | None:
    kind = device.get("type", "")
    if kind in ("gpu", "nic", "infiniband", "pci"):
        slot = volatile.first("last_state.pci.slot.name", "last_state.pci.parent")
        if slot:
            return _pci(slot)
    match kind:
        case "pci":
            return _pci(device.get("address", ""))
        case "gpu":
            return _gpu(device)
        case "nic" | "infiniband":
            return _interface(device, volatile)
        case "disk" | "unix-block":
            return _disk(device)
        case _:
            return None


def _pci(address: str) -> Wanted | None:
    """A PCI device by its address, which may lack the domain as in the server."""
    text = address.strip().lower()
    if not text:
        return None
    return Wanted(kind=DeviceKind.PCI, name=f"0000:{text}" if _SHORT_ADDRESS.fullmatch(text) else text)


def _gpu(device: Mapping[str, str]) -> Wanted | None:
    if device.get("pci"):
        return _pci(device["pci"])
    vendor, product = (device.get(key, "").lower().removeprefix("0x") for key in ("vendorid", "productid"))
    return Wanted(kind=DeviceKind.GPU, name=device.get("id", ""), vendor=vendor, product=product)


def _interface(device: Mapping[str, str], volatile: _Volatile) -> Wanted | None:
    """The host's interface that a network device is, or that it sends through."""
    name = volatile.first("last_state.vf.parent")
    if not name and device.get("nictype", "") in _ON_INTERFACE:
        name = device.get("parent", "")
    if not name and device.get("network"):
        # The kind is a property of the network, so what the server made for it has to tell.
        made = volatile.first("host_name")
        name = "" if _PAIRED.match(made) else made
    return Wanted(kind=DeviceKind.NIC, name=name) if name else None


def _disk(device: Mapping[str, str]) -> Wanted | None:
    """A block device that is handed on. A volume of a pool or a folder may be anywhere, or on several disks."""
    source = device.get("source", "") or (device.get("path", "") if device.get("type") == "unix-block" else "")
    if device.get("pool") or not source.startswith("/dev/"):
        return None
    return Wanted(kind=DeviceKind.DISK, name=source)
