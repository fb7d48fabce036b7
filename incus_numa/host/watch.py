"""Sees that someone else wrote a cpuset, at once, by inotify. Called by the service.

A write to `cpuset.cpus` gives IN_MODIFY, then IN_CLOSE_WRITE; the second is used, as the file is complete then.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from asyncinotify import Inotify, Mask, Watch

from incus_numa.model.instance import InstanceKey

log = logging.getLogger(__name__)

CPUS, MEMS = "cpuset.cpus", "cpuset.mems"


class CpusetWatch:
    """Watches `cpuset.cpus` and `cpuset.mems` of the payload cgroups it is told about."""

    def __init__(self) -> None:
        self._inotify = Inotify()
        self._watches: dict[InstanceKey, tuple[int, tuple[Watch, ...]]] = {}
        self._keys: dict[int, InstanceKey] = {}
        self._full = False

    def add(self, key: InstanceKey, group: Path) -> bool:
        """Watch an instance's group; says whether it was not watched before."""
        known = self._watches.get(key)
        try:
            # A container that was started again has another group under the same name.
            identity = (group / "cpuset.cpus").stat().st_ino
            if known is not None and known[0] == identity:
                return False
            self.remove(key)
            watches = tuple(self._inotify.add_watch(group / name, Mask.CLOSE_WRITE) for name in (CPUS, MEMS))
        except OSError as error:
            if not self._full and not isinstance(error, FileNotFoundError):
                log.warning(
                    "cannot watch %s (%s): foreign changes are seen by the timers only; raise "
                    "fs.inotify.max_user_watches",
                    group,
                    error,
                )
                self._full = True
            return False
        self._watches[key] = (identity, watches)
        self._keys.update({watch.wd: key for watch in watches})
        return True

    def remove(self, key: InstanceKey) -> None:
        """Stop watching an instance; nothing happens if it is not watched."""
        _, watches = self._watches.pop(key, (0, ()))
        for watch in watches:
            self._keys.pop(watch.wd, None)
            # The kernel drops the watch by itself when the cgroup is removed.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(watch)

    async def changes(self) -> AsyncIterator[tuple[InstanceKey | None, bool]]:
        """Instances whose CPUs (False) or memory nodes (True) were written by anyone, ourselves included.

        None means that the kernel could not queue all changes: any may have been written.
        """
        async for event in self._inotify:
            if event.mask & Mask.Q_OVERFLOW:
                yield None, True
                continue
            key = self._keys.get(event.watch.wd) if event.watch is not None else None
            if key is None:
                continue
            if event.mask & Mask.IGNORED:
                self.remove(key)
            else:
                yield key, event.watch is not None and event.watch.path.name == MEMS

    def close(self) -> None:
        """Give back the descriptor."""
        self._inotify.close()
