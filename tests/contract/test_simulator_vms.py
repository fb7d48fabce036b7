"""Virtual machines of the simulated server: what it chooses for them at start, and what it does to them live."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.options import VmEvidence
from incus_numa.simulator.refusals import ApiError
from incus_numa.simulator.virtual import VmThreads
from tests.contract.simulated import QUICK, Host, host

STILL = replace(QUICK, tick_s=None)
ALL = CpuSet(range(16))


async def started(h: Host, name: str = "vm1", **config: str) -> InstanceKey:
    """A running virtual machine; in the names of its keys a `_` stands for a dot."""
    keys = {key.replace("_", "."): value for key, value in config.items()}
    key = h.simulator.create(name, keys, kind=InstanceType.VIRTUAL_MACHINE)
    await h.simulator.start(key)
    return key


def vcpus(h: Host, key: InstanceKey) -> list[str]:
    return [str(cpus) for cpus in h.simulator.vm_threads(key).vcpus.values()]


def bound(h: Host, key: InstanceKey) -> NodeSet:
    return h.simulator.kernel.machines[key].bound


def ticks(h: Host, key: InstanceKey) -> list[int]:
    """Guest time of every thread that has any."""
    folder = h.simulator.kernel.machines[key].folder / "task"
    found = [int(path.read_text().rpartition(")")[2].split()[40]) for path in sorted(folder.glob("*/stat"))]
    return [one for one in found if one]


async def test_plain_count_has_the_cpus_of_its_nodes_and_memory_bound_to_them() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="5", limits_cpu_nodes="1-2")
        assert vcpus(h, key) == ["4-11"] * 5
        assert set(h.simulator.vm_threads(key).others.values()) == {ALL}
        assert bound(h, key) == NodeSet.parse("1-2")


async def test_balanced_one_follows_its_record() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="2", limits_cpu_nodes="balanced")
        node = int(h.simulator.incus.get(key).config["volatile.cpu.nodes"])
        assert vcpus(h, key) == [str(h.simulator.machine.node_by_id[node].cpus)] * 2
        assert bound(h, key) == NodeSet([node])


@pytest.mark.parametrize("limit", ["", "1", "sockets=1,cores=2,threads=2"])
async def test_single_vcpu_and_explicit_topology_float_with_bound_memory(limit: str) -> None:
    async with host() as h:
        key = await started(h, limits_cpu=limit, limits_cpu_nodes="balanced")
        assert set(vcpus(h, key)) == {"0-15"}
        assert len(vcpus(h, key)) == (4 if "cores" in limit else 1)
        assert len(bound(h, key)) == 1


async def test_list_is_pinned_one_to_one_with_memory_on_its_nodes() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="3-5", limits_cpu_nodes="balanced")
        assert vcpus(h, key) == ["3", "4", "5"]
        assert bound(h, key) == NodeSet.parse("0-1")


async def test_one_without_nodes_floats_and_its_memory_is_anywhere() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="4")
        assert (vcpus(h, key), bound(h, key)) == (["0-15"] * 4, NodeSet())


@pytest.mark.parametrize("evidence", list(VmEvidence))
async def test_real_reader_sees_what_is_there(evidence: VmEvidence) -> None:
    async with host(replace(STILL, vm_evidence=evidence)) as h:
        key = await started(h, limits_cpu="3", limits_cpu_nodes="2")
        root = h.simulator.sysfs.parent
        vms = VirtualMachines(h.simulator.procfs, h.simulator.sysfs, root / "vms")
        process = vms.find(h.simulator.incus.get(key).pid)
        assert process is not None
        state = vms.read(process, 3)
        assert VmThreads(vcpus=state.vcpus, others=state.others) == h.simulator.vm_threads(key)
        words = {VmEvidence.GUEST_TIME: "guest time", VmEvidence.NAMES: "thread names", VmEvidence.NONE: "affinity"}
        assert state.evidence == words[evidence]
        memory = vms.memory(process)
        assert memory.bound == NodeSet([2])
        assert memory.by_node == {2: h.simulator.incus.get(key).memory_bytes}


@pytest.mark.parametrize(("evidence", "grown"), [(VmEvidence.GUEST_TIME, [152, 152]), (VmEvidence.NONE, [])])
async def test_guest_time_grows_with_work(evidence: VmEvidence, grown: list[int]) -> None:
    async with host(replace(STILL, vm_evidence=evidence)) as h:
        key = await started(h, limits_cpu="2")
        before = ticks(h, key)
        h.simulator.set_work(key, 1.0)
        h.simulator.advance(3.0)
        assert (before, ticks(h, key)) == ([2, 2] if grown else [], grown)


async def test_vcpus_work_where_their_threads_may_run() -> None:
    async with host(STILL) as h:
        key = await started(h, limits_cpu="2", limits_cpu_nodes="3")
        h.simulator.set_work(key, 2.0)
        h.simulator.advance(1.0)
        times = h.simulator.kernel.work.cpu_times
        assert {cpu for cpu, time in times.items() if time.busy_s} == set(h.simulator.machine.node_by_id[3].cpus)


async def test_raised_limit_plugs_vcpus_in_and_gives_all_of_them_the_nodes_of_the_record() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="2", limits_cpu_nodes="balanced")
        h.simulator.set_config(key, {"volatile.cpu.nodes": "3"})
        before = h.simulator.vm_threads(key)
        h.simulator.set_config(key, {"limits.cpu": "3"})
        after = h.simulator.vm_threads(key)
        assert vcpus(h, key) == ["12-15"] * 3
        assert set(before.vcpus) < set(after.vcpus)
        assert after.others == before.others
        h.simulator.set_config(key, {"limits.cpu": "1"})
        assert set(h.simulator.vm_threads(key).vcpus) == {min(before.vcpus)}


async def test_plugged_vcpus_run_where_their_maker_does_when_no_nodes_are_chosen() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="1")
        vms = VirtualMachines(h.simulator.procfs, h.simulator.sysfs, h.simulator.sysfs.parent / "vms")
        process = vms.find(h.simulator.incus.get(key).pid)
        assert process is not None
        vms.pin(process, 1, CpuSet.parse("4-5"), CpuSet.parse("4-7"))
        h.simulator.set_config(key, {"limits.cpu": "2"})
        assert vcpus(h, key) == ["4-5", "4-7"]


async def test_thread_ids_are_given_once() -> None:
    async with host() as h:
        keys = [await started(h, f"vm{number}", limits_cpu="2") for number in range(2)]
        h.simulator.set_config(keys[0], {"limits.cpu": "6"})
        keys.append(await started(h, "vm3", limits_cpu="2"))
        ids = [tid for key in keys for part in (h.simulator.vm_threads(key),) for tid in (*part.vcpus, *part.others)]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("before", "changes", "words"),
    [
        ({"limits.cpu": "2"}, {"limits.cpu": "0-1"}, "Cannot change CPU pinning when VM is running"),
        ({"limits.cpu": "0-1"}, {"limits.cpu": "2"}, "Cannot change CPU pinning when VM is running"),
        ({"limits.cpu": "2"}, {"limits.cpu": "17"}, "Cannot allocate more CPUs than available"),
        ({}, {"limits.cpu.nodes": "1"}, '"limits.cpu.nodes" cannot be updated when VM is running'),
    ],
)
async def test_what_a_running_one_cannot_get_is_refused(
    before: dict[str, str], changes: dict[str, str], words: str
) -> None:
    async with host() as h:
        key = h.simulator.create("vm1", before, kind=InstanceType.VIRTUAL_MACHINE)
        await h.simulator.start(key)
        config = dict(h.simulator.incus.get(key).config)
        with pytest.raises(ApiError, match=words):
            h.simulator.set_config(key, changes)
        assert h.simulator.incus.get(key).config == config
        await h.simulator.stop(key)
        h.simulator.set_config(key, changes)


async def test_profile_plugs_vcpus_in() -> None:
    async with host(replace(QUICK, profiles={"big": {"limits.cpu": "2"}})) as h:
        key = h.simulator.create("vm1", kind=InstanceType.VIRTUAL_MACHINE, profiles=("default", "big"))
        await h.simulator.start(key)
        h.simulator.set_profile("big", {"limits.cpu": "4"})
        assert len(vcpus(h, key)) == 4


async def test_thread_whose_cpus_all_went_offline_may_run_anywhere() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="4-5")
        h.simulator.offline_cpu(4)
        assert vcpus(h, key) == ["0-15", "5"]
        assert h.simulator.problems() == ()


async def test_checker_refuses_threads_that_no_kernel_would_let_run_so() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="2")
        assert h.simulator.problems() == ()
        tid = min(h.simulator.vm_threads(key).vcpus)
        status = h.simulator.kernel.machines[key].folder / "task" / str(tid) / "status"
        status.write_text(status.read_text().replace("Cpus_allowed_list:\t0-15", "Cpus_allowed_list:\t3-16"))
        assert h.simulator.problems() == (f"vm1: thread {tid} may run on CPU 16, which does not exist",)
        h.simulator.offline_cpu(3)
        status.write_text(status.read_text().replace("Cpus_allowed_list:\t3-16", "Cpus_allowed_list:\t3"))
        assert h.simulator.problems() == (f"vm1: thread {tid} may run on CPUs 3, none of which is online",)
        h.simulator.online_cpu(3)


async def test_process_goes_away_as_a_whole() -> None:
    async with host() as h:
        key = await started(h, limits_cpu="2")
        folder = h.simulator.kernel.machines[key].folder
        await h.simulator.stop(key)
        assert not [path for path in folder.parent.iterdir() if folder.name in path.name]
