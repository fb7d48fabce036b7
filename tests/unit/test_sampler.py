"""Counters of instances and nodes: what the kernel's files say, and nothing where they are missing or odd."""

from __future__ import annotations

import os
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.host import counters
from incus_numa.host.sampler import SPARE_DESCRIPTORS, Sampler
from incus_numa.model.sample import InstanceSample, NodeSample

CPU_STAT = """\
usage_usec 5123456
user_usec 5000000
system_usec 123456
nice_usec 0
core_sched.force_idle_usec 0
nr_periods 12
nr_throttled 3
throttled_usec 250000
nr_bursts 0
burst_usec 0
"""
PRESSURE = """\
some avg10=1.95 avg60=1.58 avg300=1.02 total={some}
full avg10=0.00 avg60=0.00 avg300=0.00 total=77
"""
NUMA_STAT = "anon N0=4096 N1=0 N8=1048576\nfile N0=8192 N1=0 N8=0\nanon_thp N0=0 N1=0 N8=0\n"
FILES = {
    "cpu.stat": CPU_STAT,
    "cpu.pressure": PRESSURE.format(some=1500000),
    "memory.pressure": PRESSURE.format(some=20),
    "memory.numa_stat": NUMA_STAT,
}
READ = InstanceSample(
    at_s=0, cpu_s=5.123456, waiting_s=1.5, stalled_s=0.00002, throttled_s=0.25, memory_by_node={0: 4096, 8: 1048576}
)

PROC_STAT = """\
cpu  2483336 29495 413362 2016498 20958 7 10778 43570 900 9
cpu0 100 20 30 1000 400 5 6 900 70 10
cpu1 200 0 0 1000 400 0 0 0 0 0
cpu3 300 0 0 1000 400 0 0 0 0 0
intr 31240786 0 0 12
ctxt 2000
"""
MEMINFO = """\
Node 1 MemTotal:       16869588 kB
Node 1 MemFree:        16351076 kB
Node 1 MemUsed:          518512 kB
"""
NUMASTAT = "numa_hit 98376814\nnuma_miss 12\nnuma_foreign 5\ninterleave_hit 1129\nlocal_node 9\nother_node 0\n"
# Of a virtual machine: its program, its heap, shared memory, huge pages, and a mapping that was never used.
NUMA_MAPS = """\
5629284b1000 default file=/usr/bin/qemu-system-x86_64 mapped=2 N0=2 kernelpagesize_kB=4
5629284bc000 default heap anon=4 dirty=4 active=0 N0=1 N1=3 kernelpagesize_kB=4
7fa90ef80000 bind:1 file=/memfd:memory-backend-memfd\\040(deleted) dirty=10 N1=10 kernelpagesize_kB=4
7fa90ef90000 bind:1 file=/dev/hugepages/qemu huge anon=2 dirty=2 N1=2 kernelpagesize_kB=2048
7fa90efa0000 default stack
"""
TICKS = os.sysconf("SC_CLK_TCK")


def _group(root: Path, files: dict[str, str]) -> Path:
    group = root / "lxc.payload.c1"
    group.mkdir()
    for name, text in files.items():
        (group / name).write_text(text)
    return group


def _process(root: Path, *, user: int = 250, system: int = 50, started: int = 999, name: str = "qemu") -> Path:
    folder = root / "proc/7"
    folder.mkdir(parents=True, exist_ok=True)
    rest = ["0"] * 49
    rest[10], rest[11], rest[18], rest[39] = str(user), str(system), str(started), "200"
    (folder / "stat").write_text(f"7 ({name}) S {' '.join(rest)}\n")
    return folder


def _sampler(root: Path) -> Sampler:
    return Sampler(root / "proc", root / "sys")


def _timeless(sample: InstanceSample) -> InstanceSample:
    return replace(sample, at_s=0)


def test_container_is_sampled_from_its_four_files(tmp_path: Path) -> None:
    assert _timeless(_sampler(tmp_path).sample_instance(_group(tmp_path, FILES))) == READ


@pytest.mark.parametrize("kept", [True, False])
def test_second_sample_has_what_the_files_say_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    group, reader = _group(tmp_path, FILES), _sampler(tmp_path)
    first = reader.sample_instance(group)
    (group / "cpu.stat").write_text(CPU_STAT.replace("5123456", "6000000"))
    (group / "memory.numa_stat").write_text("anon N0=0 N1=0 N8=0\n")
    second = reader.sample_instance(group)
    assert second == replace(READ, at_s=second.at_s, cpu_s=6.0, memory_by_node={})
    assert second.at_s > first.at_s


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("text", [None, "", "\n", "usage_usec", "some avg10=0.00\n", "anon N0=\n", "x -1\n"])
def test_missing_or_odd_file_makes_its_values_unknown_and_no_others(
    tmp_path: Path, name: str, text: str | None
) -> None:
    files = {one: content for one, content in FILES.items() if one != name} | ({} if text is None else {name: text})
    lacking = {
        "cpu.stat": replace(READ, cpu_s=None, throttled_s=None),
        "cpu.pressure": replace(READ, waiting_s=None),
        "memory.pressure": replace(READ, stalled_s=None),
        "memory.numa_stat": replace(READ, memory_by_node=None),
    }
    assert _timeless(_sampler(tmp_path).sample_instance(_group(tmp_path, files))) == lacking[name]


def test_file_that_appears_later_is_read_from_then_on(tmp_path: Path) -> None:
    group = _group(tmp_path, {name: text for name, text in FILES.items() if name != "memory.pressure"})
    reader = _sampler(tmp_path)
    assert reader.sample_instance(group).stalled_s is None
    (group / "memory.pressure").write_text(FILES["memory.pressure"])
    assert _timeless(reader.sample_instance(group)) == READ


def test_group_that_is_gone_is_unknown_and_one_that_comes_back_is_read_anew(tmp_path: Path) -> None:
    group, reader = _group(tmp_path, FILES), _sampler(tmp_path)
    assert reader.sample_instance(group).cpu_s == 5.123456
    shutil.rmtree(group)
    assert _timeless(reader.sample_instance(group)) == InstanceSample(at_s=0)
    _group(tmp_path, FILES | {"cpu.stat": "usage_usec 1000000\nthrottled_usec 0\n"})
    assert _timeless(reader.sample_instance(group)) == replace(READ, cpu_s=1.0, throttled_s=0.0)


def test_container_that_was_started_again_between_samples_is_read_anew(tmp_path: Path) -> None:
    group, reader = _group(tmp_path, FILES), _sampler(tmp_path)
    reader.sample_instance(group)
    shutil.rmtree(group)
    _group(tmp_path, FILES | {"cpu.stat": "usage_usec 1000000\nthrottled_usec 0\n"})
    assert _timeless(reader.sample_instance(group)) == replace(READ, cpu_s=1.0, throttled_s=0.0)


def test_files_of_containers_that_left_are_closed(tmp_path: Path) -> None:
    group, reader = _group(tmp_path, FILES), _sampler(tmp_path)
    before = _open_files()
    reader.sample_instance(group)
    reader.sample_nodes({})
    assert len(_open_files() - before) == 4
    reader.sample_nodes({})
    assert _open_files() == before


def test_no_more_files_stay_open_than_the_limit_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (SPARE_DESCRIPTORS + 7, 1 << 20))
    reader, before, groups = _sampler(tmp_path), _open_files(), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        groups.append(_group(tmp_path / name, FILES))
    assert [_timeless(reader.sample_instance(group)) for group in groups] == [READ, READ]
    assert len(_open_files() - before) == 4


def test_no_file_stays_open_without_the_sampler(tmp_path: Path) -> None:
    group, before = _group(tmp_path, FILES), _open_files()
    _sampler(tmp_path).sample_instance(group)
    assert _open_files() == before


def _open_files() -> set[str]:
    return {f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{one}")}


def test_group_without_bandwidth_control_has_no_throttling(tmp_path: Path) -> None:
    group = _group(tmp_path, FILES | {"cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n"})
    assert _timeless(_sampler(tmp_path).sample_instance(group)) == replace(READ, cpu_s=0.0, throttled_s=None)


def test_neither_group_nor_pid_is_unknown(tmp_path: Path) -> None:
    assert _timeless(_sampler(tmp_path).sample_instance(None)) == InstanceSample(at_s=0)


def test_virtual_machine_is_sampled_from_its_process(tmp_path: Path) -> None:
    (_process(tmp_path) / "numa_maps").write_text(NUMA_MAPS)
    found = _sampler(tmp_path).sample_instance(None, 7)
    memory = {0: 4096, 1: 13 * 4096 + 2 * (2 << 20)}
    assert _timeless(found) == InstanceSample(at_s=0, cpu_s=300 / TICKS, memory_by_node=memory)


@pytest.mark.parametrize("name", ["qemu", "a b", "x) R 1 2 3", "((", ")"])
def test_name_of_a_process_is_never_taken_for_numbers(tmp_path: Path, name: str) -> None:
    _process(tmp_path, name=name)
    assert _sampler(tmp_path).sample_instance(None, 7).cpu_s == 300 / TICKS


@pytest.mark.parametrize("text", ["", "7 (qemu", "7 (qemu) S 1 2", "7 (qemu) S" + " x" * 49])
def test_odd_process_is_unknown(tmp_path: Path, text: str) -> None:
    folder = _process(tmp_path)
    (folder / "numa_maps").write_text(NUMA_MAPS)
    (folder / "stat").write_text(text)
    assert _timeless(_sampler(tmp_path).sample_instance(None, 7)) == InstanceSample(at_s=0)


def test_memory_of_a_virtual_machine_is_read_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder, reader = _process(tmp_path), _sampler(tmp_path)
    found = []
    for after, pages in ((0, 1), (30, 2), (59.9, 3), (60, 4), (61, 5)):
        clock[0] = 1000.0 + after
        (folder / "numa_maps").write_text(f"7f0000 default anon={pages} N2={pages} kernelpagesize_kB=4\n")
        found.append(reader.sample_instance(None, 7).memory_by_node)
    assert found == [{2: 4096}, {2: 4096}, {2: 4096}, {2: 16384}, {2: 16384}]


def test_memory_that_takes_long_to_read_is_read_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]

    def passing() -> float:
        clock[0] += 2.0
        return clock[0]

    monkeypatch.setattr(time, "monotonic", passing)
    folder, reader = _process(tmp_path), _sampler(tmp_path)
    found = []
    for after, pages in ((0, 1), (180, 2), (210, 3)):
        clock[0] = 1000.0 + after
        (folder / "numa_maps").write_text(f"7f0000 default anon={pages} N2={pages} kernelpagesize_kB=4\n")
        found.append(reader.sample_instance(None, 7).memory_by_node)
    assert found == [{2: 4096}, {2: 4096}, {2: 12288}]


def test_pid_of_another_process_is_unknown_once(tmp_path: Path) -> None:
    reader = _sampler(tmp_path)
    _process(tmp_path)
    reader.sample_instance(None, 7)
    _process(tmp_path, user=500, started=12345)
    assert _timeless(reader.sample_instance(None, 7)) == InstanceSample(at_s=0)
    assert reader.sample_instance(None, 7).cpu_s == 550 / TICKS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7f0000 default file=/usr/bin/qemu mapped=2 N0=2 kernelpagesize_kB=4\n",
        "7f0000 default anon=2 N0=2\n",
        "7f0000 default anon=2 N0=2 N1=x kernelpagesize_kB=4\n",
        "7f0000 default anon=2 N0=-2 N1=2 kernelpagesize_kB=4\n",
    ],
)
def test_odd_mappings_are_unknown(text: str) -> None:
    assert counters.parse_numa_maps(text.encode()) is None


def test_mappings_longer_than_one_read_are_read_to_the_end(tmp_path: Path) -> None:
    line = "7f0000 default anon=1 dirty=1 N0=1 kernelpagesize_kB=4\n"
    (_process(tmp_path) / "numa_maps").write_text(line * 5000)
    assert _sampler(tmp_path).sample_instance(None, 7).memory_by_node == {0: 5000 * 4096}


def _host(root: Path) -> Sampler:
    (root / "proc").mkdir()
    (root / "proc/stat").write_text(PROC_STAT)
    folder = root / "sys/devices/system/node/node1"
    folder.mkdir(parents=True)
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "numastat").write_text(NUMASTAT)
    return _sampler(root)


def test_nodes_are_sampled_from_three_files(tmp_path: Path) -> None:
    # Guest time is in user time already; idle, waiting for disks, and stolen time are not busy.
    busy = 100 + 20 + 30 + 5 + 6
    assert _host(tmp_path).sample_nodes({1: CpuSet([0, 1]), 2: CpuSet([3]), 5: CpuSet()}) == {
        1: NodeSample(busy_s=(busy + 200) / TICKS, free_bytes=16351076 << 10, hits=98376814, misses=12),
        2: NodeSample(busy_s=300 / TICKS),
        5: NodeSample(busy_s=0.0),
    }


def test_node_with_a_cpu_that_went_offline_has_no_busy_time(tmp_path: Path) -> None:
    assert _host(tmp_path).sample_nodes({2: CpuSet([2, 3])}) == {2: NodeSample()}


@pytest.mark.parametrize("text", [None, "", "cpu 1 2\n", "cpu3 x 0 0 1 2 3 4 5\n", "intr 5\ncpu3 300 0 0 1 2 3 4 5\n"])
def test_odd_stat_makes_busy_time_unknown(tmp_path: Path, text: str | None) -> None:
    reader = _host(tmp_path)
    (tmp_path / "proc/stat").unlink()
    if text is not None:
        (tmp_path / "proc/stat").write_text(text)
    assert reader.sample_nodes({2: CpuSet([3]), 5: CpuSet()}) == {2: NodeSample(), 5: NodeSample()}


@pytest.mark.parametrize("text", ["", "Node 1 MemFree: 12 MB\n", "Node 1 MemFree: x kB\n", "MemTotal: 5 kB\n"])
def test_odd_meminfo_makes_free_memory_unknown(tmp_path: Path, text: str) -> None:
    reader = _host(tmp_path)
    (tmp_path / "sys/devices/system/node/node1/meminfo").write_text(text)
    assert reader.sample_nodes({1: CpuSet([3])})[1] == NodeSample(busy_s=300 / TICKS, hits=98376814, misses=12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"usage_usec 12\n", 12),
        (b"a 1\nusage_usec 12\nb 2\n", 12),
        (b"usage_usec 12", None),
        (b"my_usage_usec 12\n", None),
        (b"usage_usec -12\n", None),
        (b"usage_usec 1_2\n", None),
        (b"usage_usec 1 2\n", None),
        (b"usage_usec  12\n", None),
        (b"usage_usec 123456789012345678901\n", None),
    ],
)
def test_only_a_whole_line_of_the_name_and_a_number_is_a_value(text: bytes, value: int | None) -> None:
    assert counters.parse_flat(text, b"usage_usec") == value


@pytest.mark.parametrize(
    "text", [b"anon N0=1", b"anon\n", b"anon N0\n", b"anon N0=1 N1\n", b"anon N0=1_0\n", b"anon N0=1,N1=2\n", b"N0=1\n"]
)
def test_odd_memory_line_is_unknown(text: bytes) -> None:
    assert counters.parse_anonymous(text) is None
