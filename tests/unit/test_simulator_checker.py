"""The checker refuses states that a real host cannot have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator import checker
from incus_numa.simulator.checker import SeenGroup, SeenInstance, World
from tests import builders

C1 = SeenInstance(key=InstanceKey("default", "c1"), running=True, pid=100, nodes="1")
GROUP = SeenGroup(
    cpus="4-5\n",
    mems="1\n",
    effective_cpus="4-5\n",
    effective_mems="1\n",
    pids=frozenset({100}),
    pages={0: 0, 1: 4096},
)
WORLD = World(
    machine=builders.machine(),
    online=CpuSet(range(16)),
    instances=(C1,),
    groups={"lxc.payload.c1": GROUP},
    processes={100: "0::/lxc.payload.c1/init.scope"},
)
STOPPED = replace(C1, running=False, pid=0)


def test_possible_world_has_no_problems() -> None:
    assert checker.check_world(WORLD) == ()


@pytest.mark.parametrize(
    ("instance", "problem"),
    [
        (replace(C1, pid=0), "c1 is running without a pid"),
        (replace(C1, pid=7), "c1 is running, but its pid 7 does not exist"),
        (STOPPED, "c1 is stopped and has a cgroup"),
        (replace(C1, running=False), "c1 is stopped and has pid 100"),
        (replace(C1, type=InstanceType.VIRTUAL_MACHINE), "c1 is a virtual machine and has a payload cgroup"),
        (replace(C1, nodes="1,9"), "c1: volatile.cpu.nodes names node 9, which does not exist"),
        (replace(C1, nodes="x"), "c1: volatile.cpu.nodes: bad nodeset element 'x' in 'x'"),
    ],
)
def test_impossible_instances_are_named(instance: SeenInstance, problem: str) -> None:
    assert problem in checker.check_world(replace(WORLD, instances=(instance,)))


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (replace(GROUP, cpus="4-99"), "cpuset.cpus names CPU 16-99, which does not exist"),
        (replace(GROUP, cpus="x"), "bad cpuset element 'x' in 'x'"),
        (replace(GROUP, effective_cpus=""), "cpuset.cpus.effective is empty"),
        (replace(GROUP, effective_cpus="0-3"), "cpuset.cpus.effective is 0-3, but cpuset.cpus is 4-5"),
        (replace(GROUP, mems="8"), "cpuset.mems names node 8, which has no memory"),
        (replace(GROUP, effective_mems="0-3"), "cpuset.mems.effective is 0-3, but cpuset.mems is 1"),
        (replace(GROUP, pages={0: 4096}), "memory.numa_stat has pages on node 0, which cpuset.mems does not allow"),
    ],
)
def test_impossible_groups_are_named(group: SeenGroup, problem: str) -> None:
    assert f"lxc.payload.c1: {problem}" in checker.check_world(replace(WORLD, groups={"lxc.payload.c1": group}))


def test_offline_cpu_may_be_configured_but_not_effective() -> None:
    offline = replace(WORLD, online=WORLD.online - CpuSet([5]))
    assert "lxc.payload.c1: cpuset.cpus.effective names CPU 5, which is offline" in checker.check_world(offline)
    followed = replace(GROUP, effective_cpus="4")
    assert checker.check_world(replace(offline, groups={"lxc.payload.c1": followed})) == ()


def test_running_container_without_cgroup_is_impossible() -> None:
    assert "c1 is running without a cgroup" in checker.check_world(replace(WORLD, groups={}))


def test_pid_belongs_in_its_own_cgroup() -> None:
    elsewhere = replace(WORLD, processes={100: "0::/lxc.payload.c2/init.scope"})
    assert "c1: the kernel says that pid 100 is in another cgroup" in checker.check_world(elsewhere)
    missing = replace(WORLD, groups={"lxc.payload.c1": replace(GROUP, pids=frozenset())})
    assert "c1: its pid 100 is not in its cgroup" in checker.check_world(missing)


def test_two_instances_with_one_pid_are_impossible() -> None:
    other = replace(C1, key=InstanceKey("default", "c2"))
    problems = checker.check_world(replace(WORLD, instances=(C1, other)))
    assert "c1 and c2 have the same pid 100" in problems


def test_cgroup_of_no_instance_is_impossible() -> None:
    assert checker.check_world(replace(WORLD, instances=())) == ("lxc.payload.c1: a cgroup of no instance",)


def test_locked_instance_may_be_between_two_states() -> None:
    starting = replace(C1, running=False, locked=True)
    assert checker.check_world(replace(WORLD, instances=(starting,))) == ()
