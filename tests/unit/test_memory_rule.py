"""When memory is bound, and where to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import MemoryMode
from incus_numa.model.machine import Node
from incus_numa.policy.memory import mems_for
from tests.builders import GIB, machine

LOCAL, BIND, NONE = MemoryMode.LOCAL, MemoryMode.BIND, MemoryMode.NONE


@pytest.mark.parametrize(
    ("mode", "nodes", "mems"),
    [
        (LOCAL, "1", "1"),
        (LOCAL, "0-1", None),
        (BIND, "1", "1"),
        (BIND, "0-1", "0-1"),
        (NONE, "1", None),
        (NONE, "0-1", None),
    ],
)
def test_memory_is_bound_by_the_mode(mode: MemoryMode, nodes: str, mems: str | None) -> None:
    expected = None if mems is None else NodeSet.parse(mems)
    assert mems_for(machine(), NodeSet.parse(nodes), mode) == expected


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_a_host_with_one_node_is_never_bound(mode: MemoryMode) -> None:
    assert mems_for(machine(nodes=1), NodeSet([0]), mode) is None


def test_memory_is_not_bound_where_locality_is_unknown() -> None:
    assert mems_for(machine(memory_bytes=None), NodeSet([0]), LOCAL) is None


def test_memory_is_never_bound_to_a_node_without_memory() -> None:
    host = machine(nodes=2)
    host = replace(host, nodes=(replace(host.nodes[0], memory_bytes=0), host.nodes[1]))
    assert mems_for(host, NodeSet([0]), LOCAL) is None
    assert mems_for(host, NodeSet([0]), BIND) is None
    assert mems_for(host, NodeSet([0, 1]), BIND) == NodeSet([1])


def test_a_memory_only_node_of_the_placement_is_bound_with_the_others() -> None:
    host = machine(nodes=2)
    host = replace(host, nodes=(*host.nodes, Node(id=2, cpus=CpuSet(), memory_bytes=GIB)))
    assert mems_for(host, NodeSet([0, 2]), BIND) == NodeSet([0, 2])
    assert mems_for(host, NodeSet([0, 2]), LOCAL) is None
