"""The nodes of devices as the server tells them in `GET /1.0/resources`. Called by the daemon.

The server leaves out a node below 1, so its 0 means node 0 or unknown, and only sysfs can say which. Fields: Resources
in shared/api/resource.go of Incus; LXD answers alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from incus_numa.cpuset import MAX_ID


class _Functions(msgspec.Struct):
    vfs: list[_Card] | None = None


class _Card(msgspec.Struct):
    pci_address: str = ""
    numa_node: int = 0
    sriov: _Functions | None = None


class _Cards(msgspec.Struct):
    cards: list[_Card] | None = None


class _Disks(msgspec.Struct):
    disks: list[_Card] | None = None


class _Devices(msgspec.Struct):
    devices: list[_Card] | None = None


class _Resources(msgspec.Struct):
    gpu: _Cards | None = None
    network: _Cards | None = None
    storage: _Disks | None = None
    pci: _Devices | None = None


class _Answer(_Resources):
    """The whole response, or its `metadata` alone."""

    metadata: _Resources | None = None


def parse_reported(resources: bytes) -> Mapping[str, int]:
    """PCI address to node, only where the server is sure; empty for what cannot be read.

    A disk has the address of what it is plugged into.
    """
    try:
        answer = msgspec.json.decode(resources, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    return {card.pci_address: card.numa_node for card in _list_cards(answer.metadata or answer)}


def _list_cards(found: _Resources) -> Iterator[_Card]:
    roots = (
        (found.pci and found.pci.devices) or (),
        (found.storage and found.storage.disks) or (),
        (found.network and found.network.cards) or (),
        (found.gpu and found.gpu.cards) or (),
    )
    for card in (one for cards in roots for one in cards):
        for one in (card, *((card.sriov and card.sriov.vfs) or ())):
            if one.pci_address and 0 < one.numa_node < MAX_ID:
                yield one
