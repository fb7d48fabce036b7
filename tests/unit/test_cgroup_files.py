"""Payload cgroups as files: found by name or pid, read, written and verified; what is missing is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host.cgroup import MARK, CgroupFiles, GroupState, write_lines
from incus_numa.model.instance import InstanceKey
from incus_numa.model.snapshot import Decided

KEY = InstanceKey("default", "c1")
DECIDED = Decided(nodes=NodeSet([0, 2]), cpus=CpuSet([0, 1, 8]))


@pytest.fixture
def files(tmp_path: Path) -> CgroupFiles:
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup/cpuset.mems.effective").write_text("0-3\n")
    return CgroupFiles(tmp_path / "cgroup", tmp_path / "proc")


def _group(tmp_path: Path, name: str = "lxc.payload.c1", *, cpus: str = "", mems: str = "") -> Path:
    group = tmp_path / "cgroup" / name
    group.mkdir(parents=True)
    (group / "cpuset.cpus").write_text(f"{cpus}\n")
    (group / "cpuset.mems").write_text(f"{mems}\n")
    return group


def _process(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(text)


def test_good_host_has_no_problem(files: CgroupFiles) -> None:
    assert files.check() == ()


def test_host_without_cgroup_v2_says_how_to_get_it(tmp_path: Path) -> None:
    (problem,) = CgroupFiles(tmp_path / "none", tmp_path).check()
    assert "no cgroup v2 hierarchy" in problem
    assert "systemd.unified_cgroup_hierarchy=1" in problem


def test_host_without_the_cpuset_controller_says_so(files: CgroupFiles, tmp_path: Path) -> None:
    (tmp_path / "cgroup/cgroup.controllers").write_text("cpu cpuset2 io\n")
    (problem,) = files.check()
    assert "no cpuset controller" in problem


def test_group_of_the_default_project_has_the_bare_name(files: CgroupFiles, tmp_path: Path) -> None:
    assert files.find(KEY) is None
    group = _group(tmp_path)
    assert files.find(KEY) == group


def test_group_of_another_project_has_its_name_in_front(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path, "lxc.payload.web_c1")
    assert files.find(InstanceKey("web", "c1")) == group
    assert files.find(KEY) is None


def test_group_without_cpuset_files_is_none(files: CgroupFiles, tmp_path: Path) -> None:
    (tmp_path / "cgroup/lxc.payload.c1").mkdir()
    assert files.find(KEY) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0::/lxc.payload.c1\n", "lxc.payload.c1"),
        ("0::/lxc.payload.c1/init.scope\n", "lxc.payload.c1"),
        ("0::/a.slice/lxc.payload.c1/b/c\n", "a.slice/lxc.payload.c1"),
        ("4:cpuset:/x\n0::/lxc.payload.c1\n", "lxc.payload.c1"),
    ],
)
def test_group_is_found_by_pid_however_deep(files: CgroupFiles, tmp_path: Path, text: str, name: str) -> None:
    group = _group(tmp_path, name)
    _process(tmp_path, text)
    assert files.find_by_pid(InstanceKey("default", "c1"), 7) == group


@pytest.mark.parametrize("text", ["0::/\n", "0::/system.slice/incus.service\n", "4:cpuset:/lxc.payload.c1\n", ""])
def test_process_outside_any_payload_has_no_group(files: CgroupFiles, tmp_path: Path, text: str) -> None:
    _group(tmp_path)
    _process(tmp_path, text)
    assert files.find_by_pid(InstanceKey("default", "c1"), 7) is None


def test_process_that_ended_has_no_group(files: CgroupFiles) -> None:
    assert files.find_by_pid(InstanceKey("default", "c1"), 7) is None


def test_empty_files_are_empty_sets(files: CgroupFiles, tmp_path: Path) -> None:
    assert files.read(_group(tmp_path)) == GroupState(cpus=CpuSet(), mems=NodeSet(), decided=None)


def test_sets_are_read(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path, cpus="0-3,8", mems="1")
    assert (files.read_cpus(group), files.read_mems(group)) == (CpuSet([0, 1, 2, 3, 8]), NodeSet([1]))


def test_garbage_is_reported_with_the_file(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path, cpus="0-x")
    with pytest.raises(ReportError, match=r"lxc\.payload\.c1/cpuset\.cpus: .*x"):
        files.read(group)


def test_removed_group_is_gone(files: CgroupFiles, tmp_path: Path) -> None:
    gone = tmp_path / "cgroup/lxc.payload.gone"
    with pytest.raises(GoneError, match="no longer exists"):
        files.read(gone)
    with pytest.raises(GoneError, match="no longer exists"):
        files.write_cpus(gone, CpuSet([1]))
    with pytest.raises(GoneError, match="no longer exists"):
        files.write_mems(gone, NodeSet([1]))


def test_writing_to_a_removed_group_makes_no_files(files: CgroupFiles, tmp_path: Path) -> None:
    gone = tmp_path / "cgroup/lxc.payload.gone"
    with pytest.raises(GoneError):
        files.mark(gone, DECIDED)
    assert not gone.exists()


def test_sets_are_written(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path, cpus="7", mems="1")
    files.write_cpus(group, CpuSet([0, 1, 2, 9]))
    assert (group / "cpuset.cpus").read_text() == "0-2,9\n"
    files.write_mems(group, NodeSet([2]))
    assert (group / "cpuset.mems").read_text() == "2\n"


@pytest.mark.parametrize(
    ("has", "wanted", "written"),
    [("", "2", ["2", "0-3", "2"]), ("1", "2", ["2"]), ("1", "", ["0-3"]), ("", "", ["0-3"])],
)
def test_memory_is_bound_twice_the_first_time_so_that_the_kernel_knows_where_from(
    tmp_path: Path, has: str, wanted: str, written: list[str]
) -> None:
    lines: list[str] = []

    def write(path: Path, texts: Sequence[str]) -> None:
        lines.extend(texts)
        write_lines(path, texts)

    group = _group(tmp_path, mems=has)
    for folder in (group, group.parent):
        (folder / "cpuset.mems.effective").write_text("0-3\n")
    CgroupFiles(tmp_path / "cgroup", tmp_path / "proc", write).write_mems(group, NodeSet.parse(wanted))
    assert lines == written
    assert (group / "cpuset.mems").read_text() == f"{written[-1]}\n"


def test_unbinding_writes_all_nodes_because_the_kernel_refuses_an_empty_set(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path, cpus="7", mems="1")
    files.write_mems(group, NodeSet())
    assert (group / "cpuset.mems").read_text() == "0-3\n"


def test_refused_write_is_reported_with_a_hint(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    (group / "cpuset.cpus").unlink()
    # The one file in any Linux that takes nothing: its ENOSPC is what an exclusive partition of CPUs gives.
    (group / "cpuset.cpus").symlink_to("/dev/full")
    with pytest.raises(ReportError, match=r"cannot write '1' to .*cpuset\.cpus.*cpuset\.cpus\.partition"):
        files.write_cpus(group, CpuSet([1]))


def test_file_that_is_a_folder_is_reported(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    (group / "cpuset.cpus").unlink()
    (group / "cpuset.cpus").mkdir()
    with pytest.raises(ReportError, match=os.strerror(errno.EISDIR)):
        files.read_cpus(group)


def test_mark_is_read_again(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    files.mark(group, DECIDED)
    assert files.read(group).decided == DECIDED


def test_mark_without_cpus_is_read_again(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    files.mark(group, Decided(nodes=NodeSet([3])))
    assert files.read(group).decided == Decided(nodes=NodeSet([3]))


def test_later_mark_replaces_the_earlier(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    files.mark(group, DECIDED)
    files.mark(group, Decided(nodes=NodeSet([1]), cpus=CpuSet([4])))
    assert files.read(group).decided == Decided(nodes=NodeSet([1]), cpus=CpuSet([4]))


def test_mark_is_forgotten(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    files.mark(group, DECIDED)
    files.unmark(group)
    files.unmark(group)
    assert files.read(group).decided is None


def test_mark_ends_with_its_group(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    files.mark(group, DECIDED)
    # Kept aside, so that the file system does not give its inode to the new one.
    group.rename(tmp_path / "old")
    assert files.read(_group(tmp_path)).decided is None


def test_mark_lives_in_memory_where_no_attribute_can_be_set(tmp_path: Path) -> None:
    # procfs has folders and no extended attributes, whoever asks.
    files = CgroupFiles(tmp_path, tmp_path)
    process = Path(f"/proc/{os.getpid()}")
    files.mark(process, DECIDED)
    assert files.read_mark(process) == DECIDED
    files.unmark(process)
    assert files.read_mark(process) is None


@pytest.mark.parametrize("text", ["", ";", "x;1", "0;x", ";1", "\ufffd"])
def test_mark_that_makes_no_sense_is_none(files: CgroupFiles, tmp_path: Path, text: str) -> None:
    group = _group(tmp_path)
    try:
        os.setxattr(group, MARK, text.encode())
    except OSError:
        pytest.skip("needs root and a file system with trusted attributes")
    assert files.read(group).decided is None


def test_mark_that_is_no_text_is_none(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    try:
        os.setxattr(group, MARK, b"\xff\xfe")
    except OSError:
        pytest.skip("needs root and a file system with trusted attributes")
    assert files.read(group).decided is None


def test_memory_by_node_is_the_anonymous_row(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    (group / "memory.numa_stat").write_text("file N0=1 N1=2\nanon N0=4096 N2=8192\nkernel_stack N0=0\n")
    assert files.memory_by_node(group) == {0: 4096, 2: 8192}


@pytest.mark.parametrize("text", ["", "anon N0\n", "anon Nx=1\n", "file N0=1\n"])
def test_memory_that_cannot_be_read_is_unknown(files: CgroupFiles, tmp_path: Path, text: str) -> None:
    group = _group(tmp_path)
    assert files.memory_by_node(group) is None
    (group / "memory.numa_stat").write_text(text)
    assert files.memory_by_node(group) is None


def test_use_of_memory_is_read_or_unknown(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    assert files.memory_usage(group) is None
    (group / "memory.current").write_text("4096\n")
    assert files.memory_usage(group) == 4096
    (group / "memory.current").write_text("max\n")
    assert files.memory_usage(group) is None


def test_effective_cpus_are_read_or_unknown(files: CgroupFiles, tmp_path: Path) -> None:
    group = _group(tmp_path)
    assert files.effective_cpus(group) is None
    (group / "cpuset.cpus.effective").write_text("0-3\n")
    assert files.effective_cpus(group) == CpuSet(range(4))


def test_a_pid_in_another_instances_group_does_not_lead_there(files: CgroupFiles, tmp_path: Path) -> None:
    _group(tmp_path, "lxc.payload.victim")
    _process(tmp_path, "0::/lxc.payload.victim\n")
    assert files.find_by_pid(InstanceKey("default", "c1"), 7) is None


def test_a_group_that_an_earlier_run_left_behind_is_not_the_instances(files: CgroupFiles, tmp_path: Path) -> None:
    left = _group(tmp_path)
    (left / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    now = _group(tmp_path, "lxc.payload.c1-1")
    _process(tmp_path, "0::/lxc.payload.c1-1\n")
    key = InstanceKey("default", "c1")
    assert (files.find(key), files.find_by_pid(key, 7)) == (None, now)
