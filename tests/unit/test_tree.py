"""The machine as a tree of text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cli.tree import render_tree
from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import Cpu, Node
from incus_numa.topology import document
from tests import builders
from tests.builders import GIB

MACHINES = Path(__file__).parents[1] / "machines"
DOCUMENTS = sorted(path for path in MACHINES.glob("*.json") if path.stem != "overlapping-nodes")
"""No document describes a machine whose nodes overlap."""


def test_a_hybrid_machine_with_pages_isolated_and_lost_cpus() -> None:
    machine = builders.machine(
        nodes=2, cpus_per_node=4, nodes_per_socket=1, isolated="7", hugepages={2 << 20: GIB}, efficiency_cpus=2
    )
    lost = Cpu(id=8, node=None, socket=None, core=8, l3=None)
    whole = replace(
        machine,
        cpus=(*machine.cpus, lost),
        online=machine.online | CpuSet((8,)),
        nodes=(*machine.nodes, Node(id=4, cpus=CpuSet(), memory_bytes=GIB)),
    )
    assert render_tree(whole).splitlines() == [
        "2n8t: 3 nodes, 9 CPUs, 65 GiB",
        "├─ socket 0",
        "│  └─ node 0: 32 GiB, 24 GiB free, 1 GiB in pages of 2 MiB",
        "│     ├─ L3 #0: 1 performance core of 2 threads, CPUs 0-1",
        "│     └─ L3 #0: 1 efficiency core of 2 threads, CPUs 2-3",
        "├─ socket 1",
        "│  └─ node 1: 32 GiB, 24 GiB free, 1 GiB in pages of 2 MiB",
        "│     ├─ L3 #1: 1 performance core of 2 threads, CPUs 4-5",
        "│     ├─ L3 #1: 1 efficiency core of 2 threads, CPUs 6-7",
        "│     └─ isolated: CPUs 7",
        "├─ memory without CPUs",
        "│  └─ node 4: 1 GiB",
        "└─ in no node: CPUs 8",
    ]


def test_a_cache_of_two_nodes_says_so() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=2)
    shared = replace(machine, cpus=tuple(replace(cpu, l3=0) for cpu in machine.cpus))
    lines = render_tree(shared).splitlines()
    assert lines[3].strip(" │└─") == "L3 #0: 1 core of 2 threads, shared with node 1, CPUs 0-1"
    assert lines[5].strip(" │└─") == "L3 #0: 1 core of 2 threads, shared with node 0, CPUs 2-3"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_real_machines_fit_80_columns_and_no_cpu_is_missing(path: Path) -> None:
    machine = document.parse_machine(path.read_bytes())
    text = render_tree(machine)
    assert max(map(len, text.splitlines())) <= 80
    for node in machine.nodes:
        assert f"node {node.id}:" in text
    found = CpuSet()
    for part in re.sub(r"[\n│ ]+", " ", text).split("CPUs ")[1:]:
        numbers = re.match(r"[0-9,\- ]*[0-9]", part)
        found |= CpuSet.parse(numbers[0].replace(" ", "")) if numbers else CpuSet()
    assert machine.online <= found
