"""Threads as the kernel shows them, and where each may run. Called by `virtual`.

Formats: proc(5), `/proc/PID/task/TID/stat` and `status`. Kernel document: Documentation/admin-guide/cputopology.rst for
lists of CPUs. What is no longer there is left out.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ReportError

T = TypeVar("T")

GONE = {errno.ENOENT, errno.ESRCH}

SCAN_S = 10.0
"""Kernel threads of the whole host are looked through at most this often."""

_PROC = Path("/proc")
_KTHREAD = 0x00200000
"""Flag of kernel threads (PF_KTHREAD), field 9 of `stat`. Anybody can have the name of one."""

_FIXED = 0x04000000
"""Flag of threads whose CPUs nobody may set (PF_NO_SETAFFINITY), such as io_uring's workers before Linux 6.3."""

_VHOST = re.compile(rb"vhost-([0-9]{1,10})")
_CHUNK = 1 << 16
_LIST = b"\nCpus_allowed_list:"
_MASK = b"\nCpus_allowed:"


class Stat(NamedTuple):
    """What counts here of a `stat` file. Ticks are of the kernel's clock."""

    name: str
    state: str
    flags: int
    started: int
    guest_ticks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Thread:
    """One thread: its name, how long it has run a guest, the CPUs that it may run on, and its folder in `/proc`.

    `is_fixed` says that the kernel lets nobody set its CPUs.
    """

    name: str
    guest_ticks: int
    cpus: CpuSet
    folder: str
    is_fixed: bool = False


class Affinity(Protocol):
    """What sets the CPUs of a thread."""

    def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
        """Let a thread run on these CPUs only. Raises OSError."""


class KernelAffinity:
    """Affinity by sched_setaffinity(2), for the kernel that we run on."""

    def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
        """Let a thread run on these CPUs only. Raises OSError."""
        os.sched_setaffinity(tid, cpus)


class FileAffinity:
    """Affinity for trees of files that only look like a kernel: what `status` says is rewritten."""

    def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
        """Write what a kernel would show then. Raises OSError."""
        if not cpus or thread.is_fixed:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        status = Path(thread.folder, "status")
        fresh = status.with_name("status.new")
        fresh.write_bytes(_with_cpus(status.read_bytes(), cpus))
        os.replace(fresh, status)


def affinity(procfs: Path) -> Affinity:
    """What sets CPUs on this host. Process ids of any other tree than /proc could be real ones of somebody else."""
    return KernelAffinity() if procfs == _PROC else FileAffinity()


class VhostThreads:
    """Kernel threads that work for a virtual machine's network: before Linux 6.4 they are no threads of its QEMU."""

    def __init__(self, procfs: str) -> None:
        self._procfs = procfs
        self._scanned_s = float("-inf")
        self._found: Mapping[int, tuple[int, ...]] = {}

    def read(self, pid: int) -> dict[int, Thread]:
        """Those of one process by id, as of the last look through all, up to SCAN_S ago."""
        now = time.monotonic()
        if now >= self._scanned_s + SCAN_S:
            self._scanned_s = now
            self._found = self._scan()
        found = {}
        for tid in self._found.get(pid, ()):
            folder = f"{self._procfs}/{tid}"
            thread = read_thread(folder)
            # The id may belong to another process by now.
            if thread is not None and thread.name == f"vhost-{pid}" and self._is_kernel(folder):
                found[tid] = thread
        return found

    def _scan(self) -> Mapping[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for tid in self._list():
            match = _VHOST.fullmatch(read_file(f"{self._procfs}/{tid}/comm").rstrip(b"\n"))
            if match is not None:
                found.setdefault(int(match[1]), []).append(int(tid))
        return {pid: tuple(tids) for pid, tids in found.items()}

    def _list(self) -> list[str]:
        """Ids of all kernel threads; of all processes where the kernel does not tell whose child each is."""
        children = read_file(f"{self._procfs}/2/task/2/children").decode("ascii", "replace").split()
        return children or [name for name in list_folder(self._procfs) if name.isdecimal()]

    def _is_kernel(self, folder: str) -> bool:
        stat = parse_stat(read_file(f"{folder}/stat"))
        return stat is not None and bool(stat.flags & _KTHREAD)


def read_threads(process: str) -> dict[int, Thread]:
    """Threads of a process by id, given its folder in `/proc`; empty when it is gone. Raises ReportError."""
    found = {}
    for name in list_folder(f"{process}/task"):
        if name.isdecimal():
            thread = read_thread(f"{process}/task/{name}")
            if thread is not None:
                found[int(name)] = thread
    return found


def read_thread(folder: str) -> Thread | None:
    """A thread by its folder in `/proc`, None when it is gone. Raises ReportError for what no kernel says."""
    stat_text, status = read_file(f"{folder}/stat"), read_file(f"{folder}/status")
    if not stat_text or not status:
        return None
    stat = parse_stat(stat_text)
    if stat is None:
        raise ReportError(f"{folder}/stat is not understood: {stat_text[:60]!r}")
    try:
        cpus = parse_allowed(status)
    except ValueError as error:
        raise ReportError(f"{folder}/status: {error}") from error
    is_fixed = bool(stat.flags & _FIXED)
    return Thread(name=stat.name, guest_ticks=stat.guest_ticks, cpus=cpus, folder=folder, is_fixed=is_fixed)


def parse_stat(text: bytes) -> Stat | None:
    """A `stat` file; None when it is none."""
    # The name may hold spaces and brackets, so what counts begins after the last bracket.
    before, _, after = text.rpartition(b")")
    fields = after.split()
    if len(fields) < 41:
        return None
    try:
        flags, started, guest_ticks = int(fields[6]), int(fields[19]), int(fields[40])
    except ValueError:
        return None
    name = before.partition(b"(")[2].decode("utf-8", "replace")
    return Stat(name, fields[0].decode("ascii", "replace"), flags, started, guest_ticks)


def parse_allowed(text: bytes) -> CpuSet:
    """The CPUs of the line `Cpus_allowed_list` of a `status` file. Raises ValueError."""
    # Line ends in the name, which comes first, are escaped.
    place = text.find(_LIST)
    if place < 0:
        raise ValueError("there is no line Cpus_allowed_list")
    line = text[place + len(_LIST) :].partition(b"\n")[0]
    cpus = CpuSet.parse(line.decode("ascii", "replace"))
    if not cpus:
        raise ValueError("Cpus_allowed_list is empty")
    return cpus


def read_file(path: str) -> bytes:
    """A whole file, empty when it is gone. Raises ReportError when it may not be read."""
    chunks = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A long file comes in pieces of about a page each.
            while chunk := os.read(descriptor, _CHUNK):
                chunks.append(chunk)
        finally:
            os.close(descriptor)
    except OSError as error:
        return _nothing(error, path, b"")
    return b"".join(chunks)


def list_folder(path: str) -> list[str]:
    """Names in a folder, none when it is gone. Raises ReportError when it may not be read."""
    try:
        return os.listdir(path)
    except OSError as error:
        return _nothing(error, path, [])


def _nothing(error: OSError, path: str, empty: T) -> T:
    if error.errno in GONE or error.errno == errno.ENOTDIR:
        return empty
    hint = "; run as root" if error.errno in {errno.EACCES, errno.EPERM} else ""
    raise ReportError(f"cannot read {path}: {error.strerror}{hint}") from error


def _with_cpus(text: bytes, cpus: CpuSet) -> bytes:
    """The `status` file with other CPUs."""
    lines = []
    for line in text.split(b"\n"):
        if line.startswith(_LIST[1:]):
            lines.append(_LIST[1:] + f"\t{cpus}".encode())
        elif line.startswith(_MASK[1:]):
            lines.append(_MASK[1:] + f"\t{cpus.mask:08x}".encode())
        else:
            lines.append(line)
    return b"\n".join(lines)
