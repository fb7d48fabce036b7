"""Nodes of the host's devices, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_numa.model.devices import DeviceKind, Slot, Wanted
from incus_numa.simulator.cards import Card, write_card
from incus_numa.simulator.trees import put
from incus_numa.topology.devices import DeviceFinder
from incus_numa.topology.reported import parse_reported

A, B = "0000:41:00.0", "0000:c1:00.0"


def look(finder: DeviceFinder, kind: DeviceKind, name: str = "", **more: str) -> tuple[Slot, ...] | None:
    wanted = Wanted(kind=kind, name=name, **more)
    return finder.find([wanted]).get(wanted)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def gpu(address: str, node: int, name: str = "card1", vendor: str = "10de", product: str = "2330") -> Card:
    return Card(kind="gpu", address=address, node=node, name=name, vendor=vendor, product=product)


def nic(address: str, node: int, name: str, parent: str | None = None) -> Card:
    return Card(kind="nic", address=address, node=node, name=name, parent=parent)


@pytest.mark.parametrize(("said", "node"), [(2, 2), (0, 0), (-1, None)])
def test_pci_device(tmp_path: Path, said: int, node: int | None) -> None:
    write_card(tmp_path, gpu(A, said))
    assert look(DeviceFinder(tmp_path), DeviceKind.PCI, A) == (Slot(A, node),)


@pytest.mark.parametrize("text", ["", "x", "-2", "1.5", "99999999", "\x00"])
def test_strange_node_is_unknown(tmp_path: Path, text: str) -> None:
    write_card(tmp_path, gpu(A, 2))
    put(tmp_path / f"bus/pci/devices/{A}/numa_node", text)
    assert look(DeviceFinder(tmp_path), DeviceKind.PCI, A) == (Slot(A, None),)


@pytest.mark.parametrize("name", [B, "../../etc", "", ".", "41:00.0"])
def test_pci_device_that_is_not_there(tmp_path: Path, name: str) -> None:
    write_card(tmp_path, gpu(A, 2))
    assert look(DeviceFinder(tmp_path), DeviceKind.PCI, name) is None


def test_virtual_function_has_the_node_of_its_device(tmp_path: Path) -> None:
    write_card(tmp_path, nic(A, 3, "eth4"))
    write_card(tmp_path, nic("0000:41:02.0", -1, "eth4v0", parent=A))
    finder = DeviceFinder(tmp_path)
    assert look(finder, DeviceKind.PCI, "0000:41:02.0") == (Slot("0000:41:02.0", 3),)
    assert look(finder, DeviceKind.NIC, "eth4v0") == (Slot("0000:41:02.0", 3),)


def test_gpus_by_card_and_model(tmp_path: Path) -> None:
    write_card(tmp_path, gpu(A, 1, "card1"))
    write_card(tmp_path, gpu(B, 3, "card2", product="20b0"))
    write_card(tmp_path, gpu("0000:02:00.0", 0, "card0", vendor="1a03", product="2000"))
    write_card(tmp_path, nic("0000:03:00.0", 2, "eth4"))
    finder = DeviceFinder(tmp_path)
    first, second, console = Slot(A, 1), Slot(B, 3), Slot("0000:02:00.0", 0)
    assert {
        "card": look(finder, DeviceKind.GPU, "2"),
        "no such card": look(finder, DeviceKind.GPU, "7"),
        "vendor": look(finder, DeviceKind.GPU, vendor="10de"),
        "model": look(finder, DeviceKind.GPU, vendor="10de", product="2330"),
        "all": look(finder, DeviceKind.GPU),
        "console by card": look(finder, DeviceKind.GPU, "0"),
        "console by vendor": look(finder, DeviceKind.GPU, vendor="1a03"),
    } == {
        "card": (second,),
        "no such card": None,
        "vendor": (first, second),
        "model": (first,),
        "all": (first, second),
        "console by card": (console,),
        "console by vendor": (console,),
    }


def test_virtual_functions_are_no_gpus_of_their_own(tmp_path: Path) -> None:
    write_card(tmp_path, gpu(A, 1))
    write_card(tmp_path, Card(kind="gpu", address="0000:41:00.4", node=1, name="card2", parent=A))
    assert look(DeviceFinder(tmp_path), DeviceKind.GPU) == (Slot(A, 1),)


def test_interfaces_below_a_vlan_on_a_bond(tmp_path: Path) -> None:
    write_card(tmp_path, nic(A, 1, "eth4"))
    write_card(tmp_path, nic(B, 3, "eth5"))
    virtual = tmp_path / "devices/virtual/net"
    for name, below in {"bond0": ("eth4", "eth5"), "bond0.7": ("bond0",), "loop0": ("loop0",)}.items():
        link(tmp_path / "class/net" / name, f"../../devices/virtual/net/{name}")
        for lower in below:
            link(virtual / name / f"lower_{lower}", f"../{lower}")
    finder = DeviceFinder(tmp_path)
    assert look(finder, DeviceKind.NIC, "bond0.7") == (Slot(A, 1), Slot(B, 3))
    assert look(finder, DeviceKind.NIC, "loop0") == ()


def test_bridge_has_no_hardware(tmp_path: Path) -> None:
    write_card(tmp_path, nic(A, 1, "eth4"))
    put(tmp_path / "devices/virtual/net/br0/bridge/bridge_id", "8000\n")
    link(tmp_path / "devices/virtual/net/br0/lower_eth4", "../../../eth4")
    link(tmp_path / "class/net/br0", "../../devices/virtual/net/br0")
    assert look(DeviceFinder(tmp_path), DeviceKind.NIC, "br0") == ()


def test_interface_on_no_bus_that_tells_a_node(tmp_path: Path) -> None:
    put(tmp_path / "devices/platform/soc/net/end0/uevent", "")
    link(tmp_path / "class/net/end0", "../../devices/platform/soc/net/end0")
    assert look(DeviceFinder(tmp_path), DeviceKind.NIC, "end0") == (Slot("", None),)


def test_interface_on_another_bus_that_tells_a_node(tmp_path: Path) -> None:
    put(tmp_path / "devices/vmbus/device7/net/eth0/uevent", "")
    put(tmp_path / "devices/vmbus/device7/numa_node", "1\n")
    link(tmp_path / "class/net/eth0", "../../devices/vmbus/device7/net/eth0")
    assert look(DeviceFinder(tmp_path), DeviceKind.NIC, "eth0") == (Slot("", 1),)


def test_interface_inside_an_instance_stays_known(tmp_path: Path) -> None:
    write_card(tmp_path, nic(A, 3, "eth4"))
    finder = DeviceFinder(tmp_path)
    before = look(finder, DeviceKind.NIC, "eth4")
    (tmp_path / "class/net/eth4").unlink()
    finder.forget()
    assert look(finder, DeviceKind.NIC, "eth4") == before == (Slot(A, 3),)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("enp65s0f0np0", "0000:41:00.0"),
        ("enP2p65s0f1", "0002:41:00.1"),
        ("ibp193s0", "0000:c1:00.0"),
        ("enp65s0f0v7", "0000:41:00.0"),
    ],
)
def test_name_of_an_interface_tells_its_address(tmp_path: Path, name: str, address: str) -> None:
    write_card(tmp_path, nic(address, 3, "other"))
    assert look(DeviceFinder(tmp_path), DeviceKind.NIC, name) == (Slot(address, 3),)


@pytest.mark.parametrize("name", ["eno1", "enp66s0", "eth9", "..", ".", "a/b", "", "enp300s0"])
def test_interface_that_is_not_there(tmp_path: Path, name: str) -> None:
    write_card(tmp_path, nic(A, 3, "eth4"))
    assert look(DeviceFinder(tmp_path), DeviceKind.NIC, name) is None


def test_disks(tmp_path: Path) -> None:
    write_card(tmp_path, Card(kind="nvme", address=A, node=2, name="nvme90n1"))
    put(tmp_path / f"devices/pci0000:00/{A}/nvme/nvme90/nvme90n1/nvme90n1p1/partition", "1\n")
    link(tmp_path / "class/block/nvme90n1p1", f"../../devices/pci0000:00/{A}/nvme/nvme90/nvme90n1/nvme90n1p1")
    put(tmp_path / "devices/virtual/block/dm-90/slaves/nvme90n1p1/uevent", "")
    link(tmp_path / "class/block/dm-90", "../../devices/virtual/block/dm-90")
    put(tmp_path / "devices/virtual/block/loop90/uevent", "")
    link(tmp_path / "class/block/loop90", "../../devices/virtual/block/loop90")
    finder = DeviceFinder(tmp_path)
    names = ("nvme90n1", "nvme90n1p1", "dm-90", "loop90", "sdzz", "shm", "../etc/passwd", "cciss/c0d0")
    assert {name: look(finder, DeviceKind.DISK, f"/dev/{name}") for name in names} == {
        "nvme90n1": (Slot(A, 2),),
        "nvme90n1p1": (Slot(A, 2),),
        "dm-90": (Slot(A, 2),),
        "loop90": (),
        "sdzz": None,
        "shm": (),
        "../etc/passwd": None,
        "cciss/c0d0": None,
    }


def test_disk_behind_several_nvme_controllers(tmp_path: Path) -> None:
    subsystem = "devices/virtual/nvme-subsystem/nvme-subsys90"
    put(tmp_path / subsystem / "nvme90n1/nvme90n1p1/partition", "1\n")
    for name, address, node in (("nvme90", A, 1), ("nvme91", B, 3)):
        put(tmp_path / f"devices/pci0000:00/{address}/numa_node", f"{node}\n")
        put(tmp_path / f"devices/pci0000:00/{address}/nvme/{name}/uevent", "")
        link(tmp_path / subsystem / name, f"../../../pci0000:00/{address}/nvme/{name}")
    for name, inside in (("nvme90n1", "nvme90n1"), ("nvme90n1p1", "nvme90n1/nvme90n1p1")):
        link(tmp_path / "class/block" / name, f"../../{subsystem}/{inside}")
    finder = DeviceFinder(tmp_path)
    both = (Slot(A, 1), Slot(B, 3))
    assert look(finder, DeviceKind.DISK, "/dev/nvme90n1") == both
    assert look(finder, DeviceKind.DISK, "/dev/nvme90n1p1") == both


def test_device_plugged_in_later_is_found(tmp_path: Path) -> None:
    finder = DeviceFinder(tmp_path)
    assert [look(finder, DeviceKind.PCI, A), look(finder, DeviceKind.GPU)] == [None, None]
    write_card(tmp_path, gpu(A, 2))
    assert [look(finder, DeviceKind.PCI, A), look(finder, DeviceKind.GPU)] == [(Slot(A, 2),), (Slot(A, 2),)]


def test_what_was_found_is_read_again_only_after_forgetting(tmp_path: Path) -> None:
    write_card(tmp_path, gpu(A, 2))
    finder = DeviceFinder(tmp_path)
    look(finder, DeviceKind.PCI, A)
    put(tmp_path / f"bus/pci/devices/{A}/numa_node", "3\n")
    known = look(finder, DeviceKind.PCI, A)
    finder.forget()
    assert (known, look(finder, DeviceKind.PCI, A)) == ((Slot(A, 2),), (Slot(A, 3),))


def test_server_is_believed_only_where_sysfs_is_silent(tmp_path: Path) -> None:
    write_card(tmp_path, gpu(A, 2))
    write_card(tmp_path, gpu(B, -1, "card2"))
    finder = DeviceFinder(tmp_path)
    look(finder, DeviceKind.PCI, B)
    finder.use_reported({A: 1, B: 3, "0000:e1:00.0": 1})
    found = [look(finder, DeviceKind.PCI, name) for name in (A, B, "0000:e1:00.0")]
    assert found == [(Slot(A, 2),), (Slot(B, 3),), (Slot("0000:e1:00.0", 1),)]


def test_node_0_of_the_server_says_nothing() -> None:
    body = b"""{"metadata": {"gpu": {"cards": [
        {"pci_address": "a", "numa_node": 0}, {"pci_address": "b", "numa_node": 2,
         "sriov": {"vfs": [{"pci_address": "c", "numa_node": 2}]}}, {"numa_node": 3}]},
        "network": {"cards": null}, "storage": {"disks": [{"pci_address": "d", "numa_node": 1}]},
        "pci": {"devices": [{"pci_address": "e", "numa_node": 4}, {"pci_address": "f", "numa_node": 99999}]}}}"""
    assert parse_reported(body) == {"b": 2, "c": 2, "d": 1, "e": 4}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"gpu": 3}', b"\xff", b"[" * 100_000])
def test_strange_resources_say_nothing(body: bytes) -> None:
    assert parse_reported(body) == {}
