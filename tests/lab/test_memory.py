"""Where a container's pages are: memory.numa_stat after a process has touched them."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

MIB = 48


def test_pages_of_a_one_node_container_are_on_its_node(lab: Lab) -> None:
    lab.launch_balanced("pages", 2)
    (node,) = lab.settle("pages", 2).nodes
    lab.touch_memory("pages", MIB)
    pages = lab.read_anon_bytes("pages")
    assert {one for one, amount in pages.items() if amount > 0} <= {node}, pages


def test_pages_elsewhere_follow_when_a_running_container_becomes_managed(lab: Lab) -> None:
    lab.launch("moves", limits_cpu="2")
    lab.host.run(f"echo 3 >{lab.cgroup('moves')}/cpuset.mems")
    lab.touch_memory("moves", MIB)
    lab.host.run(f"echo 0-3 >{lab.cgroup('moves')}/cpuset.mems; echo 0-1 >{lab.cgroup('moves')}/cpuset.cpus")
    assert lab.read_anon_bytes("moves")[3] > 0
    lab.launch("load3", limits_cpu="6,7")
    lab.incus("config", "set", "moves", "limits.cpu.nodes=balanced")
    seen = lab.settle("moves", 2)
    assert seen.nodes != NodeSet([3])
    (node,) = seen.nodes
    lab.until(
        lambda: {one for one, amount in lab.read_anon_bytes("moves").items() if amount > 2**20} == {node},
        f"all pages of the container are on node {node}",
    )


def test_memory_is_bound_over_several_nodes_when_the_container_asks(lab: Lab) -> None:
    lab.create("wide", limits_cpu="4", limits_cpu_nodes="balanced")
    lab.incus("config", "set", "wide", "user.numa.memory=bind")
    lab.start("wide")
    lab.until(lambda: len(lab.see("wide").mems) == 2, "memory is bound to two nodes")
    seen = lab.see("wide")
    assert seen.mems == seen.nodes
