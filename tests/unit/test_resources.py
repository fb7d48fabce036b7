"""What the server's resources add to the machine, and what they may not change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ReportError
from incus_numa.model.machine import Machine
from incus_numa.topology.resources import merge_resources
from tests.builders import GIB, machine

HOST = machine(nodes=2, cpus_per_node=2, threads=1, memory_bytes=4 * GIB)


def thread(ident: int, node: int, **others: Any) -> dict[str, Any]:
    return {"id": ident, "numa_node": node, "thread": 0, "online": True, "isolated": False} | others


def resources(*threads: dict[str, Any], memory: dict[str, Any] | None = None) -> dict[str, Any]:
    """The shape of `metadata`, with fields that are not ours and the nulls that Go prints for empty lists."""
    cores = [{"core": number, "die": 0, "threads": [one], "flags": None} for number, one in enumerate(threads)]
    sockets = [{"name": "EPYC", "socket": 0, "cores": cores, "cache": None}, {"socket": 1, "cores": None}]
    return {
        "cpu": {"architecture": "x86_64", "sockets": sockets, "total": len(threads)},
        "memory": {"nodes": None, "hugepages_total": 0, "used": 2 * GIB, "total": 8 * GIB} | (memory or {}),
        "gpu": {"cards": [], "total": 0},
    }


ALL = (thread(0, 0), thread(1, 0), thread(2, 1), thread(3, 1))


def merge(onto: Machine, metadata: dict[str, Any]) -> Machine:
    return merge_resources(onto, json.dumps(metadata).encode())


def memory_of(*totals: int) -> dict[str, Any]:
    return {"nodes": [{"numa_node": node, "total": total, "used": GIB} for node, total in enumerate(totals)]}


def unknown_memory(host: Machine) -> Machine:
    nodes = tuple(replace(node, memory_bytes=None, free_bytes=None) for node in host.nodes)
    return replace(host, nodes=nodes)


def test_agreeing_resources_change_nothing() -> None:
    assert merge(HOST, resources(*ALL, memory=memory_of(4 * GIB, 4 * GIB))) == HOST


def test_whole_response_is_accepted_as_well() -> None:
    isolated = resources(*ALL[:3], thread(3, 1, isolated=True))
    response = {"type": "sync", "status": "Success", "status_code": 200, "metadata": isolated}
    assert merge(HOST, response) == merge(HOST, isolated)
    assert merge(HOST, response).isolated == CpuSet((3,))


def test_isolated_threads_are_added() -> None:
    merged = merge(HOST, resources(thread(0, 0, isolated=True), *ALL[1:]))
    assert merged == replace(HOST, isolated=CpuSet((0,)))


def test_isolated_cpus_of_sysfs_win_with_a_warning() -> None:
    host = replace(HOST, isolated=CpuSet((1,)))
    merged = merge(host, resources(thread(0, 0, isolated=True), *ALL[1:]))
    assert merged.isolated == CpuSet((1,))
    assert merged.warnings == ("the server says that CPUs 0 are isolated, sysfs says 1",)


def test_unknown_memory_of_nodes_is_filled_in() -> None:
    merged = merge(unknown_memory(HOST), resources(*ALL, memory=memory_of(4 * GIB, 6 * GIB)))
    assert [(node.memory_bytes, node.free_bytes) for node in merged.nodes] == [
        (4 * GIB, 3 * GIB),
        (6 * GIB, 5 * GIB),
    ]
    assert merged.warnings == ()


def test_memory_of_sysfs_wins_with_a_warning() -> None:
    merged = merge(HOST, resources(*ALL, memory=memory_of(4 * GIB, 5 * GIB)))
    assert merged.nodes == HOST.nodes
    assert merged.warnings == (f"the server says that node 1 has {5 * GIB} bytes of memory, sysfs says {4 * GIB}",)


def test_memory_of_the_host_is_not_split_between_nodes() -> None:
    host = unknown_memory(HOST)
    assert merge(host, resources(*ALL)) == host


def test_memory_of_the_host_is_that_of_its_only_node() -> None:
    host = unknown_memory(machine(nodes=1, cpus_per_node=4))
    merged = merge(host, resources(*(thread(cpu, 0) for cpu in range(4))))
    assert (merged.nodes[0].memory_bytes, merged.nodes[0].free_bytes) == (8 * GIB, 6 * GIB)


def test_absurd_use_leaves_free_memory_unknown() -> None:
    memory = {"nodes": [{"numa_node": 0, "total": GIB, "used": 2 * GIB}]}
    merged = merge(unknown_memory(HOST), resources(*ALL, memory=memory))
    assert (merged.nodes[0].memory_bytes, merged.nodes[0].free_bytes) == (GIB, None)


def test_memory_of_a_node_that_sysfs_lacks_is_a_warning() -> None:
    merged = merge(HOST, resources(*ALL, memory=memory_of(4 * GIB, 4 * GIB, GIB)))
    assert merged == replace(HOST, warnings=("the server has memory in node 2, sysfs has nodes 0-1",))


def test_other_online_cpus_are_a_warning() -> None:
    merged = merge(HOST, resources(*ALL[:3], thread(3, 1, online=False)))
    assert merged == replace(HOST, warnings=("the server says that CPUs 0-2 are online, sysfs says 0-3",))


def test_nodes_of_cpus_are_those_of_sysfs_with_one_warning_each() -> None:
    merged = merge(HOST, resources(thread(0, 0), thread(1, 0), thread(2, 0), thread(3, 0)))
    assert merged == replace(HOST, warnings=("the server counts CPUs 2-3 in node 0, sysfs in node 1",))


def test_cpu_whose_node_is_unknown_stays_so() -> None:
    """The server reports an unknown node as 0, so its word is nothing to believe."""
    host = replace(HOST, cpus=(replace(HOST.cpus[0], node=None), *HOST.cpus[1:]))
    assert merge(host, resources(*ALL)) == host


def test_earlier_warnings_are_kept_first() -> None:
    host = replace(HOST, warnings=("sysfs is odd",))
    merged = merge(host, resources(*ALL, memory=memory_of(GIB)))
    assert merged.warnings[0] == "sysfs is odd"
    assert len(merged.warnings) == 2


def test_memory_alone_is_enough() -> None:
    assert merge_resources(HOST, b'{"memory": {"total": 1, "used": 0}}') == HOST


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata": {}}',
        b'{"metadata": "x"}',
        b'{"cpu": 3}',
        b'{"cpu": {"sockets": [{"cores": [{"threads": [{"id": "x"}]}]}]}}',
        b'{"memory": {"total": "much"}}',
        b'{"cpu": "\xff"}',
    ],
)
def test_garbage_is_one_kind_of_error(body: bytes) -> None:
    with pytest.raises(ReportError, match="the server's resources"):
        merge_resources(HOST, body)


def test_ids_beyond_any_kernel_are_ignored() -> None:
    assert merge(HOST, resources(*ALL, thread(1 << 40, 0), thread(-1, 0))) == HOST
