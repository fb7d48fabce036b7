"""Files of cgroup v1: which hierarchy it is, what a group has, and that no write asks the kernel for the impossible."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError
from incus_numa.host import legacy_cgroup
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.group_counters import PAGE_BYTES
from incus_numa.host.legacy_cgroup import LegacyCgroupFiles
from incus_numa.host.sampler import Sampler
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.trees import put

KEY = InstanceKey("default", "c1")
ALL = "0-7"
NAMES = ("cpuset.cpus", "cpuset.mems")


def make_group(mount: Path, path: str, cpus: str = ALL, mems: str = "0-3", procs: str = "") -> Path:
    group = mount / "cpuset" / path
    put(group / "cpuset.cpus", f"{cpus}\n")
    put(group / "cpuset.mems", f"{mems}\n")
    put(group / "cpuset.effective_cpus", f"{cpus}\n")
    put(group / "cpuset.effective_mems", f"{mems}\n")
    put(group / "cpuset.memory_migrate", "0\n")
    put(group / "cgroup.procs", procs)
    return group


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    mount = tmp_path / "cgroup"
    make_group(mount, "", procs="1\n")
    (mount / "memory").mkdir()
    return mount


@pytest.fixture
def files(mount: Path) -> CgroupFiles:
    return legacy_cgroup.cgroup_files(mount, mount.parent / "proc")


def test_host_with_cpusets_in_v2_uses_them(mount: Path) -> None:
    put(mount / "cgroup.controllers", "cpuset cpu\n")
    assert type(legacy_cgroup.cgroup_files(mount, mount)) is CgroupFiles


@pytest.mark.parametrize("unified", [None, "", "cpu memory\n"])
def test_host_with_cpusets_in_v1_uses_those(mount: Path, unified: str | None) -> None:
    if unified is not None:
        put(mount / "cgroup.controllers", unified)
    assert type(legacy_cgroup.cgroup_files(mount, mount)) is LegacyCgroupFiles


def test_host_without_any_says_so(tmp_path: Path) -> None:
    (problem,) = legacy_cgroup.cgroup_files(tmp_path, tmp_path).check()
    assert "is no cgroup v2 hierarchy" in problem


def test_good_host_has_no_problem(files: CgroupFiles) -> None:
    assert files.check() == ()


def test_host_without_the_memory_hierarchy_says_so(files: CgroupFiles, mount: Path) -> None:
    (mount / "memory").rmdir()
    (problem,) = files.check()
    assert "where containers have their memory is not known" in problem


def test_group_is_found_by_its_name_while_it_has_processes(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1")
    assert files.find(KEY) is None
    make_group(mount, "lxc.payload.c1/inside", procs="17\n")
    assert files.find(KEY) == group


@pytest.mark.parametrize(
    "text",
    [
        "9:cpuset:/lxc.payload.c1\n1:name=systemd:/lxc.payload.c1/init.scope\n",
        "12:memory:/other\n4:cpu,cpuacct:/x\n3:cpuset:/lxc.payload.c1/docker/abc\n0::/lxc.payload.c2\n",
        "3:cpuset,hugetlb:/lxc.payload.c1\n",
    ],
)
def test_group_is_found_by_pid_in_the_hierarchy_of_cpusets(files: CgroupFiles, mount: Path, text: str) -> None:
    group = make_group(mount, "lxc.payload.c1")
    put(mount.parent / "proc/17/cgroup", text)
    assert files.find_by_pid(KEY, 17) == group


@pytest.mark.parametrize("text", ["0::/lxc.payload.c1\n", "3:memory:/lxc.payload.c1\n", "3:cpuset:/\n", "cpuset\n"])
def test_process_elsewhere_has_no_group(files: CgroupFiles, mount: Path, text: str) -> None:
    make_group(mount, "lxc.payload.c1")
    put(mount.parent / "proc/17/cgroup", text)
    assert files.find_by_pid(KEY, 17) is None


def test_memory_is_counted_in_pages_with_all_groups_inside(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1")
    put(
        mount / "memory/lxc.payload.c1/memory.numa_stat",
        "total=9 N0=4 N1=5\nanon=1 N0=1 N1=0\nhierarchical_total=9 N0=4 N1=5\nhierarchical_anon=5 N0=2 N1=3\n",
    )
    put(mount / "memory/lxc.payload.c1/memory.usage_in_bytes", "36864\n")
    assert files.memory_by_node(group) == {0: 2 * PAGE_BYTES, 1: 3 * PAGE_BYTES}
    assert files.memory_usage(group) == 36864


@pytest.mark.parametrize("text", ["", "anon=x N0=y\n", "hierarchical_file=5 N0=5\n", "anon=5 N0=5"])
def test_memory_that_cannot_be_read_is_unknown(files: CgroupFiles, mount: Path, text: str) -> None:
    group = make_group(mount, "lxc.payload.c1")
    assert (files.memory_by_node(group), files.memory_usage(group)) == (None, None)
    put(mount / "memory/lxc.payload.c1/memory.numa_stat", text)
    assert files.memory_by_node(group) is None


def test_cpus_and_memory_are_written_and_memory_moves(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1")
    files.write_cpus(group, CpuSet.parse("2-3"))
    assert (group / "cpuset.memory_migrate").read_text() == "0\n"
    files.write_mems(group, NodeSet([1]))
    assert [(group / name).read_text() for name in NAMES] == ["2-3\n", "1\n"]
    assert (group / "cpuset.memory_migrate").read_text() == "1\n"


def test_unbinding_writes_all_nodes(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1", mems="1")
    files.write_mems(group, NodeSet())
    assert (group / "cpuset.mems").read_text() == "0-3\n"


def test_what_is_around_is_widened_first(files: CgroupFiles, mount: Path) -> None:
    outer = make_group(mount, "machine", cpus="0-1")
    group = make_group(mount, "machine/lxc.payload.c1", cpus="0-1")
    files.write_cpus(group, CpuSet.parse("1,4"))
    assert [(one / "cpuset.cpus").read_text() for one in (mount / "cpuset", outer, group)] == [
        f"{ALL}\n",
        "0-1,4\n",
        "1,4\n",
    ]


def test_groups_inside_follow_and_keep_their_part(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1", cpus="0-3")
    same = make_group(mount, "lxc.payload.c1/same", cpus="0-3")
    part = make_group(mount, "lxc.payload.c1/same/part", cpus="2-3")
    lost = make_group(mount, "lxc.payload.c1/lost", cpus="0")
    empty = make_group(mount, "lxc.payload.c1/empty", cpus="")
    files.write_cpus(group, CpuSet.parse("2,6"))
    found = {one: CpuSet.parse((one / "cpuset.cpus").read_text()) for one in (group, same, part, lost, empty)}
    both = CpuSet([2, 6])
    assert found == {group: both, same: both, part: CpuSet([2]), lost: both, empty: CpuSet()}


def test_removed_group_is_gone(files: CgroupFiles, mount: Path) -> None:
    group = mount / "cpuset/lxc.payload.c1"
    with pytest.raises(GoneError):
        files.read(group)
    with pytest.raises(GoneError):
        files.write_cpus(group, CpuSet([1]))
    with pytest.raises(GoneError):
        files.write_mems(group, NodeSet([1]))
    assert not group.exists()


class Strict(LegacyCgroupFiles):
    """As a kernel: a write that asks for the impossible fails the test."""

    def _write(self, path: Path, *texts: str) -> None:
        super()._write(path, *texts)
        if path.name in NAMES:
            for folder in (path.parent, *path.parent.iterdir()):
                if (folder / path.name).exists() and folder != self._root:
                    inner = CpuSet.parse((folder / path.name).read_text())
                    assert inner <= CpuSet.parse((folder.parent / path.name).read_text()), (folder, path, texts)
                    assert inner


SETS = st.frozensets(st.integers(0, 7), min_size=1)


@given(
    groups=st.lists(st.tuples(st.integers(0, 5), SETS), min_size=1, max_size=6),
    wanted=SETS,
    target=st.integers(0, 5),
    name=st.sampled_from(NAMES),
)
def test_every_write_is_one_that_a_kernel_takes(
    groups: list[tuple[int, frozenset[int]]], wanted: frozenset[int], target: int, name: str
) -> None:
    with TemporaryDirectory() as folder:
        mount = Path(folder)
        made = [make_group(mount, "", mems=ALL)]
        for number, (above, ids) in enumerate(groups):
            around = made[above % len(made)]
            has = CpuSet.parse((around / name).read_text())
            text = str(has & CpuSet(ids) or has)
            path = str((around / f"g{number}").relative_to(mount / "cpuset"))
            made.append(make_group(mount, path, cpus=text, mems=text))
        group = made[1 + target % len(groups)]
        files = Strict(mount, mount)
        if name == "cpuset.cpus":
            files.write_cpus(group, CpuSet(wanted))
        else:
            files.write_mems(group, NodeSet(wanted))
        assert CpuSet.parse((group / name).read_text()) == CpuSet(wanted)


def test_counters_of_a_group_are_read_from_three_hierarchies(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1")
    put(mount / "cpuacct/lxc.payload.c1/cpuacct.usage", "2500000000\n")
    put(mount / "cpu/lxc.payload.c1/cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 500000000\n")
    put(mount / "memory/lxc.payload.c1/memory.numa_stat", "hierarchical_anon=3 N0=0 N1=3\n")
    sample = Sampler(mount, mount, files.counters).sample_instance(group)
    assert (sample.cpu_s, sample.throttled_s, sample.memory_by_node) == (2.5, 0.5, {1: 3 * PAGE_BYTES})
    assert (sample.waiting_s, sample.stalled_s) == (None, None)


def test_counters_that_are_not_there_are_unknown(files: CgroupFiles, mount: Path) -> None:
    group = make_group(mount, "lxc.payload.c1")
    sample = Sampler(mount, mount, files.counters).sample_instance(group)
    assert (sample.cpu_s, sample.throttled_s, sample.memory_by_node) == (None, None, None)
