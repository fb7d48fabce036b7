"""The cgroup v2 files of running containers. Called by `daemon.observe`, the applier and `check`.

Hosts with the hierarchies of v1 have `host.legacy_cgroup`, whose `cgroup_files` says which of the two this host needs.

Kernel document: Documentation/admin-guide/cgroup-v2.rst, "Cpuset". What we decided for a container is also kept as an
extended attribute of its cgroup, so it lives exactly as long as the run of the container that it is about.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError, ReportError, RetryError
from incus_numa.host.group_counters import GroupCounters, UnifiedCounters
from incus_numa.host.marks import parse_mark, render_mark
from incus_numa.model.instance import InstanceKey
from incus_numa.model.snapshot import Decided

PAYLOAD = "lxc.payload."
MARK = "trusted.incus_numa"
"""Extended attribute with `NODES;CPUS`. Attributes of this namespace cannot be changed from inside a container."""

T = TypeVar("T", CpuSet, NodeSet)

Write = Callable[[Path, Sequence[str]], None]
"""Writes lines into a file of a cgroup, one after the other. Raises OSError."""


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A Write to a kernel's file. One who is told when the file is closed sees the last line alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        for number, line in enumerate(lines):
            if number:
                os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{line}\n".encode(), 0)
    finally:
        os.close(descriptor)


_GONE = {errno.ENOENT, errno.ENODEV, errno.ESRCH}


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupState:
    """Contents of one payload cgroup; empty sets mean inherited."""

    cpus: CpuSet
    mems: NodeSet
    decided: Decided | None


class CgroupFiles:
    """Reads and writes cpuset files below one cgroup v2 mount point."""

    effective_files = ("cpuset.cpus.effective", "cpuset.mems.effective")

    def __init__(self, root: Path, procfs: Path, write: Write = write_lines) -> None:
        """`write` is how this kernel is written to."""
        self._root = root
        self._procfs = procfs
        self._write_lines = write
        self.counters: GroupCounters = UnifiedCounters()
        self._marks: dict[tuple[str, int], str] = {}

    def check(self) -> tuple[str, ...]:
        """What this host lacks, one sentence each; empty when containers can be placed."""
        try:
            controllers = (self._root / "cgroup.controllers").read_text().split()
        except OSError as error:
            return (
                f"{self._root} is no cgroup v2 hierarchy ({error.strerror}): CPUs and memory of containers cannot be "
                "set; boot with systemd.unified_cgroup_hierarchy=1, or with the cpuset hierarchy of v1",
            )
        if "cpuset" not in controllers:
            return (
                f"the kernel offers no cpuset controller in {self._root}/cgroup.controllers: enable CONFIG_CPUSETS",
            )
        if not os.access(self._root, os.W_OK):
            return (f"{self._root} is not writable: run as root, and not with a read-only cgroup mount",)
        return ()

    def find(self, key: InstanceKey) -> Path | None:
        """The payload cgroup by its usual name; None if there is none. Names of instances have no underscore."""
        group = self._root / _payload_name(key)
        return group if self.is_live(group) else None

    def is_live(self, group: Path) -> bool:
        """Whether a payload cgroup has processes: one that an earlier run left behind has none."""
        try:
            return "populated 0" not in _read_small(f"{group}/cgroup.events") and (group / "cpuset.cpus").exists()
        except FileNotFoundError:
            return (group / "cpuset.cpus").exists()
        except OSError:
            return False

    def find_by_pid(self, key: InstanceKey, pid: int) -> Path | None:
        """The instance's payload cgroup that a process is in, however deep; None if it is in none of this instance.

        LXC adds a number to the name (`lxc.payload.NAME-1`) while a group of that name is left from an earlier run. The
        name is compared, as the pid may belong to something else by now.
        """
        own = re.compile(re.escape(_payload_name(key)) + r"(-[0-9]+)?")
        try:
            lines = (self._procfs / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            number, controllers, path = (*line.split(":", 2), "", "")[:3]
            if not self._is_own(number, controllers.split(",")):
                continue
            parts = path.strip("/").split("/")
            for depth, part in enumerate(parts, start=1):
                if own.fullmatch(part):
                    group = self._root.joinpath(*parts[:depth])
                    return group if (group / "cpuset.cpus").exists() else None
        return None

    def _is_own(self, number: str, controllers: Sequence[str]) -> bool:
        """Whether a line of `/proc/PID/cgroup` is about this hierarchy: cgroups(7)."""
        return number == "0" and not any(controllers)

    def read(self, group: Path) -> GroupState:
        """CPUs, memory nodes and mark of a payload cgroup. Raises GoneError, ReportError."""
        return GroupState(cpus=self.read_cpus(group), mems=self.read_mems(group), decided=self.read_mark(group))

    def read_cpus(self, group: Path) -> CpuSet:
        """`cpuset.cpus` of a payload cgroup. Raises GoneError, ReportError."""
        return self._parse(CpuSet, group, "cpuset.cpus")

    def read_mems(self, group: Path) -> NodeSet:
        """`cpuset.mems` of a payload cgroup. Raises GoneError, ReportError."""
        return self._parse(NodeSet, group, "cpuset.mems")

    def memory_by_node(self, group: Path) -> dict[int, int] | None:
        """Anonymous memory per node in bytes (`memory.numa_stat`), None when the kernel does not tell."""
        try:
            for line in (group / "memory.numa_stat").read_text().splitlines():
                name, *fields = line.split()
                if name == "anon":
                    return {int(node[1:]): int(size) for node, size in (field.split("=") for field in fields)}
        except (OSError, ValueError):
            return None
        return None

    def effective_cpus(self, group: Path) -> CpuSet | None:
        """The CPUs that processes of the group really run on, None when the kernel does not tell."""
        try:
            return CpuSet.parse((group / self.effective_files[0]).read_text())
        except (OSError, ValueError):
            return None

    def memory_usage(self, group: Path) -> int | None:
        """Memory in use in bytes (`memory.current`), None when the kernel does not tell."""
        try:
            return int((group / "memory.current").read_text())
        except (OSError, ValueError):
            return None

    def write_cpus(self, group: Path, cpus: CpuSet) -> None:
        """Set `cpuset.cpus` and verify. Raises GoneError, ReportError; RetryError if it was rewritten at once."""
        self._write(group / "cpuset.cpus", str(cpus))
        self._verify(CpuSet, group, "cpuset.cpus", cpus)

    def write_mems(self, group: Path, mems: NodeSet) -> None:
        """Set `cpuset.mems`, which moves pages and can take long. Raises as `write_cpus`.

        An empty set unbinds: as the kernel refuses an empty set for a group with processes (ENOSPC), all nodes are
        written then.
        """
        wanted = mems or self._parse(NodeSet, self._root, self.effective_files[1])
        first: tuple[str, ...] = ()
        if mems and not self._parse(NodeSet, group, "cpuset.mems"):
            # The kernel moves pages from the nodes that it last gave the group. To one whose first process was born in
            # it (CLONE_INTO_CGROUP, as LXC does it) it gave none: its first set moves nothing. So it is bound, let go
            # and bound again, and the last write moves what is elsewhere.
            first = (str(wanted), str(self._parse(NodeSet, group, self.effective_files[1]) | wanted))
        self._write(group / "cpuset.mems", *first, str(wanted))
        self._verify(NodeSet, group, "cpuset.mems", wanted)

    def mark(self, group: Path, decided: Decided) -> None:
        """Keep a decision for as long as the cgroup lives. Raises GoneError."""
        text = render_mark(decided)
        try:
            os.setxattr(group, MARK, text.encode())
        except OSError as error:
            if error.errno in _GONE:
                raise GoneError(f"{group} no longer exists") from error
            # Without extended attributes (not root, an old file system) the decision lives as long as we do.
            self._marks[_identity(group)] = text

    def unmark(self, group: Path) -> None:
        """Forget a decision; nothing happens when there is none."""
        self._marks.pop(_identity(group), None)
        try:
            os.removexattr(group, MARK)
        except OSError:
            return

    def read_mark(self, group: Path) -> Decided | None:
        """The decision that is kept on a payload cgroup, None without one."""
        try:
            text = os.getxattr(group, MARK).decode("utf-8", "replace")
        except OSError:
            if not self._marks:
                return None
            text = self._marks.get(_identity(group), "")
        return parse_mark(text)

    def _parse(self, kind: type[T], group: Path, name: str) -> T:
        try:
            return kind.parse(_read_small(f"{group}/{name}"))
        except ValueError as error:
            raise ReportError(f"{group}/{name}: {error}") from error
        except OSError as error:
            raise _wrapped(error, group / name, "read") from error

    def _write(self, path: Path, *texts: str) -> None:
        try:
            self._write_lines(path, texts)
        except OSError as error:
            raise _wrapped(error, path, f"write {texts[-1]!r} to") from error

    def _verify(self, kind: type[T], group: Path, name: str, wanted: T) -> None:
        found = self._parse(kind, group, name)
        if found != wanted:
            raise RetryError(
                f"{group}/{name} reads {found or 'nothing'} after {wanted} was written: the server wrote it, too"
            )


def _payload_name(key: InstanceKey) -> str:
    prefix = "" if key.project == "default" else f"{key.project}_"
    return f"{PAYLOAD}{prefix}{key.name}"


def _read_small(path: str) -> str:
    """The text of a file of a few bytes. Thousands are read after every rewrite, and this costs a third of open()."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def _identity(group: Path) -> tuple[str, int]:
    try:
        return str(group), group.stat().st_ino
    except OSError:
        return str(group), 0


def _wrapped(error: OSError, path: Path, what: str) -> GoneError | ReportError:
    if error.errno in _GONE:
        return GoneError(f"{path.parent} no longer exists")
    hints = {
        errno.EACCES: "run as root",
        errno.EPERM: "run as root",
        errno.EROFS: "the cgroup hierarchy is mounted read-only",
        errno.EBUSY: "a group inside it has some that this one would no longer have",
        errno.EINVAL: "the kernel accepts only CPUs and nodes that its parent group has online",
        errno.ERANGE: "there are no CPUs or nodes of these numbers",
        errno.ENOSPC: "another group has these CPUs or nodes for itself (cpuset.cpus.partition)",
    }
    hint = hints.get(error.errno or 0)
    return ReportError(f"cannot {what} {path}: {error.strerror}" + (f"; {hint}" if hint else ""))
