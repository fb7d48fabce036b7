"""What changes while a host runs: that it is noticed, and which CPUs are then isolated."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.topology import fingerprint, sysfs

FILES = {
    "sys/devices/system/cpu/online": "0-7",
    "sys/devices/system/cpu/isolated": "",
    "sys/devices/system/node/online": "0-1",
    "sys/devices/system/node/has_cpu": "0-1",
    "sys/devices/system/node/has_memory": "0-1",
    "sys/fs/cgroup/cpuset.cpus.isolated": "",
    "sys/fs/cgroup/cpuset.cpus.effective": "0-7",
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nHugetlb:               0 kB",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f"{text}\n")


def read(root: Path) -> tuple[str, ...]:
    return fingerprint.read_fingerprint(root / "sys", root / "proc")


@pytest.mark.parametrize("name", [name for name in FILES if name != "proc/meminfo"])
def test_every_set_of_the_kernel_is_noticed_when_it_changes_or_goes(root: Path, name: str) -> None:
    before = read(root)
    write(root, name, "3")
    changed = read(root)
    (root / name).unlink()
    assert len({before, changed}) == 2
    assert read(root) != changed


@pytest.mark.parametrize(
    ("old", "new", "noticed"),
    [
        ("16777216", "16908288", True),
        ("16777216", "16777300", False),
        ("1000000", "2000000", False),
        ("Hugetlb:               0", "Hugetlb:         1048576", True),
    ],
)
def test_memory_that_is_plugged_in_or_set_aside_is_noticed_and_its_use_is_not(
    root: Path, old: str, new: str, noticed: bool
) -> None:
    before = read(root)
    write(root, "proc/meminfo", FILES["proc/meminfo"].replace(old, new))
    assert (read(root) != before) is noticed


def test_a_host_that_shows_nothing_never_changes(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == read(tmp_path / "none")


@pytest.mark.parametrize(
    ("files", "isolated"),
    [
        ({}, ""),
        ({"sys/devices/system/cpu/isolated": "6-7"}, "6-7"),
        ({"sys/fs/cgroup/cpuset.cpus.isolated": "2-3"}, "2-3"),
        ({"sys/fs/cgroup/cpuset.cpus.effective": "0-3"}, "4-7"),
        ({"sys/devices/system/cpu/isolated": "7", "sys/fs/cgroup/cpuset.cpus.effective": "0-1,3-7"}, "2,7"),
        ({"sys/fs/cgroup/cpuset.cpus.effective": ""}, ""),
        ({"sys/fs/cgroup/cpuset.cpus.isolated": "nonsense"}, ""),
    ],
)
def test_cpus_that_the_kernel_keeps_for_others_are_isolated(root: Path, files: dict[str, str], isolated: str) -> None:
    for name, text in files.items():
        write(root, name, text)
    assert sysfs.read_machine(root / "sys", root / "proc").isolated == CpuSet.parse(isolated)
