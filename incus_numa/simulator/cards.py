"""PCI cards of the simulated host, and how `/sys` shows them. Written by `devices`, told by `resources`.

Files: Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from incus_numa.simulator.trees import put

_CLASS = {"gpu": "0x030000", "nic": "0x020000", "nvme": "0x010802"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One PCI device.

    `node` is what `/sys` says, -1 where the firmware did not say. `name` is that of the DRM card, interface or
    namespace it brings. `parent` is the address of the device that it is a virtual function of.
    """

    kind: Literal["gpu", "nic", "nvme"]
    address: str
    node: int
    name: str
    vendor: str = "10de"
    product: str = "2330"
    parent: str | None = None


def write_card(root: Path, card: Card) -> None:
    """Write a card below `devices/pci0000:00`, with the links that lead there."""
    bridge = "devices/pci0000:00"
    folder = root / bridge / card.address
    put(folder / "numa_node", f"{card.node}\n")
    put(folder / "class", f"{_CLASS[card.kind]}\n")
    put(folder / "vendor", f"0x{card.vendor}\n")
    put(folder / "device", f"0x{card.product}\n")
    _link(root / "bus/pci/devices" / card.address, f"../../../{bridge}/{card.address}")
    if card.parent is not None:
        _link(folder / "physfn", f"../{card.parent}")
    inside, outside = {
        "gpu": (f"drm/{card.name}", "class/drm"),
        "nic": (f"net/{card.name}", "class/net"),
        "nvme": (f"nvme/{card.name.partition('n1')[0]}/{card.name}", "class/block"),
    }[card.kind]
    put(folder / inside / "uevent", "")
    _link(root / outside / card.name, f"../../{bridge}/{card.address}/{inside}")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
