"""Keeps what we decided for a process for as long as it runs. Called by `virtual`.

A process has no place for a mark of ours, so these are small files in a folder that a reboot empties. A name has the
process's id and when it started, so a later process of the same id has none.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.snapshot import Decided

SWEEP_S = 60.0
"""Marks of processes that have ended are removed at most this often."""

_NAME = re.compile(r"([0-9]{1,10})-([0-9]{1,20})(?:\.new)?")


class Marks:
    """Marks by process id and start, below `folder`; in memory only where that cannot be written."""

    def __init__(self, folder: Path, is_live: Callable[[int, int], bool]) -> None:
        """`is_live` says whether the process that a mark is about, by id and start, still runs."""
        self._folder = folder
        self._is_live = is_live
        self._kept: dict[str, str] = {}
        self._swept_s = float("-inf")

    def write(self, pid: int, started: int, decided: Decided) -> None:
        """Keep a decision in place of an earlier one."""
        name = f"{pid}-{started}"
        text = render_mark(decided)
        self._sweep()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            fresh = self._folder / f"{name}.new"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(fresh, flags, 0o644), "w") as file:
                file.write(f"{text}\n")
            os.replace(fresh, self._folder / name)
        except OSError:
            self._kept[name] = text
        else:
            self._kept.pop(name, None)

    def remove(self, pid: int, started: int) -> None:
        """Forget a decision; nothing happens when there is none."""
        name = f"{pid}-{started}"
        self._kept.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def read(self, pid: int, started: int) -> Decided | None:
        """The decision, None without one."""
        name = f"{pid}-{started}"
        text = self._kept.get(name)
        if text is None:
            try:
                text = (self._folder / name).read_text(errors="replace")
            except OSError:
                return None
        return parse_mark(text)

    def _sweep(self) -> None:
        now = time.monotonic()
        if now < self._swept_s + SWEEP_S:
            return
        self._swept_s = now
        for name in (*self._kept, *self._list()):
            match = _NAME.fullmatch(name)
            if match is not None and not self._is_live(int(match[1]), int(match[2])):
                self._kept.pop(name, None)
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)

    def _list(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except OSError:
            return []


def render_mark(decided: Decided) -> str:
    """`NODES;CPUS`, without CPUs where only the nodes are known."""
    return f"{decided.nodes};{decided.cpus or ''}"


def parse_mark(text: str) -> Decided | None:
    """What `render_mark` wrote; None for anything else."""
    nodes, _, cpus = text.partition(";")
    try:
        found = NodeSet.parse(nodes)
        return Decided(nodes=found, cpus=CpuSet.parse(cpus) or None) if found else None
    except ValueError:
        return None
