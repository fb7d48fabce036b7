"""The host's devices as the daemon finds them: sysfs first, then the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.hardware import KEEP_NOTHING, Hardware
from incus_numa.model.devices import DeviceKind, Slot, Wanted
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.protocol import ServerInstance
from incus_numa.settings import HostSettings
from incus_numa.simulator import trees
from incus_numa.simulator.cards import Card, write_card
from incus_numa.simulator.resources import render_resources
from tests import builders

MACHINE = builders.machine()
WANTED = Wanted(kind=DeviceKind.PCI, name="0000:41:00.0")
RAW = ServerInstance(
    key=InstanceKey("default", "c1"),
    type=InstanceType.CONTAINER,
    running=True,
    config={},
    devices={"gpu": {"type": "gpu", "pci": "0000:41:00.0"}},
)


def gpu(node: int) -> Card:
    return Card(kind="gpu", address="0000:41:00.0", node=node, name="card1")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    trees.write_sysfs(tmp_path, MACHINE)
    return tmp_path


def hardware(sysfs: Path) -> Hardware:
    return Hardware(HostSettings(sysfs=str(sysfs), procfs=str(sysfs / "proc")), KEEP_NOTHING)


@pytest.mark.parametrize(("said", "reported", "node"), [(2, 1, 2), (0, 3, 0), (-1, 3, 3), (-1, 0, None)])
def test_node_of_the_server_counts_where_sysfs_has_none(
    sysfs: Path, said: int, reported: int, node: int | None
) -> None:
    write_card(sysfs, gpu(said))
    host = hardware(sysfs)
    host.use_resources(json.dumps(render_resources(MACHINE, MACHINE.online, [gpu(reported)])).encode())
    assert host.find_devices(RAW) == {WANTED: (Slot("0000:41:00.0", node),)}
    host.forget_resources()
    assert host.find_devices(RAW) == {WANTED: (Slot("0000:41:00.0", said if said >= 0 else None),)}


def test_devices_are_looked_up_again_when_cpus_change(sysfs: Path) -> None:
    write_card(sysfs, gpu(2))
    host = hardware(sysfs)
    host.look()
    host.find_devices(RAW)
    trees.put(sysfs / "bus/pci/devices/0000:41:00.0/numa_node", "3\n")
    assert not host.look()
    assert host.find_devices(RAW) == {WANTED: (Slot("0000:41:00.0", 2),)}
    trees.write_online(sysfs, MACHINE, MACHINE.online - CpuSet([15]))
    assert host.look()
    assert host.find_devices(RAW) == {WANTED: (Slot("0000:41:00.0", 3),)}
