"""What devices of an instance are on the host, as values.

`server.devices` says what an instance's devices are called there, `topology.devices` finds these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from incus_numa.cpuset import NodeSet


class DeviceKind(Enum):
    """What something on the host is named by: PCI address, card number or model, interface, or path in `/dev`."""

    PCI = "PCI device"
    GPU = "GPU"
    NIC = "network interface"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Something on the host, by its name there.

    A GPU has a DRM card number as its name or none, and may have a vendor and a product, as four hexadecimal digits
    each; without any of the three all GPUs of the host are meant.
    """

    kind: DeviceKind
    name: str = ""
    vendor: str = ""
    product: str = ""

    def __str__(self) -> str:
        model = ":".join(text for text in (self.vendor, self.product) if text)
        if self.kind is DeviceKind.GPU:
            return f"GPU {self.name or model}" if self.name or model else "all GPUs"
        return f"{self.kind.value} {self.name}"


class Slot(NamedTuple):
    """One device of the host: its PCI address, empty for what has none, and its node, None when nobody knows it."""

    address: str
    node: int | None


Found = Mapping[Wanted, tuple[Slot, ...]]
"""What was found on the host. Nothing is behind what is virtual; what is not there has no entry."""

NOTHING_FOUND: Found = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device of an instance that is, or may be, hardware of the host.

    `name` is that in the instance's configuration, `what` is it on the host. `nodes` are those that it draws the
    instance to, empty when none is known; `note` says why they are not simply those of the hardware.
    """

    name: str
    what: str
    nodes: NodeSet
    note: str | None = None
