"""What `check` finds wrong with the keys of instances, from values alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cli.findings import instances
from incus_numa.cli.findings.finding import Finding, Kind, Severity, in_order, note, warning
from incus_numa.cli.findings.instances import Capacity, Ground
from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.machine import Machine
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
    machine: Machine = MACHINE,
) -> list[Finding]:
    raw = ServerInstance(key=InstanceKey("default", "c1"), type=kind, running=running, config=config)
    instance = demand.instance_from(raw, machine, PlacementSettings())
    return instances.check_instance(raw, instance, Ground(info=info, machine=machine, capacity=capacity))


def unused(config: dict[str, str], *groups: str, info: ServerInfo = OLD) -> list[tuple[Severity, Kind, str]]:
    """Severity, kind and text of keys without effect, where some instances are in these groups."""
    raw = ServerInstance(key=InstanceKey("default", "c1"), type=InstanceType.CONTAINER, running=True, config=config)
    instance = demand.instance_from(raw, MACHINE, PlacementSettings())
    ground = Ground(info=info, machine=MACHINE, capacity=CAPACITY, groups=frozenset(groups))
    told = instances.check_unused(raw, instance, ground, PlacementSettings())
    return [(one.severity, one.kind, str(one)) for one in told]


def kinds(config: dict[str, str], *, running: bool = False, **more: Any) -> list[tuple[Severity, Kind]]:
    return [(one.severity, one.kind) for one in found(config, running=running, **more)]


def dangers(**config: str) -> list[str]:
    keys = {name.replace("_", "."): value for name, value in config.items()}
    return [str(one) for one in found(keys) if one.severity is Severity.DANGER]


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
    assert dangers(limits_cpu="64", user_limits_cpu_nodes="balanced") == []


def test_a_crash_is_found_behind_another_bad_key() -> None:
    config = {"limits.cpu": "64", "limits.cpu.nodes": "balanced", "user.numa.policy": "sideways"}
    assert kinds(config) == [(Severity.DANGER, Kind.WOULD_CRASH), (Severity.WARNING, Kind.BAD_KEY)]


def test_every_bad_key_is_a_finding_of_its_own() -> None:
    config = {"user.limits.cpu.nodes": "balanced", "user.numa.policy": "sideways", "user.numa.movable": "perhaps"}
    assert [(one.kind, one.do) for one in found(config)] == [
        (Kind.BAD_KEY, "correct or unset user.numa.policy"),
        (Kind.BAD_KEY, "correct or unset user.numa.movable"),
    ]


def test_keys_of_an_instance_that_did_not_opt_in_are_told_and_how_to_opt_in() -> None:
    keys = {"user.numa.memory": "bind", "user.numa.policy": "restricted", "user.numa.group": "web"}
    assert unused(keys) == [
        (
            Severity.NOTE,
            Kind.UNUSED_KEY,
            "user.numa.memory, user.numa.policy have no effect, and user.numa.group only counts for where others are "
            "placed: the instance did not opt in; set user.limits.cpu.nodes=balanced, or unset what does nothing",
        )
    ]
    incus = replace(OLD, extensions=frozenset({"numa_cpu_balanced"}))
    assert "; set limits.cpu.nodes=balanced, or" in unused({"user.numa.memory": "bind"}, info=incus)[0][2]
    assert unused(keys | {"user.limits.cpu.nodes": "balanced"}) == []
    assert unused({"user.other": "x", "limits.cpu": "2", "user.numa.memory": " "}) == []


def test_a_bad_value_of_an_instance_that_did_not_opt_in_is_a_note() -> None:
    assert unused({"user.numa.policy": "sideways", "limits.memory": "lots"}) == [
        (
            Severity.NOTE,
            Kind.BAD_KEY,
            "user.numa.policy: bad value 'sideways': expected one of balanced, none, best-effort, restricted, "
            "single-numa-node; it counts as unset, as the instance did not opt in",
        )
    ]


def test_nobody_to_avoid_is_told() -> None:
    keys = {"user.limits.cpu.nodes": "balanced", "user.numa.avoid": "web,db", "user.numa.group": "lonely"}
    ((severity, kind, text),) = unused(keys, "web", "lonely")
    assert (severity, kind) == (Severity.NOTE, Kind.UNUSED_KEY)
    assert text.startswith("user.numa.avoid names db, and no instance here has that in user.numa.group")
    assert unused(keys, "web", "db") == []


def test_a_virtual_machine_crashes_the_server_as_well() -> None:
    config = {"limits.cpu": "64", "limits.cpu.nodes": "balanced"}
    assert [one.severity for one in found(config, kind=InstanceType.VIRTUAL_MACHINE)] == [Severity.DANGER]


def test_isolated_and_offline_cpus_count_for_the_server() -> None:
    """With two CPUs offline and one isolated the server still has 8 CPUs on 4 nodes, and 8 vCPUs need 4 nodes."""
    config = {"limits.cpu": "8", "limits.cpu.nodes": "balanced"}
    assert kinds(config, capacity=CAPACITY) == []
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
    config = {"limits.cpu": "64", "limits.cpu.nodes": "balanced"}
    assert kinds(config, info=info) == [(Severity.WARNING, Kind.CPU_LIMIT)]


@pytest.mark.parametrize("opt_in", ["", "user.limits.cpu.nodes", "limits.cpu.nodes"])
def test_a_limit_that_the_server_cannot_read_is_told_once_whoever_manages_the_instance(opt_in: str) -> None:
    config = {"limits.cpu": "a lot"} | ({opt_in: "balanced"} if opt_in else {})
    assert kinds(config, running=True) == [(Severity.DANGER, Kind.LIMIT_UNREADABLE)]
    assert kinds(config) == ([(Severity.WARNING, Kind.BAD_KEY)] if opt_in else [])


def test_nodes_that_the_machine_does_not_have() -> None:
    (one,) = found({"limits.cpu.nodes": "balanced", "volatile.cpu.nodes": "3-5"}, running=True)
    assert (one.severity, one.kind, "names nodes 4-5" in one.text) == (Severity.WARNING, Kind.NODES_MISSING, True)
    assert kinds({"limits.cpu.nodes": "2,9"}) == [(Severity.WARNING, Kind.NODES_MISSING)]


def test_a_record_that_a_pass_does_not_write_anew_is_told_with_what_does_or_not_at_all() -> None:
    stale = {"volatile.cpu.nodes": "9"}
    refused = found({"limits.cpu.nodes": "balanced", "user.numa.policy": "sideways", **stale}, running=True)
    assert [one.do for one in refused if one.kind is Kind.NODES_MISSING] == [
        "correct its keys first, then `incus-numa rebalance` writes it anew"
    ]
    assert found(stale, running=True) == []


def test_the_record_of_a_stopped_instance_is_nothing_as_a_start_writes_it_anew() -> None:
    assert found({"limits.cpu.nodes": "balanced", "volatile.cpu.nodes": "3-5"}) == []


ISOLATED = builders.machine(nodes=4, cpus_per_node=2, isolated="6-7")


@pytest.mark.parametrize("managed", [{}, {"user.limits.cpu.nodes": "balanced"}])
@pytest.mark.parametrize(
    ("pins", "kind", "expected"),
    [
        ("0-3", InstanceType.CONTAINER, []),
        ("2,9", InstanceType.CONTAINER, [(Severity.WARNING, Kind.PIN_MISSING)]),
        ("8-9", InstanceType.VIRTUAL_MACHINE, [(Severity.WARNING, Kind.PIN_MISSING)]),
        ("5-6", InstanceType.CONTAINER, [(Severity.WARNING, Kind.PIN_ISOLATED)]),
        ("6-7", InstanceType.VIRTUAL_MACHINE, [(Severity.NOTE, Kind.PIN_ISOLATED)]),
        ("6-8", InstanceType.CONTAINER, [(Severity.WARNING, Kind.PIN_MISSING), (Severity.WARNING, Kind.PIN_ISOLATED)]),
    ],
)
def test_pins_on_cpus_that_are_missing_or_isolated(
    managed: dict[str, str], pins: str, kind: InstanceType, expected: list[tuple[Severity, Kind]]
) -> None:
    assert kinds({"limits.cpu": pins, **managed}, kind=kind, machine=ISOLATED) == expected


@pytest.mark.parametrize(
    ("managed", "severity"), [({}, Severity.NOTE), ({"user.limits.cpu.nodes": "balanced"}, Severity.WARNING)]
)
def test_limits_that_are_larger_than_the_host(managed: dict[str, str], severity: Severity) -> None:
    config = {"limits.cpu": "9", "limits.memory": "129GiB", **managed}
    assert kinds(config) == [(severity, Kind.CPU_LIMIT), (severity, Kind.MEMORY_LIMIT)]
    assert kinds({"limits.cpu": "8", "limits.memory": "128GiB", **managed}) == []


def test_what_would_crash_the_server_is_not_told_again_as_too_large() -> None:
    assert kinds({"limits.cpu": "9", "limits.cpu.nodes": "balanced"}) == [(Severity.DANGER, Kind.WOULD_CRASH)]


def test_memory_of_a_machine_that_does_not_say_how_much_it_has_is_never_too_small() -> None:
    assert kinds({"limits.memory": "900GiB"}, machine=builders.machine(memory_bytes=None)) == []


def test_findings_are_told_once_the_worst_first_then_by_what_they_are_about() -> None:
    one, two = warning(Kind.BAD_KEY, "b", "x", "do"), warning(Kind.REFUSED, "a", "y", "do")
    small, bad = note(Kind.HARDWARE, "a", "z"), found({"limits.cpu": "9", "limits.cpu.nodes": "balanced"})[0]
    assert in_order([small, one, two, one, bad]) == (bad, two, one, small)


def test_every_kind_of_finding_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    assert [one.value for one in Kind if f"`{one.value}`" not in text] == []


def test_the_servers_own_count_has_offline_cpus_and_no_nodes_without_cpus() -> None:
    body = json.dumps(render_resources(MACHINE, CpuSet.parse("0-4"))).encode()
    assert resources.count_cpus(body) == (8, 4)
    assert resources.count_cpus(b'{"memory": {"total": 1}}') == (0, 0)
