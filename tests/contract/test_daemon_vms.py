"""The daemon places virtual machines: threads on their CPUs, the record once, memory where the settings say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.server.protocol import Product
from incus_numa.settings import DaemonSettings, PlacementSettings, RebalanceSettings, Settings
from incus_numa.simulator.options import VmEvidence
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import BALANCED, EVENTS_ONLY, QUICK, Rig, Wish, eventually, rig

MACHINE = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)
EVERY_CPU = CpuSet(range(16))
NEVER = RebalanceSettings(enabled=False)
OFTEN = DaemonSettings(resync_s=0.1, verify_s=(0.1,))


@asynccontextmanager
async def host(
    evidence: VmEvidence = VmEvidence.GUEST_TIME,
    *,
    machine: Machine = MACHINE,
    daemon: DaemonSettings = EVENTS_ONLY,
    product: Product = Product.INCUS,
    rebalance: RebalanceSettings = NEVER,
    **placement: str,
) -> AsyncIterator[Rig]:
    settings = Settings(daemon=daemon, placement=PlacementSettings(**placement), rebalance=rebalance)  # type: ignore[arg-type]
    options = replace(QUICK, vm_evidence=evidence, product=product)
    async with rig(options, machine, Wish(settings=settings)) as r:
        yield r


async def vm(r: Rig, name: str, cpu: str | None = "2", **config: str) -> InstanceKey:
    """A virtual machine that was started; its threads are where they belong."""
    keys = {name.replace("_", "."): value for name, value in config.items()}
    limits = {} if cpu is None else {"limits.cpu": cpu}
    opt_in = {"limits.cpu.nodes": BALANCED} if r.simulator.options.product is Product.INCUS else {}
    key = r.simulator.create(
        name, {"user.limits.cpu.nodes": BALANCED, **opt_in, **limits, **keys}, kind=InstanceType.VIRTUAL_MACHINE
    )
    await r.simulator.start(key)
    # The other threads are set first: until its vCPUs are, too, they have all CPUs of the node that the server chose.
    await eventually(lambda: is_placed(r, key) and len(settled(r, key) or ()) == len(r.simulator.vm_threads(key).vcpus))
    return key


def vcpus(r: Rig, key: InstanceKey) -> CpuSet:
    """CPUs that its vCPU threads may run on; fails unless it is the same for all."""
    found = settled(r, key)
    assert found is not None
    return found


def settled(r: Rig, key: InstanceKey) -> CpuSet | None:
    """The same; None while the threads are set, one after the other."""
    masks = set(r.simulator.vm_threads(key).vcpus.values())
    return masks.pop() if len(masks) == 1 else None


def nodes(r: Rig, key: InstanceKey) -> NodeSet:
    return r.simulator.machine.nodes_of(vcpus(r, key))


def is_placed(r: Rig, key: InstanceKey) -> bool:
    """Whether all vCPUs have one set of CPUs, the other threads those of its nodes, and the record says so."""
    threads, machine = r.simulator.vm_threads(key), r.simulator.machine
    masks, others = set(threads.vcpus.values()), set(threads.others.values())
    record = NodeSet.parse(r.simulator.incus.get(key).config.get("volatile.cpu.nodes", ""))
    if len(masks) != 1 or len(others) != 1:
        return False
    (cpus,), (around,) = masks, others
    home = machine.nodes_of(cpus)
    is_recorded = record == home or r.simulator.options.product is Product.LXD
    is_narrow = cpus != EVERY_CPU
    return is_narrow and is_recorded and around == CpuSet(cpu for node in home for cpu in machine.node_by_id[node].cpus)


def patches(r: Rig, key: InstanceKey) -> int:
    return r.calls("PATCH instance", key)


@pytest.mark.parametrize("evidence", [VmEvidence.GUEST_TIME, VmEvidence.NAMES])
@pytest.mark.parametrize(
    ("cpu", "count"), [(None, 1), ("1", 1), ("2", 2), ("sockets=1,cores=2,threads=2", 4), ("6", 6)]
)
async def test_threads_are_where_they_belong_after_a_start(evidence: VmEvidence, cpu: str | None, count: int) -> None:
    async with host(evidence) as r:
        key = await vm(r, "v", cpu)
        assert len(r.simulator.vm_threads(key).vcpus) == count
        assert len(vcpus(r, key)) == count
        assert len(nodes(r, key)) == (1 if count <= 4 else 2)


async def test_explicit_pins_stay_one_cpu_for_each_vcpu() -> None:
    async with host() as r:
        key = r.simulator.create(
            "v", {"limits.cpu": "4,6", "limits.cpu.nodes": BALANCED}, kind=InstanceType.VIRTUAL_MACHINE
        )
        await r.simulator.start(key)
        around = MACHINE.node_by_id[1].cpus
        await eventually(lambda: set(r.simulator.vm_threads(key).others.values()) == {around})
        assert sorted(r.simulator.vm_threads(key).vcpus.values(), key=str) == [CpuSet([4]), CpuSet([6])]


async def test_those_whose_vcpus_are_not_told_from_others_are_on_their_nodes_all_the_same() -> None:
    async with host(VmEvidence.NONE) as r:
        key = r.simulator.create("v", {"limits.cpu.nodes": BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
        await r.simulator.start(key)
        homes = [node.cpus for node in MACHINE.nodes]

        def masks() -> set[CpuSet]:
            threads = r.simulator.vm_threads(key)
            return {*threads.vcpus.values(), *threads.others.values()}

        await eventually(lambda: len(masks()) == 1 and masks() <= set(homes))


async def test_virtual_machines_and_containers_share_the_nodes_evenly() -> None:
    async with host() as r:
        keys = [await vm(r, f"v{n}", "4") for n in range(2)]
        containers = [await r.present(f"c{n}", 4) for n in range(2)]
        taken = [nodes(r, key) for key in keys] + [r.nodes(key) for key in containers]
        assert sorted(taken, key=str) == [NodeSet([node]) for node in range(4)]


async def crowded(r: Rig) -> list[InstanceKey]:
    """Three virtual machines that belong on node 3, as all others are full; the server chose a node for each."""
    for node in range(3):
        cpus = MACHINE.node_by_id[node].cpus
        await r.start(r.simulator.create(f"full{node}", {"limits.cpu": str(cpus)}))
    keys, ones = [], [CpuSet([cpu]) for cpu in MACHINE.node_by_id[3].cpus]
    for n in range(3):
        key = r.simulator.create(f"v{n}", {"limits.cpu.nodes": BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
        await r.simulator.start(key)
        await eventually(lambda key=key: settled(r, key) in ones)  # type: ignore[misc]
        keys.append(key)
    return keys


async def test_the_record_is_written_once_for_a_placement() -> None:
    async with host(daemon=OFTEN, vm_memory="migrate") as r:
        keys = await crowded(r)
        await eventually(lambda: all(is_placed(r, key) for key in keys))
        await r.passes(3)
        assert sorted(patches(r, key) for key in keys) in ([0, 1, 1], [1, 1, 1])
        written = [key for key in keys if patches(r, key)]
        for key in written:
            # Somebody else writes another value: it is not written again, as that would restart the guest once more.
            r.simulator.set_config(key, {"volatile.cpu.nodes": "0-3"})
        await r.passes(3)
        assert [patches(r, key) for key in written] == [1] * len(written)


async def test_the_record_is_never_written_where_the_settings_say_so() -> None:
    async with host(daemon=OFTEN, vm_memory="migrate", vm_record="never") as r:
        keys = await crowded(r)
        await r.passes(2)
        assert [patches(r, key) for key in keys] == [0] * 3
        assert not any("volatile.vm.needs_reset" in r.simulator.incus.get(key).config for key in keys)
        assert {r.simulator.incus.get(key).config["volatile.cpu.nodes"] for key in keys} != {"3"}


async def test_a_quiet_virtual_machine_is_not_written_to() -> None:
    async with host(daemon=OFTEN) as r:
        key = await vm(r, "v", None)
        await r.passes(2)
        tasks = sorted((r.simulator.procfs / str(r.simulator.incus.get(key).pid) / "task").glob("*/status"))
        before, asked, said = [one.stat().st_mtime_ns for one in tasks], patches(r, key), len(r.log.lines(20))
        await r.passes(3)
        assert [one.stat().st_mtime_ns for one in tasks] == before
        assert (patches(r, key), len(r.log.lines(20))) == (asked, said)


async def test_a_restarted_daemon_leaves_it_where_it_is() -> None:
    async with host() as r:
        first = await vm(r, "v", "4")
        second = await vm(r, "w", "4")
        before = {key: vcpus(r, key) for key in (first, second)}
        asked = {key: patches(r, key) for key in before}
        await r.stop_daemon()
        await r.simulator.stop(second)
        r.start_daemon()
        await r.listening()
        await r.events_taken()
        await asyncio.sleep(0.2)
        assert vcpus(r, first) == before[first]
        assert patches(r, first) == asked[first]


async def test_it_is_placed_anew_after_a_restart_of_its_own() -> None:
    async with host() as r:
        key = await vm(r, "v")
        pid = r.simulator.incus.get(key).pid
        await r.simulator.restart(key)
        assert r.simulator.incus.get(key).pid != pid
        await eventually(lambda: is_placed(r, key))


async def test_one_that_started_before_the_daemon_is_placed_too() -> None:
    async with host() as r:
        await r.stop_daemon()
        key = r.simulator.create("v", {"limits.cpu.nodes": BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
        await r.simulator.start(key)
        r.start_daemon()
        await eventually(lambda: is_placed(r, key))


async def test_cpu_hotplug_is_followed() -> None:
    async with host() as r:
        key = await vm(r, "v", "2")
        r.simulator.set_config(key, {"limits.cpu": "4"})
        await eventually(lambda: is_placed(r, key) and len(settled(r, key) or ()) == 4)
        assert len(r.simulator.vm_threads(key).vcpus) == 4
        r.simulator.set_config(key, {"limits.cpu": "1"})
        await eventually(lambda: is_placed(r, key) and len(settled(r, key) or ()) == 1)


async def test_threads_that_somebody_put_elsewhere_are_put_back() -> None:
    async with host() as r:
        key = await vm(r, "v", "2")
        # The pass that set them looks once more whether they are there, and would put them back at once.
        await r.events_taken()
        home, pid = vcpus(r, key), r.simulator.incus.get(key).pid
        for tid in r.simulator.vm_threads(key).vcpus:
            status = r.simulator.procfs / str(pid) / "task" / str(tid) / "status"
            status.write_text(
                status.read_text().replace(f"Cpus_allowed_list:\t{home}", f"Cpus_allowed_list:\t{EVERY_CPU}")
            )
        assert vcpus(r, key) == EVERY_CPU
        await r.present("c", 1)
        await eventually(lambda: is_placed(r, key) and settled(r, key) == home)


async def test_one_that_is_managed_no_more_floats_again() -> None:
    async with host() as r:
        key = r.simulator.create("v", {"user.limits.cpu.nodes": BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
        await r.simulator.start(key)
        await eventually(lambda: is_placed(r, key))
        r.simulator.set_config(key, {"user.limits.cpu.nodes": ""})
        await eventually(
            lambda: (
                {*r.simulator.vm_threads(key).vcpus.values(), *r.simulator.vm_threads(key).others.values()}
                == {EVERY_CPU}
            )
        )


async def test_unmanaged_ones_are_never_touched_and_count_as_load() -> None:
    async with host() as r:
        key = r.simulator.create("v", {"limits.cpu": "0-3"}, kind=InstanceType.VIRTUAL_MACHINE)
        await r.simulator.start(key)
        before = r.simulator.vm_threads(key)
        await r.events_taken()
        await r.present("c", 4)
        assert r.nodes(InstanceKey("default", "c")) != NodeSet([0])
        assert (r.simulator.vm_threads(key), patches(r, key)) == (before, 0)


async def test_on_lxd_only_threads_are_set() -> None:
    async with host(product=Product.LXD) as r:
        key = await vm(r, "v", "2")
        assert patches(r, key) == 0
        assert len(vcpus(r, key)) == 2


async def test_memory_stays_where_the_server_bound_it_and_pulls_the_cpus_there() -> None:
    async with host() as r:
        key = await vm(r, "v", "2", limits_memory="4GiB")
        machine = r.simulator.kernel.machines[key]
        assert nodes(r, key) == machine.bound
        assert set(machine.pages) >= set(machine.bound)


@pytest.mark.parametrize("policy", ["single-numa-node", "restricted"])
async def test_one_whose_memory_is_bound_to_a_full_node_is_placed_where_it_fits(policy: str) -> None:
    two = builders.machine(nodes=2, cpus_per_node=8, memory_bytes=32 * GIB, nodes_per_socket=1)
    async with host(machine=two) as r:
        # The server counts instances it balances: this one draws the next, and a list it does not count fills a node.
        small = await vm(r, "small", "1", limits_memory="1GiB")
        big = r.simulator.create(
            "big", {"limits.cpu": "2", "user.limits.cpu.nodes": BALANCED, "limits.memory": "20GiB"}
        )
        await r.start(big)
        await eventually(lambda: len(r.nodes(big)) == 1 and r.seat(big).mems == r.nodes(big))
        assert r.nodes(big) != nodes(r, small)
        key = await vm(r, "guest", "2", limits_memory="16GiB", user_numa_policy=policy)
        assert r.simulator.kernel.machines[key].bound == r.nodes(big)
        assert nodes(r, key) == nodes(r, small)
        assert not r.log.saying("refused")


async def test_memory_follows_where_the_settings_say_so() -> None:
    async with host(vm_memory="migrate", daemon=OFTEN) as r:
        # Containers that the server does not count fill the node that it chooses.
        for n in range(4):
            await vm(r, f"v{n}", "3", limits_memory="4GiB")
        for n in range(4):
            key = InstanceKey("default", f"v{n}")
            await eventually(
                lambda key=key: (
                    {node for node, size in r.simulator.kernel.machines[key].pages.items() if size}  # type: ignore[misc]
                    <= set(nodes(r, key))
                )
            )
        assert sorted((nodes(r, InstanceKey("default", f"v{n}")) for n in range(4)), key=str) == [
            NodeSet([node]) for node in range(4)
        ]


@pytest.mark.parametrize("vm_memory", ["keep", "migrate"])
async def test_busy_ones_on_one_node_are_spread_by_measured_load(vm_memory: str) -> None:
    swift = RebalanceSettings(interval_s=0.15, time_constant_s=0.1, hold_s=0.1, cooldown_s=3600.0)
    async with host(rebalance=swift, vm_memory=vm_memory) as r:
        mover = await vm(r, "mover", "4")
        fixed = [await r.present(f"c{n}", 4, user_numa_movable="false") for n in range(4)]
        mate = next(key for key in fixed if r.nodes(key) == nodes(r, mover))
        before, home = nodes(r, mover), vcpus(r, mover)
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await eventually(lambda: is_placed(r, mover) and not (settled(r, mover) or EVERY_CPU) & home)
        after = {node for node, size in r.simulator.kernel.machines[mover].pages.items() if size}
        if vm_memory == "keep":
            assert after == set(before)
