"""Whose memory moves: the processes of a container, or the one of a virtual machine. Called by `pages`."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from incus_numa.errors import GoneError
from incus_numa.host import counters

_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV}


class Owner(Protocol):
    """The processes of one running instance."""

    def list(self) -> tuple[int, ...]:
        """Its processes. Raises GoneError."""

    def has(self, pid: int) -> bool:
        """Whether a process is one of them still. Raises OSError."""

    def is_there(self) -> bool:
        """Whether it still runs."""


class _Container:
    """The processes in a cgroup and below it."""

    def __init__(self, procfs: Path, group: Path) -> None:
        self._procfs = procfs
        self._group = group

    def list(self) -> tuple[int, ...]:
        """Its processes. Raises GoneError."""
        return list_processes(self._group)

    def has(self, pid: int) -> bool:
        """Whether the process is in the group or below. Raises OSError."""
        for line in (self._procfs / str(pid) / "cgroup").read_text(errors="surrogateescape").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers or "cpuset" in controllers.split(","):
                # In a namespace of our own the way to groups outside begins with "..".
                parts = [part for part in path.split("/") if part not in {"", ".."}]
                above = ("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if part == self._group.name)
                if any(str(self._group).endswith(f"/{path}") for path in above):
                    return True
        return False

    def is_there(self) -> bool:
        """Whether there is the group."""
        return self._group.exists()


class _Qemu:
    """The process of a virtual machine, as long as it is the one that it was at first."""

    def __init__(self, folder: Path) -> None:
        """Raises GoneError."""
        self._folder = folder
        self._pid = int(folder.name)
        self._started = self._read_start()
        if self._started is None:
            raise GoneError(f"process {self._pid} has ended")

    def list(self) -> tuple[int, ...]:
        """The process. Raises GoneError."""
        if not self.is_there():
            raise GoneError(f"process {self._pid} has ended")
        return (self._pid,)

    def has(self, pid: int) -> bool:
        """Whether the id is still that of the process."""
        return self.is_there()

    def is_there(self) -> bool:
        """Whether the process still runs."""
        return self._read_start() == self._started

    def _read_start(self) -> int | None:
        try:
            times = counters.parse_process((self._folder / "stat").read_bytes())
        except OSError:
            return None
        return None if times is None else times.started


def find_owner(procfs: Path, folder: Path) -> Owner:
    """What a cgroup, or a process's folder in `/proc`, stands for. Raises GoneError."""
    return _Qemu(folder) if folder.parent == procfs else _Container(procfs, folder)


def list_processes(group: Path) -> tuple[int, ...]:
    """Processes in a cgroup and below it. Raises GoneError."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group):
        try:
            text = (Path(folder) / "cgroup.procs").read_text()
        except OSError as error:
            # A threaded group has none of its own (EOPNOTSUPP): its processes are listed above it.
            if folder == str(group) and error.errno in _GONE:
                raise GoneError(f"{group} no longer exists") from error
            continue
        found.update(int(line) for line in text.split())
    if not found and not group.exists():
        raise GoneError(f"{group} no longer exists")
    # Processes outside our own namespace of ids read as 0, which would mean ourselves.
    return tuple(sorted(found - {0}))
