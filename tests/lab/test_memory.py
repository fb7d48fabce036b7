"""Where a container's pages are: memory.numa_stat after a process has touched them."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

MIB = 48
LEFT = 2**20
"""Bytes that may stay behind: a few pages are in use by the kernel at the moment of the move and cannot be moved."""


def nodes_with_pages(lab: Lab, name: str) -> NodeSet:
    """The nodes that hold more of the container's anonymous memory than may stay behind."""
    return NodeSet(node for node, amount in lab.read_anon_bytes(name).items() if amount > LEFT)


def test_pages_of_a_one_node_container_are_on_its_node(lab: Lab) -> None:
    lab.launch_balanced("pages", 2)
    nodes = lab.settle("pages", 2).nodes
    lab.touch_memory("pages", MIB)
    assert nodes_with_pages(lab, "pages") == nodes


def is_mostly_on(lab: Lab, name: str, nodes: NodeSet) -> bool:
    """Whether most of what the container has is on the nodes, however little that is."""
    memory = lab.read_anon_bytes(name)
    return sum(size for node, size in memory.items() if node in nodes) > sum(memory.values()) / 2


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_little_that_a_container_has_before_it_is_bound_follows(lab: Lab, name: str) -> None:
    lab.launch_balanced(name, 2)
    nodes = lab.settle(name, 2).nodes
    lab.until(lambda: is_mostly_on(lab, name, nodes), f"the pages of the container are on node {nodes}")


def test_pages_elsewhere_follow_when_a_running_container_becomes_managed(lab: Lab) -> None:
    lab.launch("taken", limits_cpu="6,7")
    lab.launch("moves", limits_cpu="2")
    cgroup = lab.cgroup("moves")
    lab.host.run(f"echo 6-7 >{cgroup}/cpuset.cpus; echo 3 >{cgroup}/cpuset.mems")
    lab.touch_memory("moves", MIB)
    lab.host.run(f"echo 0-3 >{cgroup}/cpuset.mems")
    assert nodes_with_pages(lab, "moves") == NodeSet([3])
    lab.incus("config", "set", "moves", "limits.cpu.nodes=balanced")
    nodes = lab.settle("moves", 2).nodes
    assert nodes != NodeSet([3])
    lab.until(lambda: nodes_with_pages(lab, "moves") == nodes, f"all pages of the container are on node {nodes}")


def test_memory_is_bound_over_several_nodes_when_the_container_asks(lab: Lab) -> None:
    lab.create("wide", limits_cpu="4", limits_cpu_nodes="balanced")
    lab.incus("config", "set", "wide", "user.numa.memory=bind")
    lab.start("wide")
    lab.until(lambda: len(lab.see("wide").mems) == 2, "memory is bound to two nodes")
    seen = lab.see("wide")
    assert seen.mems == seen.nodes
