"""A project that forbids `volatile.cpu.nodes`: the cgroup is set all the same, and that is said once."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

PROJECT = "closed"


@pytest.fixture(scope="module", autouse=True)
def _project(lab: Lab, _clean: None) -> None:
    """The first three nodes are taken by CPU lists, which the server's choice of nodes does not count."""
    lab.incus("project", "create", PROJECT, "--config=features.images=false", "--config=restricted=true")
    lab.incus("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default", f"--project={PROJECT}")
    lab.launch("taken", limits_cpu="0-5")
    lab.launch("inner", PROJECT, limits_cpu="2", limits_cpu_nodes="balanced")
    lab.settle("inner", 2, project=PROJECT, recorded=False)
    lab.wait_quiet()


def test_its_cgroup_is_on_the_free_node(lab: Lab) -> None:
    seen = lab.see("inner", PROJECT)
    assert (seen.nodes, seen.mems) == (NodeSet([3]), NodeSet([3]))


def test_the_servers_record_is_what_the_server_wrote(lab: Lab) -> None:
    record = lab.see("inner", PROJECT).recorded
    lab.systemctl("restart", "incus-numa")
    lab.settle("inner", 2, project=PROJECT, recorded=False)
    lab.wait_quiet()
    assert lab.see("inner", PROJECT).recorded == record != NodeSet([3])


def test_a_rewrite_by_the_server_is_undone_there_too(lab: Lab) -> None:
    lab.launch("neighbour", limits_cpu="1")
    lab.wait_quiet()
    assert lab.see("inner", PROJECT).nodes == NodeSet([3])


def test_the_refusal_is_said_once_for_each_start_of_the_daemon(lab: Lab) -> None:
    lab.systemctl("restart", "incus-numa")
    since = lab.clock_of_unit("incus-numa")
    lab.until(lambda: bool(refusals(lab, since)), "the refusal is in the journal")
    lab.launch("other", limits_cpu="1")
    lab.wait_quiet()
    assert len(refusals(lab, since)) == 1


def refusals(lab: Lab, since_s: float) -> list[str]:
    """What the daemon said about the forbidden key."""
    return [line for line in lab.journal(since_s) if f"{PROJECT}/inner" in line and "forbid" in line]
