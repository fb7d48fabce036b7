"""Whether the machine may have changed, for the price of a few small files. Called by the daemon.

Everything that a plan depends on and that can change while the host runs is in it: CPUs that go on- and offline (SMT
that is switched off takes the second threads offline), CPUs that are isolated by the kernel or by a cpuset partition,
nodes that appear or get memory, and how much memory there is, with that in huge pages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from incus_numa.topology.sysfs import ISOLATED, OPEN, PARTITIONS

_FILES = (
    "devices/system/cpu/online",
    "devices/system/node/online",
    "devices/system/node/has_cpu",
    "devices/system/node/has_memory",
    ISOLATED,
    PARTITIONS,
    OPEN,
)
_AMOUNT = re.compile(rb"^(MemTotal|Hugetlb): +([0-9]{1,15}) kB", re.MULTILINE)
_LEAST_KIB = 32 << 10
"""Memory is plugged in by blocks of 128 MiB at least; a little less or more is what a balloon or the kernel took."""


def read_fingerprint(sysfs: Path, procfs: Path) -> tuple[str, ...]:
    """The kernel's sets as it writes them, empty text for a file that is missing, and the rough amounts of memory."""
    return (*(_read(f"{sysfs}/{name}").decode(errors="replace").strip() for name in _FILES), _read_amounts(procfs))


def _read_amounts(procfs: Path) -> str:
    found = _AMOUNT.findall(_read(f"{procfs}/meminfo"))
    return " ".join(f"{name.decode()}={int(size) // _LEAST_KIB}" for name, size in found)


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
