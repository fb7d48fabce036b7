"""`GET /1.0/resources` of a machine, as a value for JSON. Pure. Called by `server`.

As on a real server there are no distances and no L3 sharing in it, and an unknown node is reported as 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import Cpu, Machine
from incus_numa.simulator.cards import Card


def render_resources(machine: Machine, online: CpuSet, cards: Iterable[Card] = ()) -> dict[str, Any]:
    """Sockets, cores and threads with their nodes; memory per node; cards by kind."""
    sockets: dict[int, dict[int, list[Cpu]]] = {}
    for cpu in machine.cpus:
        sockets.setdefault(cpu.socket or 0, {}).setdefault(cpu.core, []).append(cpu)
    total = machine.memory_bytes
    used = sum(
        (node.memory_bytes or 0) - (node.free_bytes or 0) for node in machine.nodes if node.free_bytes is not None
    )
    return {
        "cpu": {
            "architecture": "x86_64",
            "sockets": [_socket(number, cores, machine, online) for number, cores in sorted(sockets.items())],
            "total": len(machine.cpus),
        },
        "memory": {
            "nodes": [
                {
                    "numa_node": node.id,
                    "hugepages_used": 0,
                    "hugepages_total": 0,
                    "used": 0 if node.free_bytes is None else (node.memory_bytes or 0) - node.free_bytes,
                    "total": node.memory_bytes or 0,
                }
                for node in machine.nodes
                if node.memory_bytes
            ],
            "hugepages_total": 0,
            "hugepages_used": 0,
            "hugepages_size": 2 << 20,
            "used": used,
            "total": total,
        },
        "usb": {"devices": [], "total": 0},
        **_devices(cards),
        "system": {"uuid": "", "vendor": "incus-numa", "product": "simulator", "type": "virtual-machine"},
    }


def _socket(number: int, cores: dict[int, list[Cpu]], machine: Machine, online: CpuSet) -> dict[str, Any]:
    return {
        "name": "Simulated CPU",
        "vendor": "GenuineIntel",
        "socket": number,
        "cache": [],
        "cores": [
            {
                "core": core,
                "die": 0,
                "threads": [
                    {
                        "id": cpu.id,
                        "numa_node": cpu.node or 0,
                        "thread": thread,
                        "online": cpu.id in online,
                        "isolated": cpu.id in machine.isolated,
                    }
                    for thread, cpu in enumerate(threads)
                ],
            }
            for core, threads in sorted(cores.items())
        ],
    }


def _devices(cards: Iterable[Card]) -> dict[str, Any]:
    shown = list(cards)
    own = [card for card in shown if card.parent is None]

    def functions(card: Card) -> dict[str, Any]:
        found = [_card(one) for one in shown if one.parent == card.address]
        return {"sriov": {"current_vfs": len(found), "maximum_vfs": 64, "vfs": found}} if found else {}

    gpus = [_card(card) | functions(card) for card in own if card.kind == "gpu"]
    nics = [_card(card) | {"ports": [{"id": card.name}]} | functions(card) for card in own if card.kind == "nic"]
    disks = [_card(card) | {"id": card.name, "type": "nvme", "size": 0} for card in own if card.kind == "nvme"]
    return {
        "gpu": {"cards": gpus, "total": len(gpus)},
        "network": {"cards": nics, "total": len(nics)},
        "storage": {"disks": disks, "total": len(disks)},
        "pci": {"devices": [_card(card) for card in shown], "total": len(shown)},
    }


def _card(card: Card) -> dict[str, Any]:
    return {
        "pci_address": card.address,
        "numa_node": max(0, card.node),
        "vendor_id": card.vendor,
        "product_id": card.product,
    }
