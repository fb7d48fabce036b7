"""Devices of real machines in ../shared are found on the nodes that their kernels told."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from incus_numa.model.devices import DeviceKind, Slot, Wanted
from incus_numa.topology.devices import DeviceFinder

TOPOLOGIES = Path(__file__).parents[3] / "shared" / "data" / "topologies"
NEEDED = re.compile(r".*?/sys/(class/(net|block|drm)|bus/pci/devices|devices/(pci|virtual/(net|block))).*")

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not TOPOLOGIES.is_dir(), reason="../shared/data/topologies is not there"),
]


def find(snapshot: str, root: str, into: Path, **names: DeviceKind) -> dict[str, tuple[Slot, ...] | None]:
    """What each name is on that machine; None for what is not there."""
    with tarfile.open(TOPOLOGIES / f"{snapshot}.tar.bz2") as tar:
        tar.extractall(into, members=[one for one in tar if NEEDED.match(one.name)], filter="data")
    finder = DeviceFinder(into / root / "sys")
    wanted = {name: Wanted(kind=kind, name=name) for name, kind in names.items()}
    return {name: finder.find([one]).get(one) for name, one in wanted.items()}


def test_two_sockets_with_a_disk_controller_and_infiniband(tmp_path: Path) -> None:
    nic, disk, pci = DeviceKind.NIC, DeviceKind.DISK, DeviceKind.PCI
    names = {"eth1": nic, "ib0": nic, "br0": nic, "/dev/sda3": disk, "0000:83:00.0": pci, "0000:84:00.0": pci}
    found = find("32em64t-2n8c+dax+nvme+mic+dimms", "32em64t-2n8c+1mic", tmp_path, **names)
    assert found == {
        "eth1": (Slot("0000:02:00.3", 0),),
        "ib0": (Slot("0000:82:00.0", 1),),
        "br0": (),
        "/dev/sda3": (Slot("0000:00:1f.2", 0),),
        "0000:83:00.0": (Slot("0000:83:00.0", 1),),
        "0000:84:00.0": None,
    }


def test_four_sockets_whose_firmware_tells_one_nodes_devices_only(tmp_path: Path) -> None:
    names = {"eth0": DeviceKind.NIC, "ib0": DeviceKind.NIC, "/dev/sda": DeviceKind.DISK}
    found = find("40intel64-2g2n4c+pcilocality", "40intel64-2g2n4c+pci", tmp_path, **names)
    assert found == {
        "eth0": (Slot("0000:02:00.0", None),),
        "ib0": (Slot("0000:43:00.0", 2),),
        "/dev/sda": (Slot("0000:01:00.0", None),),
    }


def test_virtual_machine_with_a_long_pci_domain_knows_no_nodes(tmp_path: Path) -> None:
    names = {"ens3": DeviceKind.NIC, "/dev/vda1": DeviceKind.DISK, "": DeviceKind.GPU}
    found = find("2pa-pcidomain32bits", "2pa-pcidomain32bits", tmp_path, **names)
    assert found == {
        "ens3": (Slot("0000:00:03.0", None),),
        "/dev/vda1": (Slot("10000:00:04.0", None),),
        "": (Slot("0000:00:02.0", None),),
    }
