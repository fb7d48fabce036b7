"""Containers that did not ask for `balanced` are the server's and their owner's alone."""

from __future__ import annotations

from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

CONFIGS = {
    "counted": {"limits_cpu": "2"},
    "pinned": {"limits_cpu": "1-2"},
    "placed": {"limits_cpu": "2", "limits_cpu_nodes": "3"},
}


@pytest.fixture(scope="module")
def records(lab: Lab) -> dict[str, dict[str, Any]]:
    """What the server had about each before a managed container came."""
    for name, config in CONFIGS.items():
        lab.launch(name, **config)
    found = {name: lab.get(name) for name in CONFIGS}
    lab.launch_balanced("managed", 2)
    lab.settle("managed", 2)
    lab.systemctl("reload", "incus-numa")
    lab.wait_quiet()
    return found


def test_their_configuration_is_unchanged(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    assert {name: lab.get(name)["config"] for name in CONFIGS} == {
        name: record["config"] for name, record in records.items()
    }


def test_their_memory_is_never_bound(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    assert {name: lab.see(name).mems for name in CONFIGS} == dict.fromkeys(CONFIGS, NodeSet())


def test_their_cpus_are_what_the_server_gave(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    assert len(lab.see("counted").cpus) == 2
    assert lab.see("pinned").cpus == CpuSet([1, 2])
    assert lab.see("placed").cpus == lab.layout.cpus[3]


def test_a_value_that_someone_else_wrote_stays(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    lab.host.run(f"echo 0-6 >{lab.cgroup('counted')}/cpuset.cpus; echo 1-3 >{lab.cgroup('counted')}/cpuset.mems")
    lab.systemctl("reload", "incus-numa")
    lab.host.run("sleep 5")
    seen = lab.see("counted")
    assert (seen.written, seen.mems) == (CpuSet.parse("0-6"), NodeSet.parse("1-3"))


def test_the_daemon_never_speaks_of_them(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    assert [line for line in lab.journal() for name in CONFIGS if f"instance={name} " in line] == []


def test_the_managed_one_avoids_the_cpus_they_have(records: dict[str, dict[str, Any]], lab: Lab) -> None:
    assert lab.see("managed").nodes & NodeSet([3]) == NodeSet()
