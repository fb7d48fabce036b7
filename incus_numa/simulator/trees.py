"""Writes a machine as the kernel's `/sys` and `/proc` files, so that the real readers run on it.

Called by the simulator, and by tests that need a host in files. Formats: Documentation/ABI/stable/sysfs-devices-node,
Documentation/admin-guide/cputopology.rst, proc(5).
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import CpuSet, IdSet, NodeSet
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node

_COUNTERS = {CoreKind.PERFORMANCE: "cpu_core", CoreKind.EFFICIENCY: "cpu_atom"}
"""The performance counters of each kind of cores, as Intel's hybrid machines have them."""

_NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")

USER_HZ = 100
"""Clock ticks per second in `/proc`."""


@dataclass(kw_only=True, slots=True)
class CpuTime:
    """What a CPU has done since boot, while it was online, in seconds."""

    busy_s: float = 0.0
    idle_s: float = 0.0


def write_sysfs(root: Path, machine: Machine) -> None:
    """Write `devices/system/cpu` and `devices/system/node` under `root`. All CPUs of the machine are online."""
    write_online(root, machine, CpuSet(cpu.id for cpu in machine.cpus))


def write_online(root: Path, machine: Machine, online: CpuSet) -> None:
    """Bring what `write_sysfs` wrote to another set of online CPUs: an offline CPU loses topology, cache and node."""
    _write_sets(root, machine, online)
    cores: defaultdict[int, list[int]] = defaultdict(list)
    caches: defaultdict[int | None, list[int]] = defaultdict(list)
    for cpu in machine.cpus:
        cores[cpu.core].append(cpu.id)
        caches[cpu.l3].append(cpu.id)
    for cpu in machine.cpus:
        if cpu.id in online:
            folder = root / f"devices/system/cpu/cpu{cpu.id}"
            _write_topology(folder, cpu, CpuSet(cores[cpu.core]) & online)
            _write_cache(folder, cpu, CpuSet(caches[cpu.l3]) & online, _width(machine))
        else:
            _clear_cpu(root, cpu)
    for node in machine.nodes:
        _write_node(root, machine, node, online)
    for kind, name in _COUNTERS.items():
        if machine.cpus_by_kind:
            put(root / f"devices/{name}/cpus", f"{machine.cpus_by_kind.get(kind, CpuSet()) & online}\n")


def remove_gone(root: Path, before: Machine, now: Machine) -> None:
    """Remove the folders of nodes and CPUs that are no longer plugged in."""
    gone = {f"node/node{one}" for one in before.node_by_id.keys() - now.node_by_id.keys()}
    gone |= {f"cpu/cpu{one}" for one in before.cpu_by_id.keys() - now.cpu_by_id.keys()}
    for name in gone:
        shutil.rmtree(root / "devices/system" / name)


def write_procfs(root: Path, machine: Machine) -> None:
    """Write the machine-wide files of `/proc`, as on a host with cgroup v2 only."""
    write_meminfo(root, machine)
    put(root / "pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    put(root / "self/cgroup", "0::/system.slice/incus-numa.service\n")
    write_stat(root, {cpu.id: CpuTime() for cpu in machine.cpus}, CpuSet(cpu.id for cpu in machine.cpus))


def write_meminfo(root: Path, machine: Machine) -> None:
    """Write `meminfo` of `/proc`."""
    total, huge = machine.memory_bytes, sum(sum(node.hugepages.values()) for node in machine.nodes)
    free = sum(node.memory_bytes or 0 if node.free_bytes is None else node.free_bytes for node in machine.nodes)
    rows = {"MemTotal": total, "MemFree": free, "MemAvailable": free, "Hugetlb": huge}
    put(root / "meminfo", "".join(f"{name + ':':<15} {size >> 10} kB\n" for name, size in rows.items()))


def write_stat(root: Path, times: Mapping[int, CpuTime], online: CpuSet) -> None:
    """Write `stat` of `/proc`: a line for all CPUs and one for each that is online, in ticks since boot."""
    rows = {cpu: _ticks(times[cpu]) for cpu in sorted(times)}
    total = " ".join(str(sum(column)) for column in zip(*rows.values(), strict=True))
    lines = [f"cpu  {total}", *(f"cpu{cpu} {' '.join(map(str, rows[cpu]))}" for cpu in online)]
    lines += ["intr 0", "ctxt 0", "btime 1785542400", "processes 1", "procs_running 1", "procs_blocked 0", "softirq 0"]
    # It is longer than a page, so a reader could see half of an old and half of a new one if it were written over.
    fresh = root / "stat.new"
    put(fresh, "\n".join(lines) + "\n")
    os.replace(fresh, root / "stat")


def _ticks(time: CpuTime) -> tuple[int, ...]:
    # user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice: proc(5).
    busy = int(time.busy_s * USER_HZ)
    user = busy * 9 // 10
    return user, 0, busy - user, int(time.idle_s * USER_HZ), 0, 0, 0, 0, 0, 0


def scratch_root() -> Path | None:
    """Where to make the temporary folder of a simulator: in memory, as thousands of files are made; None if nowhere."""
    root = Path("/dev/shm")  # noqa: S108  Only the parent of a temporary folder.
    return root if os.access(root, os.W_OK) else None


def put(path: Path, text: str) -> None:
    """Write a file, with the folders above it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def render_mask(ids: IdSet, width: int) -> str:
    """The kernel's mask format for ids below `width`: comma-separated 32-bit words, highest first."""
    words = max(1, (width + 31) // 32)
    return ",".join(f"{ids.mask >> 32 * word & 0xFFFFFFFF:08x}" for word in reversed(range(words)))


def _write_sets(root: Path, machine: Machine, online: CpuSet) -> None:
    cpu_root, node_root = root / "devices/system/cpu", root / "devices/system/node"
    present = CpuSet(cpu.id for cpu in machine.cpus)
    put(cpu_root / "online", f"{online}\n")
    put(cpu_root / "offline", f"{present - online}\n")
    put(cpu_root / "present", f"{present}\n")
    put(cpu_root / "possible", f"{present}\n")
    put(cpu_root / "isolated", f"{machine.isolated}\n")
    nodes = NodeSet(node.id for node in machine.nodes)
    has_cpu = NodeSet(node.id for node in machine.nodes if node.cpus & online)
    put(node_root / "online", f"{nodes}\n")
    put(node_root / "possible", f"{nodes}\n")
    put(node_root / "has_cpu", f"{has_cpu}\n")
    put(node_root / "has_memory", f"{machine.memory_nodes}\n")
    put(node_root / "has_normal_memory", f"{machine.memory_nodes}\n")


def _write_topology(folder: Path, cpu: Cpu, siblings: CpuSet) -> None:
    topology = folder / "topology"
    put(topology / "thread_siblings_list", f"{siblings}\n")
    put(topology / "core_cpus_list", f"{siblings}\n")
    put(topology / "core_id", f"{cpu.core}\n")
    if cpu.socket is not None:
        put(topology / "physical_package_id", f"{cpu.socket}\n")
    # The boot CPU of most machines cannot be taken offline and has no such file.
    if cpu.id != 0:
        put(folder / "online", "1\n")
    link = folder / f"node{cpu.node}"
    if cpu.node is not None and not link.is_symlink():
        link.symlink_to(f"../../node/node{cpu.node}")


def _write_cache(folder: Path, cpu: Cpu, sharing: CpuSet, width: int) -> None:
    if cpu.l3 is None:
        return
    cache = folder / "cache/index3"
    for name, value in (("level", "3"), ("type", "Unified"), ("size", "32768K"), ("id", f"{cpu.l3}")):
        put(cache / name, f"{value}\n")
    put(cache / "shared_cpu_list", f"{sharing}\n")
    put(cache / "shared_cpu_map", f"{render_mask(sharing, width)}\n")


def _clear_cpu(root: Path, cpu: Cpu) -> None:
    folder = root / f"devices/system/cpu/cpu{cpu.id}"
    shutil.rmtree(folder / "topology", ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if cpu.node is not None:
        (folder / f"node{cpu.node}").unlink(missing_ok=True)
    put(folder / "online", "0\n")


def _write_node(root: Path, machine: Machine, node: Node, online: CpuSet) -> None:
    folder = root / f"devices/system/node/node{node.id}"
    put(folder / "cpulist", f"{node.cpus & online}\n")
    put(folder / "cpumap", f"{render_mask(node.cpus & online, _width(machine))}\n")
    distances = [node.distances.get(other.id) for other in machine.nodes]
    if None not in distances:
        put(folder / "distance", " ".join(str(distance) for distance in distances) + "\n")
    put(folder / "numastat", "".join(f"{name} 0\n" for name in _NUMASTAT))
    if node.memory_bytes is None:
        return
    for size, amount in node.hugepages.items():
        put(folder / f"hugepages/hugepages-{size >> 10}kB/nr_hugepages", f"{amount // size}\n")
    free = node.memory_bytes if node.free_bytes is None else node.free_bytes
    rows = (("MemTotal", node.memory_bytes), ("MemFree", free), ("MemUsed", node.memory_bytes - free))
    put(folder / "meminfo", "".join(f"Node {node.id} {name + ':':<12} {size >> 10:>12} kB\n" for name, size in rows))


def _width(machine: Machine) -> int:
    return max((cpu.id for cpu in machine.cpus), default=0) + 1
