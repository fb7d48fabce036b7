"""What `check` finds, from values alone."""

from __future__ import annotations

import json

import pytest

from incus_numa.cli import findings
from incus_numa.cli.findings import Capacity, Finding, Severity
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.plan import Plan, Reason, Rejection
from incus_numa.model.snapshot import Observed
from incus_numa.server import demand
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings
from incus_numa.simulator.resources import render_resources
from incus_numa.topology import resources
from tests import builders

MACHINE = builders.machine(nodes=4, cpus_per_node=2)
CAPACITY = Capacity(cpus=8, nodes=4)
OLD = ServerInfo(product=Product.INCUS, version="6.0.4", extensions=frozenset())


def found(
    config: dict[str, str],
    *,
    info: ServerInfo = OLD,
    capacity: Capacity = CAPACITY,
    running: bool = False,
    kind: InstanceType = InstanceType.CONTAINER,
) -> list[Finding]:
    raw = ServerInstance(key=InstanceKey("default", "c1"), type=kind, running=running, config=config)
    instance = demand.instance_from(raw, MACHINE, PlacementSettings())
    return findings.check_instance(raw, instance, info, MACHINE, capacity)


def dangers(**config: str) -> list[str]:
    keys = {name.replace("_", "."): value for name, value in config.items()}
    return [one.text for one in found(keys) if one.severity is Severity.DANGER]


@pytest.mark.parametrize("limit", ["9", "64", "sockets=3,cores=3,threads=1", "1000000", "0-8"])
def test_an_instance_wider_than_the_host_would_crash_the_server(limit: str) -> None:
    (text,) = dangers(limits_cpu=limit, limits_cpu_nodes="balanced")
    assert "crash" in text
    assert "lower limits.cpu to 8 or less" in text


@pytest.mark.parametrize("limit", ["", "1", "8", "0-7"])
def test_an_instance_that_fits_the_host_is_no_danger(limit: str) -> None:
    assert dangers(limits_cpu=limit, limits_cpu_nodes="balanced") == []


def test_only_balanced_makes_the_server_count_nodes() -> None:
    assert dangers(limits_cpu="64", limits_cpu_nodes="0-1") == []
    assert found({"limits.cpu": "64", "user.limits.cpu.nodes": "balanced"}) == []


def test_a_crash_is_found_behind_another_bad_key() -> None:
    config = {"limits.cpu": "64", "limits.cpu.nodes": "balanced", "user.numa.policy": "sideways"}
    assert [one.severity for one in found(config)] == [Severity.DANGER, Severity.WARNING]


def test_a_virtual_machine_crashes_the_server_as_well() -> None:
    config = {"limits.cpu": "64", "limits.cpu.nodes": "balanced"}
    assert [one.severity for one in found(config, kind=InstanceType.VIRTUAL_MACHINE)] == [Severity.DANGER]


def test_isolated_and_offline_cpus_count_for_the_server() -> None:
    """With two CPUs offline and one isolated the server still has 8 CPUs on 4 nodes, and 8 vCPUs need 4 nodes."""
    config = {"limits.cpu": "8", "limits.cpu.nodes": "balanced"}
    assert found(config, capacity=CAPACITY) == []
    assert [one.severity for one in found(config, capacity=Capacity(cpus=6, nodes=4))] == [Severity.DANGER]


@pytest.mark.parametrize(
    "info",
    [
        ServerInfo(product=Product.INCUS, version="7.0.2", extensions=frozenset()),
        ServerInfo(product=Product.INCUS, version="6.0.3", extensions=frozenset()),
        ServerInfo(product=Product.LXD, version="5.0.2", extensions=frozenset()),
    ],
)
def test_servers_that_do_not_crash(info: ServerInfo) -> None:
    assert found({"limits.cpu": "64", "limits.cpu.nodes": "balanced"}, info=info) == []


def test_a_limit_that_the_server_cannot_read_stops_its_balancing_whoever_manages_the_instance() -> None:
    for config in ({"limits.cpu": "a lot"}, {"limits.cpu": "a lot", "user.limits.cpu.nodes": "balanced"}):
        assert Severity.DANGER in {one.severity for one in found(config, running=True)}
    assert [one.severity for one in found({"limits.cpu": "a lot"}, running=False)] == []


def test_nodes_that_the_machine_does_not_have() -> None:
    (one,) = found({"limits.cpu.nodes": "balanced", "volatile.cpu.nodes": "3-5"})
    assert (one.severity, "names nodes 4-5" in one.text) == (Severity.WARNING, True)


def placed(nodes: str, cpus: str | None, actual: str | None = None, *, managed: bool = True) -> list[Finding]:
    """Findings about a record of nodes, `cpuset.cpus`, and the CPUs that are left of them."""
    observed = Observed(nodes=NodeSet.parse(nodes) or None, cpus=None if cpus is None else CpuSet.parse(cpus))
    left = observed.cpus if actual is None else CpuSet.parse(actual)
    return findings.check_placed(builders.instance("c1", managed=managed), observed, left, MACHINE)


@pytest.mark.parametrize(("nodes", "cpus"), [("0", "0-1"), ("0-1", "1-2"), ("", "0-7")])
def test_a_true_record(nodes: str, cpus: str) -> None:
    assert placed(nodes, cpus) == []


@pytest.mark.parametrize(("nodes", "cpus"), [("0", "2-3"), ("0", "1-2"), ("0-1", "2-3"), ("0-3", "0")])
def test_an_untrue_record(nodes: str, cpus: str) -> None:
    (one,) = placed(nodes, cpus)
    assert (one.severity, "not true" in one.text) == (Severity.WARNING, True)


def test_a_record_is_true_or_not_by_the_cpus_that_are_left() -> None:
    """`cpuset.cpus` names two nodes, but the CPUs of one are offline."""
    assert len(placed("0-1", "0-3", "0-1")) == 1


def test_a_container_without_its_cgroup() -> None:
    (one,) = placed("0", None)
    assert (one.severity, "cgroup" in one.text) == (Severity.WARNING, True)


def test_unmanaged_instances_are_nobodys_business() -> None:
    assert placed("0", "2-3", managed=False) == []


def test_the_host() -> None:
    assert findings.check_host(MACHINE, (), is_root=True) == []
    small = builders.machine(nodes=1)
    found = findings.check_host(small, ("no cgroup v2",), is_root=False)
    assert [one.severity for one in found] == [Severity.WARNING, Severity.WARNING, Severity.NOTE]
    assert [word in one.text for word, one in zip(("no cgroup v2", "not root", "NUMA"), found, strict=True)] == [
        True
    ] * 3


def test_refused_instances_are_found_once() -> None:
    key = InstanceKey("default", "c1")
    bad = Rejection(key=key, reason=Reason.BAD_KEY, detail="x")
    big = Rejection(key=key, reason=Reason.NO_MEMORY, detail="needs 32 GiB")
    (one,) = findings.check_plan(Plan(rejections=(bad, big)))
    assert "no-memory" in one.text


def test_the_servers_own_count_has_offline_cpus_and_no_nodes_without_cpus() -> None:
    body = json.dumps(render_resources(MACHINE, CpuSet.parse("0-4"))).encode()
    assert resources.count_cpus(body) == (8, 4)
    assert resources.count_cpus(b'{"memory": {"total": 1}}') == (0, 0)
