"""What `check` finds wrong with host, server and projects, and how the kernel's features are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cli.findings import host, server
from incus_numa.cli.findings.finding import Finding, Kind, Severity
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host import features
from incus_numa.host.features import Capability, KernelFeatures
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.snapshot import Decided, Observed
from incus_numa.server.protocol import Product, Project, ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings
from tests import builders

MACHINE = builders.machine(nodes=4, cpus_per_node=2)
GOOD = KernelFeatures(has_nodes=True, numa_balancing=False, pressure=True, keeps_marks=True)
INCUS = ServerInfo(product=Product.INCUS, version="6.0.4", extensions=frozenset({"numa_cpu_balanced"}))
BALANCED = {"limits.cpu.nodes": "balanced"}


def brief(found: list[Finding]) -> list[tuple[Severity, Kind]]:
    return [(one.severity, one.kind) for one in found]


def test_a_good_host_and_one_that_says_nothing() -> None:
    assert host.check_host(MACHINE, GOOD, (), is_root=True) == []
    assert host.check_host(MACHINE, KernelFeatures(), (), is_root=True) == []


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ({"missing": frozenset({Capability.NICE})}, (Severity.WARNING, Kind.PERMISSION)),
        ({"no_page_moves": "no such call"}, (Severity.NOTE, Kind.PAGE_MOVES)),
        ({"pressure": False}, (Severity.NOTE, Kind.PRESSURE)),
        ({"keeps_marks": False}, (Severity.NOTE, Kind.DECISIONS_NOT_KEPT)),
        ({"has_nodes": False}, (Severity.NOTE, Kind.NO_NUMA)),
    ],
)
def test_what_the_kernel_lacks(lacks: dict[str, object], expected: tuple[Severity, Kind]) -> None:
    kernel = replace(GOOD, **lacks)  # type: ignore[arg-type]
    assert brief(host.check_host(MACHINE, kernel, (), is_root=True)) == [expected]


def test_a_host_with_one_node_is_told_so_once_and_nothing_about_moving_memory() -> None:
    small = builders.machine(nodes=1)
    kernel = replace(GOOD, no_page_moves="no such call")
    assert brief(host.check_host(small, kernel, (), is_root=True)) == [(Severity.NOTE, Kind.NO_NUMA)]
    without = replace(small, warnings=("no NUMA information: no nodes", "CPU 3 belongs to no node"))
    found = host.check_host(without, replace(kernel, has_nodes=False), (), is_root=True)
    assert brief(found) == [(Severity.NOTE, Kind.NO_NUMA), (Severity.NOTE, Kind.HARDWARE)]


def test_who_is_not_root_lacks_every_capability_and_is_told_once() -> None:
    kernel = replace(GOOD, missing=frozenset(Capability))
    assert brief(host.check_host(MACHINE, kernel, (), is_root=False)) == [(Severity.WARNING, Kind.PERMISSION)]


def test_cgroups_that_cannot_be_set_are_told_with_what_to_do() -> None:
    (one,) = host.check_host(MACHINE, GOOD, ("no cgroup v2 hierarchy: none; boot with x",), is_root=True)
    assert (one.kind, one.text, one.do) == (Kind.CGROUPS, "no cgroup v2 hierarchy: none", "boot with x")


PLACED = Observed(mems=NodeSet([1]), decided=Decided(nodes=NodeSet([1])))
WAITING = Observed(cpus=CpuSet([1]))


@pytest.mark.parametrize(
    ("managed", "severity"),
    [([], Severity.NOTE), ([PLACED], Severity.NOTE), ([PLACED, WAITING], Severity.WARNING)],
)
def test_no_daemon_matters_where_somebody_waits_for_it(managed: list[Observed], severity: Severity) -> None:
    assert brief(host.check_daemon(None, managed)) == [(severity, Kind.NO_DAEMON)]
    assert host.check_daemon("pid 17", managed) == []


@pytest.mark.parametrize(
    ("on", "one", "tells"),
    [
        (True, PLACED, True),
        (True, Observed(bound=NodeSet([0])), True),
        (True, Observed(mems=NodeSet()), False),
        (True, Observed(mems=NodeSet(range(4))), False),
        (True, Observed(bound=NodeSet()), False),
        (False, PLACED, False),
        (None, PLACED, False),
    ],
)
def test_numa_balancing_is_worth_a_note_where_memory_is_bound(on: bool | None, one: Observed, tells: bool) -> None:
    found = host.check_balancing(replace(GOOD, numa_balancing=on), MACHINE, [one])
    assert brief(found) == ([(Severity.NOTE, Kind.NUMA_BALANCING)] if tells else [])


def test_servers() -> None:
    assert server.check_server(INCUS, (), ()) == []
    old = replace(INCUS, extensions=frozenset({"numa_cpu_placement"}))
    assert brief(server.check_server(old, (), ())) == [(Severity.NOTE, Kind.NO_BALANCED)]
    assert server.check_server(replace(old, product=Product.LXD), (), ()) == []
    both = server.check_server(INCUS, ("c1 cannot be read",), ("/var/lib/lxd/unix.socket",))
    assert brief(both) == [(Severity.WARNING, Kind.UNREADABLE_INSTANCE), (Severity.WARNING, Kind.TWO_SERVERS)]


def listed(*projects: str, kind: InstanceType = InstanceType.CONTAINER, **config: str) -> list[ServerInstance]:
    keys = {name.replace("_", "."): value for name, value in config.items()}
    return [
        ServerInstance(key=InstanceKey(project, "c1"), type=kind, running=True, config=keys or BALANCED)
        for project in projects
    ]


@pytest.mark.parametrize(
    ("keys", "containers", "machines"),
    [
        ({}, False, False),
        ({"restricted": "true"}, True, True),
        ({"restricted": "false"}, False, False),
        ({"limits.cpu": "8"}, True, True),
        ({"restricted": "true", "restricted.containers.lowlevel": "allow"}, False, True),
        ({"limits.instances": "8", "restricted.virtual-machines.lowlevel": "allow"}, True, False),
    ],
)
def test_projects_that_forbid_the_record(keys: dict[str, str], containers: bool, machines: bool) -> None:
    projects = (Project(name="p", config=keys), Project(name="q"))
    for kind, forbids in ((InstanceType.CONTAINER, containers), (InstanceType.VIRTUAL_MACHINE, machines)):
        found = server.find_forbidden(INCUS, projects, listed("p", "q", kind=kind))
        assert found == ({InstanceKey("p", "c1")} if forbids else set())


def test_a_project_is_told_once_and_only_where_something_is_managed() -> None:
    projects = tuple(Project(name=name, config={"restricted": "true"}) for name in ("p", "q"))
    raw = {one.key: one for one in (*listed("p"), *listed("q", limits_cpu="2"))}
    raw[InstanceKey("p", "c2")] = replace(raw[InstanceKey("p", "c1")], key=InstanceKey("p", "c2"))
    forbidden = server.find_forbidden(INCUS, projects, raw.values())
    (one,) = server.check_projects(forbidden, raw, PlacementSettings())
    assert (one.kind, one.about, "c1, c2" in one.text) == (Kind.RESTRICTED_PROJECT, "project p", True)


def test_nodes_that_are_kept_elsewhere_are_not_forbidden() -> None:
    projects = (Project(name="p", config={"restricted": "true"}),)
    lxd = replace(INCUS, product=Product.LXD, extensions=frozenset({"numa_cpu_placement"}))
    assert server.find_forbidden(lxd, projects, listed("p", user_limits_cpu_nodes="balanced")) == set()
    opted_in = {one.key: one for one in listed("p", user_limits_cpu_nodes="balanced")}
    forbidden = server.find_forbidden(INCUS, projects, opted_in.values())
    assert brief(server.check_projects(forbidden, opted_in, PlacementSettings())) != []
    assert server.check_projects(forbidden, opted_in, PlacementSettings(restricted_record="limits")) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("sys/devices/system/node", "proc/sys/kernel", "proc/self", "proc/pressure", "cgroup"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    return tmp_path


def read(tree: Path) -> KernelFeatures:
    found = features.read_features(tree / "sys", tree / "proc", tree / "cgroup")
    # Whether the folder of a test keeps attributes says nothing about this code.
    return replace(found, keeps_marks=None)


@pytest.mark.parametrize(("text", "on"), [("0", False), ("1", True), ("2", False), ("3", True), ("x", None)])
def test_features_of_a_kernel(tree: Path, text: str, on: bool | None) -> None:
    (tree / "proc/sys/kernel/numa_balancing").write_text(f"{text}\n")
    (tree / "proc/self/status").write_text("Name:\tx\nCapEff:\t000001ffff7fffff\n")
    assert read(tree) == KernelFeatures(
        has_nodes=True, numa_balancing=on, pressure=True, missing=frozenset({Capability.NICE})
    )


def test_features_of_a_kernel_without_them(tree: Path) -> None:
    (tree / "proc/pressure").rmdir()
    (tree / "sys/devices/system/node").rmdir()
    assert read(tree) == KernelFeatures(has_nodes=False, pressure=False)


def test_nothing_is_known_of_a_kernel_that_shows_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert features.read_features(missing, missing, missing) == KernelFeatures()
