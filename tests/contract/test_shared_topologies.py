"""Every machine in ../shared is read to the facts that were established for it independently."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine
from incus_numa.topology import sysfs

TOPOLOGIES = Path(__file__).parents[3] / "shared" / "data" / "topologies"
EXPECTED = sorted(TOPOLOGIES.glob("*.expected.json"))
NEEDED = re.compile(
    r".*?/(proc/meminfo|sys/devices/system/("
    r"(cpu|node)/online|cpu/isolated|node/node\d+(/(cpumap|cpulist|meminfo|distance))?"
    r"|cpu/cpu\d+(/(online|cpu_capacity|node\d+|topology/(core_cpus|thread_siblings|physical_package_id)\w*"
    r"|cache/index\d+/(level|shared_cpu_\w+)))?))\Z"
)

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not EXPECTED, reason="../shared/data/topologies is not there"),
]


def name_of(path: Path) -> str:
    return path.name.removesuffix(".expected.json")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str]]:
    """What was found wrong, by snapshot, over the whole module."""
    return {}


def read(expected: Path, into: Path, root: str) -> Machine:
    (archive,) = (path for path in TOPOLOGIES.iterdir() if path.name.startswith(f"{name_of(expected)}.tar."))
    with tarfile.open(archive) as tar:
        tar.extractall(into, members=[one for one in tar if NEEDED.match(one.name)], filter="data")
    return sysfs.read_machine(into / root / "sys", into / root / "proc", name=name_of(expected))


def groups(values: Iterable[tuple[int, int | None]]) -> set[str]:
    """The partition, as kernel lists; what has no group is left out."""
    found: dict[int, set[int]] = {}
    for one, group in values:
        if group is not None:
            found.setdefault(group, set()).add(one)
    assert all(group == min(members) for group, members in found.items())
    return {str(CpuSet(members)) for members in found.values()}


def bytes_of(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024


def differences(machine: Machine, expected: dict[str, Any]) -> list[str]:
    """The facts that are wrong; a machine without NUMA is one node with every CPU."""
    online = CpuSet.parse(expected["cpu"]["online"] or "")
    nodes = expected["nodes"]
    if not nodes and online:
        nodes = {"0": {"cpus_online": str(online), "memory_kib": expected["proc_memtotal_kib"]}}
    facts: dict[str, tuple[object, object]] = {
        "online": (machine.online, online),
        "isolated": (machine.isolated, CpuSet.parse(expected["cpu"]["isolated"] or "")),
        "node ids": (NodeSet(machine.node_by_id), NodeSet(int(one) for one in nodes)),
        "cpu ids": (CpuSet(machine.cpu_by_id), online),
        "cores": (groups((cpu.id, cpu.core) for cpu in machine.cpus), set(expected["cores"])),
    }
    if not any(field.startswith("l3") for field in expected["ambiguous_fields"]):
        l3 = {one["cpus"] for one in expected["l3"]}
        facts["l3"] = (groups((cpu.id, cpu.l3) for cpu in machine.cpus), l3)
    for ident, package in (expected["packages_by_id"] or {}).items():
        if int(ident) >= 0:
            members = CpuSet(cpu.id for cpu in machine.cpus if cpu.socket == int(ident))
            facts[f"socket {ident}"] = (members, CpuSet.parse(package))
    for ident, node in nodes.items():
        if int(ident) not in machine.node_by_id:
            continue
        found = machine.node_by_id[int(ident)]
        distances = {int(other): one for other, one in (node.get("distance_to") or {}).items()}
        facts[f"node {ident} cpus"] = (found.cpus, CpuSet.parse(node["cpus_online"]))
        facts[f"node {ident} memory"] = (found.memory_bytes, bytes_of(node["memory_kib"]))
        facts[f"node {ident} distances"] = (dict(found.distances), distances)
        if "memory_free_kib" in node:
            facts[f"node {ident} free"] = (found.free_bytes, bytes_of(node["memory_free_kib"]))
    return [f"{fact}: {found}, expected {right}" for fact, (found, right) in facts.items() if found != right]


@pytest.mark.parametrize("expected", EXPECTED, ids=name_of)
def test_snapshot_is_read_right(expected: Path, tmp_path: Path, verdicts: dict[str, list[str]]) -> None:
    facts = json.loads(expected.read_bytes())
    machine = read(expected, tmp_path, facts["fsroot"])
    verdicts[name_of(expected)] = differences(machine, facts)
    assert verdicts[name_of(expected)] == []


def test_all_topologies_are_right(verdicts: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = sorted(name for name, found in verdicts.items() if found)
    with capsys.disabled():
        print(f"\n{len(verdicts) - len(wrong)} of {len(verdicts)} topologies right")
    assert wrong == []
