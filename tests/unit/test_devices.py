"""What an instance's devices are on the host, and which nodes they draw it to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.devices import Device, DeviceKind, Found, Slot, Wanted
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server import demand, devices
from incus_numa.server.protocol import ServerInstance
from incus_numa.settings import PlacementSettings
from tests import builders

MACHINE = builders.machine()
SETTINGS = PlacementSettings()
GPU = {"type": "gpu", "pci": "0000:41:00.0"}
GPU_WANTED = Wanted(kind=DeviceKind.PCI, name="0000:41:00.0")


def pci(name: str) -> Wanted:
    return Wanted(kind=DeviceKind.PCI, name=name)


def nic(name: str) -> Wanted:
    return Wanted(kind=DeviceKind.NIC, name=name)


def gpu(name: str = "", vendor: str = "", product: str = "") -> Wanted:
    return Wanted(kind=DeviceKind.GPU, name=name, vendor=vendor, product=product)


def disk(name: str) -> Wanted:
    return Wanted(kind=DeviceKind.DISK, name=name)


def server_instance(device: dict[str, str], **config: str) -> ServerInstance:
    """One with a device `d`; keys of the configuration are written with `__` for the dots."""
    keys = {key.replace("__", "."): value for key, value in config.items()}
    return ServerInstance(
        key=InstanceKey("default", "c1"),
        type=InstanceType.CONTAINER,
        running=True,
        config={"limits.cpu.nodes": "balanced"} | keys,
        devices={"d": device},
    )


def on(node: int | None, address: str = "0000:41:00.0") -> Found:
    return {GPU_WANTED: (Slot(address, node),)}


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        (GPU, GPU_WANTED),
        ({"type": "gpu", "pci": "41:00.0"}, GPU_WANTED),
        ({"type": "gpu", "gputype": "mig", "pci": "0000:41:00.0"}, GPU_WANTED),
        ({"type": "gpu", "id": "1"}, gpu("1")),
        ({"type": "gpu", "vendorid": "10DE", "productid": "0x2330"}, gpu("", "10de", "2330")),
        ({"type": "gpu"}, gpu()),
        ({"type": "pci", "address": "0000:C1:00.1"}, pci("0000:c1:00.1")),
        ({"type": "nic", "nictype": "physical", "parent": "eth4"}, nic("eth4")),
        ({"type": "nic", "nictype": "sriov", "parent": "eth4"}, nic("eth4")),
        ({"type": "nic", "nictype": "macvlan", "parent": "bond0"}, nic("bond0")),
        ({"type": "nic", "nictype": "ipvlan", "parent": "eth4"}, nic("eth4")),
        ({"type": "infiniband", "nictype": "physical", "parent": "ib0"}, nic("ib0")),
        ({"type": "nic", "nictype": "bridged", "parent": "br0"}, None),
        ({"type": "nic", "nictype": "routed", "parent": "eth4"}, None),
        ({"type": "nic", "network": "incusbr0"}, None),
        ({"type": "disk", "source": "/dev/disk/by-id/x", "path": "/data"}, disk("/dev/disk/by-id/x")),
        ({"type": "disk", "source": "/srv/data", "path": "/data"}, None),
        ({"type": "disk", "source": "/dev/x", "pool": "fast", "path": "/data"}, None),
        ({"type": "disk", "pool": "default", "path": "/"}, None),
        ({"type": "disk", "source": "ceph:pool/volume", "path": "/data"}, None),
        ({"type": "unix-block", "path": "/dev/nvme0n1"}, disk("/dev/nvme0n1")),
        ({"type": "unix-char", "path": "/dev/dri/card0"}, None),
        ({"type": "usb", "vendorid": "10de"}, None),
        ({"type": "none"}, None),
        ({}, None),
    ],
)
def test_name_on_the_host(device: dict[str, str], wanted: Wanted | None) -> None:
    assert devices.list_wanted(server_instance(device)) == ({"d": wanted} if wanted else {})


@pytest.mark.parametrize(
    ("device", "noted", "wanted"),
    [
        ({"type": "gpu", "vendorid": "10de"}, {"last_state__pci__slot__name": "0000:c1:00.0"}, pci("0000:c1:00.0")),
        ({"type": "gpu", "gputype": "sriov"}, {"last_state__pci__parent": "0000:c1:00.0"}, pci("0000:c1:00.0")),
        ({"type": "nic", "nictype": "physical", "parent": "eth4"}, {"host_name": "eth4.7"}, nic("eth4")),
        ({"type": "nic", "network": "vfs"}, {"last_state__vf__parent": "eth5", "host_name": "eth5v3"}, nic("eth5")),
        ({"type": "nic", "network": "uplink"}, {"host_name": "eth6"}, nic("eth6")),
        ({"type": "nic", "network": "incusbr0"}, {"host_name": "veth12345678"}, None),
        ({"type": "nic", "network": "incusbr0"}, {"host_name": "tap12345678"}, None),
        ({"type": "disk", "source": "/srv"}, {"last_state__pci__slot__name": "0000:c1:00.0"}, None),
    ],
)
def test_what_the_server_notes_beats_what_was_asked_for(
    device: dict[str, str], noted: dict[str, str], wanted: Wanted | None
) -> None:
    config = {f"volatile__d__{key}": value for key, value in noted.items()}
    assert devices.list_wanted(server_instance(device, **config)) == ({"d": wanted} if wanted else {})


def test_notes_about_another_device_say_nothing() -> None:
    raw = server_instance(GPU, volatile__d2__last_state__pci__slot__name="0000:c1:00.0")
    assert devices.list_wanted(raw) == {"d": GPU_WANTED}


def locate(found: Found, **settings: str) -> Device:
    (one,) = devices.locate(server_instance(GPU), found, MACHINE, PlacementSettings(**settings))  # type: ignore[arg-type]
    return one


def test_device_draws_to_its_node() -> None:
    assert locate(on(2)) == Device(name="d", what="PCI device 0000:41:00.0", nodes=NodeSet([2]))


def test_node_0_is_a_node() -> None:
    assert locate(on(0)).nodes == NodeSet([0])


def test_unknown_node_draws_nowhere() -> None:
    one = locate(on(None))
    assert (one.nodes, one.note) == (NodeSet(), "the kernel does not know its node")


def test_device_that_is_not_there_draws_nowhere() -> None:
    one = locate({})
    assert (one.nodes, one.note) == (NodeSet(), "this host shows no such device")


def test_what_has_no_hardware_is_no_device() -> None:
    raw = server_instance({"type": "nic", "nictype": "macvlan", "parent": "br0"})
    assert devices.locate(raw, {nic("br0"): ()}, MACHINE, SETTINGS) == ()


def test_all_nodes_of_a_device_made_of_several() -> None:
    raw = server_instance({"type": "nic", "nictype": "macvlan", "parent": "bond0"})
    slots = (Slot("0000:01:00.0", 1), Slot("0000:02:00.0", None), Slot("0000:03:00.0", 3))
    what = "network interface bond0 (0000:01:00.0, 0000:02:00.0, 0000:03:00.0)"
    assert devices.locate(raw, {nic("bond0"): slots}, MACHINE, SETTINGS) == (
        Device(name="d", what=what, nodes=NodeSet([1, 3]), note="the kernel does not know its node"),
    )


@pytest.mark.parametrize(("isolated", "reserved"), [("", "8-11"), ("8-11", ""), ("8-9", "10-11")])
def test_node_without_usable_cpus_stands_for_the_nearest_one(isolated: str, reserved: str) -> None:
    machine = builders.machine(isolated=isolated)
    (one,) = devices.locate(server_instance(GPU), on(2), machine, PlacementSettings(reserved_cpus=reserved))
    assert (one.nodes, one.note) == (NodeSet([3]), "it is on node 2, which has no usable CPUs")


def test_node_that_is_not_online_draws_nowhere() -> None:
    one = locate(on(7))
    assert (one.nodes, one.note) == (NodeSet(), "it is on node 7, which is not online")


def test_node_without_usable_cpus_at_unknown_distances_draws_nowhere() -> None:
    nodes = tuple(replace(node, distances={}, cpus=CpuSet() if node.id == 2 else node.cpus) for node in MACHINE.nodes)
    (one,) = devices.locate(server_instance(GPU), on(2), replace(MACHINE, nodes=nodes), SETTINGS)
    assert (one.nodes, one.note) == (
        NodeSet(),
        "it is on node 2, which has no usable CPUs and is at unknown distances",
    )


def test_no_usable_cpus_anywhere_draws_nowhere() -> None:
    assert locate(on(2), reserved_cpus="0-15").nodes == NodeSet()


def test_devices_draw_an_instance_unless_its_key_says_no() -> None:
    found = on(2)
    drawn = demand.instance_from(server_instance(GPU), MACHINE, SETTINGS, found)
    auto = demand.instance_from(server_instance(GPU, user__numa__devices="auto"), MACHINE, SETTINGS, found)
    ignored = demand.instance_from(server_instance(GPU, user__numa__devices="ignore"), MACHINE, SETTINGS, found)
    assert drawn == auto
    assert (drawn.device_nodes, ignored.device_nodes) == (NodeSet([2]), NodeSet())
    assert ignored.devices == (
        Device(name="d", what="PCI device 0000:41:00.0", nodes=NodeSet(), note="ignored: user.numa.devices=ignore"),
    )


def test_bad_value_of_the_key_is_a_problem() -> None:
    one = demand.instance_from(server_instance(GPU, user__numa__devices="never"), MACHINE, SETTINGS, on(2))
    assert one.problem == "user.numa.devices: bad value 'never': expected auto or ignore"


WORDS = st.sampled_from(
    ["", "gpu", "nic", "pci", "disk", "physical", "eth0", "/dev/", "/dev/../etc", "..", "0000:41:00.0", "41:00.0", "x"]
) | st.text(max_size=8)
KEYS = st.sampled_from(["type", "pci", "id", "parent", "nictype", "network", "source", "path", "vendorid", "address"])


@given(device=st.dictionaries(KEYS, WORDS), noted=WORDS, node=st.none() | st.integers(0, 9))
def test_no_device_makes_reading_an_instance_fail(device: dict[str, str], noted: str, node: int | None) -> None:
    raw = server_instance(device, volatile__d__host_name=noted)
    found = {wanted: (Slot("", node),) for wanted in devices.list_wanted(raw).values()}
    one = demand.instance_from(raw, MACHINE, SETTINGS, found)
    assert one.problem is None
    assert one.device_nodes <= NodeSet(range(4))
