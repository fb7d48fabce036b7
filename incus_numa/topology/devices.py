"""Which node the host's devices are on: PCI devices, GPUs, network interfaces and disks, from sysfs.

Called for those that instances have, by the world. Files: Documentation/ABI/testing/sysfs-bus-pci (`numa_node`, -1 when
the firmware does not say; `physfn` of a virtual function) and sysfs-class-net (`lower_*`). The kernel gives a device
the node of what it is plugged into, so a disk or an interface has that of the nearest folder above it that tells one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from incus_numa.cpuset import MAX_ID
from incus_numa.model.devices import DeviceKind, Found, Slot, Wanted

MOST_KNOWN = 4096
"""How many answers are remembered; more than any host has devices for."""

_PCI = "bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[^/\s]{1,15}")
_DISPLAY_CLASS = "0x03"
_CONSOLES = frozenset({"1a03", "102b"})
"""Vendors of the displays of management controllers (ASPEED, Matrox), which nobody computes on."""

_BY_PLACE = re.compile(r"(?:en|ib|wl|ww)(?:P(\d{1,5}))?p(\d{1,3})s(\d{1,2})(?:f(\d))?(?:n\w+|d\d+|v\d+)?")
"""Interface names that udev makes from the PCI address: systemd.net-naming-scheme(7)."""


class _Gpu(NamedTuple):
    address: str
    card: str
    vendor: str
    product: str


class DeviceFinder:
    """Devices below one sysfs directory. What was found is remembered, what is not there is looked for again."""

    def __init__(self, sysfs: Path) -> None:
        self._root = os.fspath(sysfs)
        self._known: dict[Wanted, tuple[Slot, ...]] = {}
        self._interfaces: dict[str, tuple[Slot, ...]] = {}
        self._gpus: tuple[_Gpu, ...] = ()
        self._plugged: list[str] | None = None
        self._reported: Mapping[str, int] = {}

    def find(self, wanted: Iterable[Wanted]) -> Found:
        """Those of the wanted that are there, with the devices that they are or are made of."""
        found = {}
        for one in wanted:
            slots = self._known.get(one)
            if slots is None:
                slots = self._read(one)
                if slots is None:
                    continue
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[one] = slots
            found[one] = slots
        return found

    def forget(self) -> None:
        """Look everything up again, but for interfaces that are now inside an instance, where sysfs hides them."""
        self._known.clear()
        self._plugged = None

    def use_reported(self, reported: Mapping[str, int]) -> None:
        """Believe these nodes by PCI address from now on where sysfs has none."""
        self._reported = reported
        self._known.clear()

    def _read(self, wanted: Wanted) -> tuple[Slot, ...] | None:
        match wanted.kind:
            case DeviceKind.PCI:
                return self._pci(wanted.name)
            case DeviceKind.GPU:
                return self._select_gpus(wanted)
            case DeviceKind.NIC:
                return self._interface(wanted.name)
            case DeviceKind.DISK:
                return self._disk(wanted.name)

    def _pci(self, address: str) -> tuple[Slot, ...] | None:
        folder = f"{self._root}/{_PCI}/{address}"
        if not _ADDRESS.fullmatch(address):
            return None
        if os.path.lexists(folder):
            return (self._slot(address, folder),)
        node = self._reported.get(address)
        return None if node is None else (Slot(address, node),)

    def _slot(self, address: str, folder: str) -> Slot:
        """A PCI device in its folder. A virtual function without a node has that of its device."""
        node = self._node(folder)
        if node is None:
            node = self._node(f"{folder}/physfn")
        return Slot(address, self._reported.get(address) if node is None else node)

    def _node(self, folder: str) -> int | None:
        return _parse_node(_text(f"{folder}/numa_node"))

    def _select_gpus(self, wanted: Wanted) -> tuple[Slot, ...] | None:
        """The GPUs that the server's own rule selects; displays of management controllers only if they are named."""
        plugged = sorted(_names(f"{self._root}/{_PCI}"))
        if plugged != self._plugged:
            self._gpus, self._plugged = tuple(self._list_gpus(plugged)), plugged
        chosen = [
            gpu
            for gpu in self._gpus
            if wanted.name in ("", gpu.card)
            and wanted.vendor in ("", gpu.vendor)
            and wanted.product in ("", gpu.product)
            and (wanted.name or wanted.vendor or gpu.vendor not in _CONSOLES)
        ]
        return tuple(slot for gpu in chosen for slot in self._pci(gpu.address) or ()) or None

    def _list_gpus(self, plugged: Iterable[str]) -> Iterator[_Gpu]:
        for address in plugged:
            folder = f"{self._root}/{_PCI}/{address}"
            if not _text(f"{folder}/class").startswith(_DISPLAY_CLASS) or os.path.lexists(f"{folder}/physfn"):
                continue
            cards = sorted(name[4:] for name in _names(f"{folder}/drm") if re.fullmatch(r"card[0-9]+", name))
            vendor, product = (_text(f"{folder}/{name}").removeprefix("0x") for name in ("vendor", "device"))
            yield _Gpu(address, cards[0] if cards else "-", vendor, product)

    def _interface(self, name: str) -> tuple[Slot, ...] | None:
        if not _INTERFACE.fullmatch(name):
            return None
        if os.path.lexists(f"{self._root}/class/net/{name}"):
            slots = tuple(dict.fromkeys(self._below_interface(name, set())))
            self._interfaces[name] = slots
            return slots
        # One that was given to a container is in no folder of the host any more: what was seen before still holds,
        # and so does the address in its name.
        return self._interfaces.get(name) or self._by_place(name)

    def _by_place(self, name: str) -> tuple[Slot, ...] | None:
        match = _BY_PLACE.fullmatch(name)
        if match is None:
            return None
        domain, bus, device, function = (int(text or 0) for text in match.groups())
        return self._pci(f"{domain:04x}:{bus:02x}:{device:02x}.{function}")

    def _below_interface(self, name: str, seen: set[str]) -> Iterator[Slot]:
        """The hardware of an interface, or of those below a VLAN, a bond or a macvlan; none of a bridge."""
        folder = os.path.realpath(f"{self._root}/class/net/{name}")
        if name in seen or os.path.lexists(f"{folder}/bridge"):
            return
        seen.add(name)
        if not self._is_virtual(folder):
            yield self._climb(folder)
            return
        for entry in sorted(_names(folder)):
            if entry.startswith("lower_"):
                yield from self._below_interface(entry.removeprefix("lower_"), seen)

    def _disk(self, path: str) -> tuple[Slot, ...] | None:
        real = os.path.realpath(path)
        name = real.removeprefix("/dev/").replace("/", "!")
        if not real.startswith("/dev/") or name in (".", ".."):
            return None
        if os.path.lexists(f"{self._root}/class/block/{name}"):
            return tuple(dict.fromkeys(self._below_disk(name, set())))
        return () if _is_no_disk(real) else None

    def _below_disk(self, name: str, seen: set[str]) -> Iterator[Slot]:
        """The hardware of a disk, or of those that a device-mapper or RAID volume or a path of NVMe is made of."""
        folder = os.path.realpath(f"{self._root}/class/block/{name}")
        if name in seen:
            return
        seen.add(name)
        if os.path.lexists(f"{folder}/partition"):
            folder = os.path.dirname(folder)
        if not self._is_virtual(folder):
            yield self._climb(folder)
            return
        for slave in sorted(_names(f"{folder}/slaves")):
            yield from self._below_disk(slave, seen)
        above = os.path.dirname(folder)
        if os.path.basename(above).startswith("nvme-subsys"):
            for entry in sorted(_names(above)):
                if re.fullmatch(r"nvme[0-9]+", entry):
                    yield self._climb(os.path.realpath(f"{above}/{entry}"))

    def _is_virtual(self, folder: str) -> bool:
        return "/devices/virtual/" in folder.removeprefix(os.path.realpath(self._root))

    def _climb(self, folder: str) -> Slot:
        """The nearest PCI device above a folder of sysfs, or the nearest folder that tells a node."""
        top = f"{os.path.realpath(self._root)}/devices"
        while folder.startswith(f"{top}/"):
            name = os.path.basename(folder)
            if _ADDRESS.fullmatch(name):
                return self._slot(name, folder)
            node = self._node(folder)
            if node is not None:
                return Slot("", node)
            folder = os.path.dirname(folder)
        return Slot("", None)


def _is_no_disk(path: str) -> bool:
    """Whether something is there that is no block device, such as a folder in memory."""
    try:
        return not stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _parse_node(text: str) -> int | None:
    """A node; None for the kernel's -1, which means that it does not know, and for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < MAX_ID else None


def _text(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(64).decode(errors="replace").strip()
    except OSError:
        return ""


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
