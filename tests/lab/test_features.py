"""Groups, those who avoid each other, and exclusive CPUs, on the kernel's word."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.host import NEAR
from tests.lab.lab import Lab, Seen

pytestmark = pytest.mark.lab

FREE = NodeSet([3])
"""The only node whose CPUs are not pinned by `fill`."""


@pytest.fixture(scope="module")
def members(lab: Lab) -> list[Seen]:
    """Three members of a group, of which one node holds two, each as it was when it had settled alone on the host."""
    found = []
    for name in ("web1", "web2", "web3"):
        lab.launch_balanced(name, 1, user_numa_group="web")
        found.append(lab.settle(name, 1))
    lab.delete("web1", "web2", "web3")
    return found


@pytest.fixture(scope="module")
def apart(members: list[Seen], lab: Lab) -> dict[str, Seen]:
    """Two that are apart though only one node is free: `fill` has the CPUs of all others, `loose` all of that one."""
    lab.launch("fill", limits_cpu="0-5", limits_cpu_allowance="60%")
    lab.launch("loose", limits_cpu_nodes="balanced", user_numa_group="red")
    found = {"loose": lab.settle("loose", 2)}
    lab.launch_balanced("other", 1, user_numa_avoid="red")
    return found | {"other": lab.settle("other", 1)}


@pytest.fixture(scope="module")
def own(apart: dict[str, Seen], lab: Lab) -> Seen:
    """One with an exclusive CPU, which `loose` has to leave for it."""
    lab.launch_balanced("own", 1, user_numa_exclusive="true")
    return lab.settle("own", 1)


def test_two_members_of_a_group_share_a_node(members: list[Seen]) -> None:
    assert members[0].nodes == members[1].nodes


def test_a_third_member_is_on_the_nearest_node(members: list[Seen], lab: Lab) -> None:
    (home,), (near,) = members[1].nodes, members[2].nodes
    assert home != near
    assert lab.layout.distances[home][near] <= NEAR


def test_those_who_avoid_each_other_are_on_different_nodes(apart: dict[str, Seen]) -> None:
    assert apart["loose"].nodes == FREE
    assert apart["other"].nodes != FREE


def test_no_other_container_has_an_exclusive_cpu(own: Seen, lab: Lab) -> None:
    assert own.nodes == FREE
    lab.until(lambda: not others_on(lab, own.cpus), f"nobody else has CPU {own.cpus}")
    assert lab.see("loose").cpus == lab.layout.cpus[3] - own.cpus


def test_an_exclusive_cpu_stays_so_after_another_start(own: Seen, lab: Lab) -> None:
    lab.launch_balanced("late", 1)
    lab.settle("late", 1)
    lab.wait_quiet()
    assert (lab.see("own").cpus, others_on(lab, own.cpus)) == (own.cpus, {})


def test_an_exclusive_cpu_that_does_not_exist_is_refused_and_nobody_moves(own: Seen, lab: Lab) -> None:
    names = ("own", "loose", "other")
    before, since = {name: lab.see(name) for name in names}, lab.clock()
    lab.incus("config", "set", "other", "user.numa.exclusive=true")
    lab.until(
        lambda: any("instance=other" in line and "no-exclusive-cpus" in line for line in lab.journal(since)),
        "the refusal is in the journal",
    )
    lab.wait_quiet()
    assert {name: lab.see(name) for name in names} == before


def test_an_exclusive_cpu_is_given_back_when_it_is_no_longer_asked_for(own: Seen, lab: Lab) -> None:
    # Else the one that was refused would get what is given back.
    lab.incus("config", "unset", "other", "user.numa.exclusive")
    lab.incus("config", "unset", "own", "user.numa.exclusive")
    lab.settle("loose", 2)
    assert lab.see("own").cpus == own.cpus


def others_on(lab: Lab, cpus: CpuSet) -> dict[str, CpuSet]:
    """The containers but `own` that may run on any of the CPUs, by what cpuset.cpus says."""
    text = lab.host.run("cd /sys/fs/cgroup; grep -H . lxc.payload.*/cpuset.cpus")
    found = {}
    for line in text.splitlines():
        path, _, written = line.partition(":")
        name = path.partition("/")[0].removeprefix("lxc.payload.")
        if name != "own" and CpuSet.parse(written) & cpus:
            found[name] = CpuSet.parse(written)
    return found
