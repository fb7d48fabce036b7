"""The cgroup v2 tree and the processes of running instances, as files.

Files here are rewritten in place by one write without truncation, as a reader of the kernel's files never sees a
half-written one either; what is longer than the new text is filled with line ends. Called by `kernel` and `incus`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.trees import put

PAGE = 4096

_TRIES, _PAUSE_S = 100, 0.0001


@dataclass(kw_only=True, slots=True)
class Group:
    """One payload cgroup. `cpus` and `mems` are the accepted values, `pages` bytes per node.

    `given` are the memory nodes that the kernel last gave its processes, from which a write of `mems` moves pages.
    """

    name: str
    path: Path
    cpus: CpuSet = field(default_factory=CpuSet)
    mems: NodeSet = field(default_factory=NodeSet)
    pages: dict[int, int] = field(default_factory=dict)
    given: NodeSet = field(default_factory=NodeSet)

    @property
    def moves_memory(self) -> bool:
        """Whether a write of `cpuset.mems` moves pages."""
        return bool(self.mems)

    @property
    def membership(self) -> str:
        """`/proc/PID/cgroup` of its init."""
        return f"0::/{self.name}/init.scope\n"

    def create(self, pid: int, cpus: CpuSet, mems: NodeSet) -> None:
        """Its files. Nothing is bound yet."""
        create_group(self, pid, cpus, mems)

    def accepts(self, cpus: CpuSet, free: CpuSet) -> bool:
        """Whether CPUs that exist can be set while only some are online and `free`."""
        return True

    def follow_cpus(self, free: CpuSet) -> None:
        """What is set and free is effective; all that is free where nothing would be."""
        show(self.path / "cpuset.cpus.effective", str(self.cpus & free or free))

    def follow_mems(self, effective: NodeSet) -> None:
        """The nodes that memory can come from."""
        show(self.path / "cpuset.mems.effective", str(effective))

    def write_pages(self) -> None:
        """Where its memory is."""
        show(self.path / "memory.numa_stat", render_numa_stat(self.pages).rstrip("\n"))

    def write_counters(self, used_s: float, waited: tuple[float, float] | None) -> None:
        """CPU time, and how long some and all tasks waited for more."""
        overwrite(f"{self.path}/cpu.stat", render_cpu_stat(used_s))
        if waited is not None:
            overwrite(f"{self.path}/cpu.pressure", render_pressure(*waited))

    def remove(self, trash: Path) -> None:
        """It disappears at once, as by rmdir of a cgroup."""
        remove_group(self, trash)


def group_name(key: InstanceKey) -> str:
    """The payload cgroup of an instance, at the root of the hierarchy."""
    project = "" if key.project == "default" else f"{key.project}_"
    return f"lxc.payload.{project}{key.name}"


def write_root(root: Path, cpus: CpuSet, mems: NodeSet) -> None:
    """The root cgroup's files. Its effective CPUs are those online."""
    put(root / "cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n")
    put(root / "cgroup.subtree_control", "cpuset cpu io memory pids\n")
    put(root / "cgroup.procs", "1\n")
    show(root / "cpuset.cpus.effective", str(cpus))
    show(root / "cpuset.mems.effective", str(mems))


def create_group(group: Group, pid: int, cpus: CpuSet, mems: NodeSet) -> None:
    """The files of a new payload cgroup, whose init `pid` runs in `init.scope`. Nothing is bound yet."""
    (group.path / "init.scope").mkdir(parents=True)
    total = sum(group.pages.values())
    files = {
        "cgroup.procs": "\n",
        "init.scope/cgroup.procs": f"{pid}\n",
        "cpuset.cpus": "\n",
        "cpuset.mems": "\n",
        "cpuset.cpus.effective": f"{cpus}\n",
        "cpuset.mems.effective": f"{mems}\n",
        "memory.current": f"{total}\n",
        "memory.numa_stat": render_numa_stat(group.pages),
        "cpu.stat": render_cpu_stat(0.0),
        "cpu.pressure": render_pressure(0.0, 0.0),
        "memory.pressure": render_pressure(0.0, 0.0),
    }
    for name, text in files.items():
        put(group.path / name, text)


def remove_group(group: Group, trash: Path) -> None:
    """Make a payload cgroup disappear at once, as rmdir of a cgroup does."""
    trash.mkdir(exist_ok=True)
    moved = trash / group.name
    os.rename(group.path, moved)
    shutil.rmtree(moved)


def rewrite(path: Path, text: str) -> None:
    """Replace the contents of a file that others write as well, in one write: no reader sees an empty or mixed line.

    An empty file is one that somebody else truncated and is about to write: theirs is the later write then. A kernel's
    file is never written by two at once, so whoever has it open is waited for, and nobody opens it meanwhile.
    """
    _write_over(path, text, shared=True)


def show(path: Path, text: str) -> None:
    """Replace the contents of a file that nobody else writes, whoever has it open."""
    _write_over(path, text, shared=False)


def _write_over(path: Path, text: str, *, shared: bool) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        put(path, f"{text}\n")
        return
    try:
        if shared:
            _have_alone(descriptor)
        size = os.fstat(descriptor).st_size
        if size or not shared:
            os.write(descriptor, f"{text}\n".encode().ljust(size, b"\n"))
    finally:
        # This ends the lease, too.
        os.close(descriptor)


def _have_alone(descriptor: int) -> None:
    """Take a lease on an open file: opening it waits until it is closed here. Goes on without if others stay too long.

    See fcntl(2), "Leases". Of a waiting opener the holder is told by a signal, here one that nobody minds.
    """
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    for _ in range(_TRIES):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:
            return
        else:
            return


def overwrite(path: str, text: str) -> None:
    """Write over a file whose text never gets shorter: no reader sees it empty, and it costs least."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def render_cpu_stat(used_s: float) -> str:
    """`cpu.stat` of a group that is never throttled and spends a tenth of its time in the kernel."""
    used_us = int(used_s * 1e6)
    user_us = used_us * 9 // 10
    return (
        f"usage_usec {used_us}\nuser_usec {user_us}\nsystem_usec {used_us - user_us}\n"
        "nr_periods 0\nnr_throttled 0\nthrottled_usec 0\nnr_bursts 0\nburst_usec 0\n"
    )


def render_pressure(some_s: float, full_s: float) -> str:
    """A pressure file with totals alone: Documentation/accounting/psi.rst."""
    averages = "avg10=0.00 avg60=0.00 avg300=0.00"
    return f"some {averages} total={int(some_s * 1e6)}\nfull {averages} total={int(full_s * 1e6)}\n"


def render_numa_stat(pages: Mapping[int, int]) -> str:
    """`memory.numa_stat`: nine tenths anonymous memory, the rest page cache, in bytes per node."""
    file_pages = {node: size // 10 // PAGE * PAGE for node, size in pages.items()}
    rows = {
        "anon": {node: size - file_pages[node] for node, size in pages.items()},
        "file": file_pages,
        "kernel_stack": dict.fromkeys(pages, 0),
    }
    return "".join(
        f"{name} {' '.join(f'N{node}={size}' for node, size in sorted(sizes.items()))}\n"
        for name, sizes in rows.items()
    )


def write_process(procfs: Path, pid: int, membership: str, comm: str) -> None:
    """`/proc/PID` of an instance's init; `membership` is its file `cgroup`."""
    folder = procfs / str(pid)
    put(folder / "cgroup", membership)
    put(folder / "stat", render_stat(pid, comm))


def remove_process(procfs: Path, pid: int) -> None:
    """The process is gone."""
    discard(procfs / str(pid))


def discard(folder: Path) -> None:
    """Make a folder disappear at once, as a kernel's does, whoever writes in it; nothing happens without one."""
    hidden = folder.with_name(f".{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def render_stat(
    pid: int,
    comm: str,
    *,
    started: int = 0,
    user_ticks: int = 0,
    system_ticks: int = 0,
    guest_ticks: int = 0,
    flags: int = 0,
) -> str:
    """`stat` of a process or of one of its threads."""
    # Field 1 is the id, 2 the name, 3 the state, 9 the kernel's flags; 14 and 15 are utime, which includes guest_time
    # (43), and stime; 22 is when it started, in ticks since boot; 52 fields in all: proc(5).
    fields = [str(pid), f"({comm})", "S", "1", *["0"] * 48]
    fields[13], fields[14], fields[42] = str(user_ticks), str(system_ticks), str(guest_ticks)
    fields[8], fields[21] = str(flags), str(started)
    return " ".join(fields) + "\n"
