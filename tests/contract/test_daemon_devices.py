"""Instances go to the nodes of their devices, as far as the kernel knows these."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import Settings
from incus_numa.simulator.cards import Card
from tests.contract.daemon_rig import BUSY, Rig, Wish, rig

GPU = Card(kind="gpu", address="0000:41:00.0", node=1, name="card1")
FREE = NodeSet([2])
"""Where the simulated server puts the first instance, which is kept unless something draws it elsewhere."""
BY_ADDRESS = {"type": "gpu", "pci": GPU.address}


async def _started(r: Rig, name: str, device: Mapping[str, str], **config: str) -> InstanceKey:
    """A container with a device, started and placed."""
    key = r.managed(name, 2, **config)
    r.simulator.devices.give(key, "d", device)
    await r.start(key)
    await r.placed(key)
    return key


async def test_instance_lands_on_the_node_of_its_gpu_until_that_is_full() -> None:
    async with rig() as r:
        r.simulator.devices.plug(GPU)
        keys = [await _started(r, f"c{number}", BY_ADDRESS) for number in range(3)]
        # Node 0 is the nearest one.
        assert [r.nodes(key) for key in keys] == [NodeSet([1]), NodeSet([1]), NodeSet([0])]


async def test_devices_to_be_ignored_draw_nowhere() -> None:
    async with rig() as r:
        r.simulator.devices.plug(GPU)
        key = await _started(r, "c1", BY_ADDRESS, user_numa_devices="ignore")
        assert r.nodes(key) == FREE


@pytest.mark.parametrize(("said", "drawn"), [(0, True), (-1, False)])
async def test_node_0_of_the_server_is_believed_only_if_the_kernel_says_so(said: int, *, drawn: bool) -> None:
    async with rig(run=False) as r:
        r.simulator.devices.plug(Card(kind="gpu", address="0000:41:00.0", node=said, name="card1"))
        r.start_daemon()
        await r.listening()
        others = [await r.present(f"other{number}", 2) for number in range(2)]
        # So that an instance that nothing draws goes elsewhere.
        assert NodeSet([0]) in [r.nodes(key) for key in others]
        key = await _started(r, "c1", BY_ADDRESS)
        assert (r.nodes(key) == NodeSet([0])) == drawn


async def test_virtual_function_counts_as_its_card() -> None:
    async with rig() as r:
        r.simulator.devices.plug(
            Card(kind="nic", address="0000:41:00.0", node=3, name="eth4"),
            Card(kind="nic", address="0000:41:02.0", node=-1, name="eth4v0", parent="0000:41:00.0"),
        )
        function = await _started(r, "c1", {"type": "pci", "address": "0000:41:02.0"})
        network = await _started(r, "c2", {"type": "nic", "nictype": "sriov", "parent": "eth4"})
        assert (r.nodes(function), r.nodes(network)) == (NodeSet([3]), NodeSet([3]))


async def test_disk_draws_an_instance_to_its_node() -> None:
    async with rig() as r:
        r.simulator.devices.plug(Card(kind="nvme", address="0000:c1:00.0", node=3, name="nvme90n1"))
        key = await _started(r, "c1", {"type": "disk", "source": "/dev/nvme90n1", "path": "/data"})
        assert r.nodes(key) == NodeSet([3])


async def test_card_that_is_plugged_in_later_counts() -> None:
    async with rig() as r:
        first = await _started(r, "c1", BY_ADDRESS)
        r.simulator.devices.plug(GPU)
        second = await _started(r, "c2", BY_ADDRESS)
        assert (r.nodes(first), r.nodes(second)) == (FREE, NodeSet([1]))


async def test_device_that_is_added_moves_nobody_who_may_stay() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        r.simulator.devices.plug(GPU)
        key = await r.present("c1", 2)
        before = r.writes(key)
        r.simulator.devices.give(key, "d", BY_ADDRESS)
        await r.passes(2)
        r.simulator.devices.take(key, "d")
        await r.passes(2)
        assert (r.writes(key), r.nodes(key)) == (before, FREE)


async def test_device_that_is_added_moves_whom_its_policy_forbids_to_stay() -> None:
    async with rig() as r:
        r.simulator.devices.plug(GPU)
        key = await r.present("c1", 2, user_numa_policy="restricted")
        assert r.nodes(key) == FREE
        r.simulator.devices.give(key, "d", BY_ADDRESS)
        await r.events_taken()
        await r.placed(key)
        assert r.nodes(key) == NodeSet([1])


async def test_device_that_was_added_counts_at_the_next_start() -> None:
    async with rig() as r:
        r.simulator.devices.plug(GPU)
        key = await r.present("c1", 2)
        r.simulator.devices.give(key, "d", BY_ADDRESS)
        await r.events_taken()
        await r.simulator.stop(key)
        await r.start(key)
        await r.placed(key)
        assert r.nodes(key) == NodeSet([1])


async def test_instances_devices_are_found_by_a_daemon_that_starts_later() -> None:
    async with rig() as r:
        r.simulator.devices.plug(GPU)
        key = await _started(r, "c1", BY_ADDRESS)
        await r.stop_daemon()
        before = r.writes(key)
        r.start_daemon()
        await r.listening()
        await r.events_taken()
        assert (r.writes(key), r.nodes(key)) == (before, NodeSet([1]))
