"""The simulated host's files are read by the real readers, and follow what is written as a kernel's do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.model.machine import CoreKind, Machine, Node
from incus_numa.simulator import trees
from incus_numa.topology import sysfs
from tests import builders
from tests.contract.simulated import QUICK, host, until

CALM = replace(QUICK, balances=False)


def with_memory_only_node() -> Machine:
    machine = builders.machine(nodes=2)
    distances = ({0: 10, 1: 12, 7: 20}, {0: 12, 1: 10, 7: 20})
    near = tuple(replace(node, distances=row) for node, row in zip(machine.nodes, distances, strict=True))
    far = Node(id=7, cpus=CpuSet(), memory_bytes=builders.GIB, free_bytes=builders.GIB, distances={0: 20, 1: 20, 7: 10})
    return replace(machine, nodes=(*near, far))


def with_hugepages() -> Machine:
    machine = builders.machine(nodes=2)
    pages: tuple[dict[int, int], ...] = ({2 << 20: 1 << 30, 1 << 30: 2 << 30}, {})
    nodes = (replace(node, hugepages=own) for node, own in zip(machine.nodes, pages, strict=True))
    return replace(machine, name="hugepages", nodes=tuple(nodes))


def with_two_kinds_of_cores() -> Machine:
    machine = builders.machine(nodes=2)
    kinds = {True: CoreKind.PERFORMANCE, False: CoreKind.EFFICIENCY}
    return replace(machine, name="hybrid", cpus=tuple(replace(cpu, kind=kinds[cpu.id < 6]) for cpu in machine.cpus))


@pytest.mark.parametrize(
    "machine",
    [
        builders.machine(),
        builders.machine(isolated="2-3"),
        builders.machine(nodes=24, cpus_per_node=16, nodes_per_socket=12),
        with_memory_only_node(),
        with_hugepages(),
        with_two_kinds_of_cores(),
    ],
    ids=lambda machine: machine.name,
)
def test_machine_reads_back_as_it_was_written(machine: Machine) -> None:
    with TemporaryDirectory(dir=trees.scratch_root()) as folder:
        root = Path(folder)
        trees.write_sysfs(root / "sys", machine)
        trees.write_procfs(root / "proc", machine)
        assert sysfs.read_machine(root / "sys", root / "proc", name=machine.name) == machine


async def test_offline_cpu_leaves_the_machine_and_comes_back() -> None:
    async with host(CALM) as h:
        h.simulator.offline_cpu(5)
        seen = sysfs.read_machine(h.simulator.sysfs, h.simulator.procfs)
        assert 5 not in seen.online
        assert seen.node_by_id[1].cpus == CpuSet.parse("4,6-7")
        h.simulator.online_cpu(5)
        again = sysfs.read_machine(h.simulator.sysfs, h.simulator.procfs, name=h.simulator.machine.name)
        assert again == h.simulator.machine


async def test_effective_cpus_follow_the_written_ones() -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        assert h.cpus(key, "cpuset.cpus.effective") == h.simulator.machine.online
        h.path(key, "cpuset.cpus").write_text("2-3\n")
        await until(lambda: str(h.cpus(key, "cpuset.cpus.effective")) == "2-3")


async def test_a_running_group_cannot_go_back_to_an_empty_set() -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        for file, text in (("cpuset.cpus", "2-3"), ("cpuset.mems", "0")):
            h.path(key, file).write_text(f"{text}\n")
            h.simulator.settle()
            h.path(key, file).write_text("\n")
            h.simulator.settle()
            assert h.path(key, file).read_text() == f"{text}\n"


async def test_effective_cpus_leave_out_offline_ones() -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        h.path(key, "cpuset.cpus").write_text("2-3\n")
        h.simulator.settle()
        h.simulator.offline_cpu(3)
        assert str(h.cpus(key)) == "2-3"
        assert str(h.cpus(key, "cpuset.cpus.effective")) == "2"
        h.simulator.offline_cpu(2)
        assert h.cpus(key, "cpuset.cpus.effective") == h.simulator.machine.online - CpuSet([2, 3])


async def test_written_mems_move_the_pages() -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1", {"limits.memory": "1GiB"})
        await h.simulator.start(key)
        files = CgroupFiles(h.simulator.cgroup, h.simulator.procfs)
        total = sum((files.memory_by_node(h.path(key, "")) or {}).values())
        files.write_mems(h.path(key, ""), NodeSet([2]))
        await until(lambda: h.path(key, "cpuset.mems.effective").read_text().strip() == "2")
        pages = files.memory_by_node(h.path(key, "")) or {}
        assert {node for node, size in pages.items() if size} == {2}
        assert pages[2] == pytest.approx(total, rel=0.01)


async def test_the_first_mems_of_a_group_that_its_process_was_born_in_move_nothing() -> None:
    async with host(replace(CALM, born_inside=True)) as h:
        key = h.simulator.create("c1", {"limits.memory": "1GiB"})
        await h.simulator.start(key)
        group, files = h.path(key, ""), CgroupFiles(h.simulator.cgroup, h.simulator.procfs)

        async def written(*lines: str) -> set[int]:
            """The nodes with pages after these lines were written to cpuset.mems."""
            await asyncio.to_thread(h.simulator.write, group / "cpuset.mems", lines)
            return {node for node, size in (files.memory_by_node(group) or {}).items() if size}

        before = await written()
        target = str(min(node for node in range(4) if node not in before))
        # Nor does one that changes nothing tell the kernel where pages can be.
        assert await written("0-3") == before
        assert await written(target) == before
        assert await written(target) == before
        assert await written("0-3", target) == {int(target)}


async def test_unbinding_leaves_the_pages_where_they_are() -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        files = CgroupFiles(h.simulator.cgroup, h.simulator.procfs)
        files.write_mems(h.path(key, ""), NodeSet([2]))
        h.simulator.settle()
        before = files.memory_by_node(h.path(key, ""))
        files.write_mems(h.path(key, ""), NodeSet())
        h.simulator.settle()
        assert files.memory_by_node(h.path(key, "")) == before
        assert h.path(key, "cpuset.mems.effective").read_text().strip() == "0-3"


@pytest.mark.parametrize(("file", "text"), [("cpuset.cpus", "0-99"), ("cpuset.mems", "9"), ("cpuset.cpus", "nonsense")])
async def test_what_a_kernel_refuses_is_put_back(file: str, text: str) -> None:
    async with host(CALM) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        before = h.path(key, file).read_text().strip()
        h.path(key, file).write_text(f"{text}\n")
        await until(lambda: h.simulator.kernel.refused)
        assert h.simulator.kernel.refused == [(key, file, text)]
        assert h.path(key, file).read_text().strip() == before


async def test_foreign_writes_are_marked_and_the_servers_own_are_not() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "2"})
        await h.simulator.start(key)
        await h.simulator.balanced()
        h.path(key, "cpuset.cpus").write_text("0-3\n")
        await until(lambda: any(mark.what == "cpuset.cpus" for mark in h.simulator.measurements.marks[key]))
        marks = [(mark.what, mark.value) for mark in h.simulator.measurements.marks[key]]
        assert marks[-1] == ("cpuset.cpus", "0-3")
        assert [what for what, _ in marks].count("cpuset.cpus") == 1


async def test_without_watches_values_follow_when_told() -> None:
    async with host(replace(CALM, watches=False)) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        h.path(key, "cpuset.cpus").write_text("2-3\n")
        h.simulator.settle()
        assert str(h.cpus(key, "cpuset.cpus.effective")) == "2-3"


async def test_payload_group_is_found_by_name_and_by_pid() -> None:
    async with host(replace(CALM, projects={"web": {}})) as h:
        for key in (h.simulator.create("c1"), h.simulator.create("c2", project="web")):
            await h.simulator.start(key)
            files = CgroupFiles(h.simulator.cgroup, h.simulator.procfs)
            assert files.find(key) == h.path(key, "")
            assert files.find_by_pid(key, h.simulator.incus.get(key).pid) == h.path(key, "")
            assert files.check() == ()
