"""The fake kernel of hosts with cgroup v1 does what v1 does, not what v2 does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.host import legacy_cgroup
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.legacy_cgroup import LegacyCgroupFiles
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.options import Hierarchy
from tests.contract import simulated
from tests.contract.simulated import QUICK, Host, until

KEY = InstanceKey("default", "c1")


@pytest.fixture(params=[Hierarchy.V1, Hierarchy.HYBRID], ids=lambda one: one.value)
async def h(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host with one container, which is not balanced."""
    async with simulated.host(replace(QUICK, cgroup=request.param, balances=False)) as host:
        await host.simulator.start(host.simulator.create(KEY.name, {"limits.cpu": "2"}))
        yield host


def files(h: Host) -> CgroupFiles:
    return legacy_cgroup.cgroup_files(h.simulator.cgroup, h.simulator.procfs)


def pages(h: Host) -> dict[int, int]:
    found = files(h).memory_by_node(h.path(KEY, ""))
    assert found is not None
    return found


async def test_it_is_taken_for_what_it_is_and_has_the_container(h: Host) -> None:
    pid = h.simulator.incus.get(KEY).pid
    group = h.path(KEY, "")
    assert isinstance(files(h), LegacyCgroupFiles)
    assert files(h).check() == ()
    assert files(h).find(KEY) == files(h).find_by_pid(KEY, pid) == group
    state = files(h).read(group)
    assert (state.cpus, state.mems) == (h.simulator.machine.online, h.simulator.machine.memory_nodes)


async def test_a_container_that_stopped_has_none(h: Host) -> None:
    await h.simulator.stop(KEY)
    assert files(h).find(KEY) is None
    assert [one.name for one in h.simulator.cgroup.glob("*/lxc.payload.*")] == []


async def test_memory_stays_where_it_is_unless_it_is_to_move(h: Host) -> None:
    before = pages(h)
    target = min(set(h.simulator.machine.node_by_id) - before.keys())
    h.path(KEY, "cpuset.mems").write_text(f"{target}\n")
    h.simulator.settle()
    assert pages(h) == before
    h.path(KEY, "cpuset.mems").write_text("0-3\n")
    h.simulator.settle()
    h.path(KEY, "cpuset.memory_migrate").write_text("1\n")
    h.path(KEY, "cpuset.mems").write_text(f"{target}\n")
    h.simulator.settle()
    assert pages(h).keys() == {target}


async def test_offline_cpu_leaves_the_set_and_does_not_come_back(h: Host) -> None:
    h.path(KEY, "cpuset.cpus").write_text("2-5\n")
    await until(lambda: h.cpus(KEY, "cpuset.effective_cpus") == CpuSet(range(2, 6)))
    h.simulator.offline_cpu(3)
    assert h.cpus(KEY) == CpuSet([2, 4, 5])
    h.simulator.online_cpu(3)
    assert h.cpus(KEY) == h.cpus(KEY, "cpuset.effective_cpus") == CpuSet([2, 4, 5])


async def test_cpu_that_is_offline_cannot_be_had(h: Host) -> None:
    h.simulator.offline_cpu(3)
    before = h.cpus(KEY)
    h.path(KEY, "cpuset.cpus").write_text("3\n")
    h.simulator.settle()
    assert h.cpus(KEY) == before
    assert [text for _, _, text in h.simulator.kernel.refused] == ["3"]
