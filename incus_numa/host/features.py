"""What the running kernel and our own permission allow, as far as that shows without changing anything.

Called by `check`. Nothing here fails: what cannot be told is None.
"""

from __future__ import annotations

import errno
import os
import re
from array import array
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from incus_numa.errors import ReportError
from incus_numa.host.cgroup import MARK
from incus_numa.host.syscalls import LibcCalls


class Capability(Enum):
    """Those of capabilities(7) that placing needs beside the rights of root."""

    NICE = "CAP_SYS_NICE"
    TRACE = "CAP_SYS_PTRACE"
    ADMIN = "CAP_SYS_ADMIN"


_BITS = {Capability.TRACE: 19, Capability.ADMIN: 21, Capability.NICE: 23}
_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-fA-F]{1,32})$", re.MULTILINE)
_NORMAL = 1
"""The bit of kernel.numa_balancing for balancing between nodes; the other one is for tiers of memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelFeatures:
    """What the kernel can do. None: it does not say.

    `missing` are capabilities that we do not have, `no_page_moves` says why move_pages(2) does not work, None when it
    does or was not asked. `keeps_marks` says whether cgroups keep extended attributes.
    """

    has_nodes: bool | None = None
    numa_balancing: bool | None = None
    pressure: bool | None = None
    keeps_marks: bool | None = None
    no_page_moves: str | None = None
    missing: frozenset[Capability] = frozenset()


def read_features(sysfs: Path, procfs: Path, cgroup: Path) -> KernelFeatures:
    """What the kernel below these mount points can do; system calls are asked only where `procfs` is our own kernel's.

    Files: Documentation/admin-guide/sysctl/kernel.rst (numa_balancing), Documentation/accounting/psi.rst, proc(5).
    """
    balancing = _text(procfs / "sys/kernel/numa_balancing")
    is_procfs = (procfs / "meminfo").exists()
    return KernelFeatures(
        has_nodes=(sysfs / "devices/system/node").is_dir() if sysfs.is_dir() else None,
        numa_balancing=bool(int(balancing) & _NORMAL) if balancing and balancing.isdecimal() else None,
        pressure=(procfs / "pressure").is_dir() if is_procfs else None,
        keeps_marks=_keeps_attributes(cgroup),
        no_page_moves=_ask_page_moves() if procfs == Path("/proc") else None,
        missing=_missing(_text(procfs / "self/status")),
    )


def _missing(status: str | None) -> frozenset[Capability]:
    """Capabilities that a `status` file of proc(5) does not list as effective; none if it lists none at all."""
    match = _EFFECTIVE.search(status or "")
    if match is None:
        return frozenset()
    mask = int(match[1], 16)
    return frozenset(one for one, bit in _BITS.items() if not mask >> bit & 1)


def _keeps_attributes(cgroup: Path) -> bool | None:
    try:
        os.getxattr(cgroup, MARK)
    except OSError as error:
        return {errno.ENODATA: True, errno.ENOTSUP: False}.get(error.errno or 0)
    return True


def _ask_page_moves() -> str | None:
    """Why pages cannot be moved: a kernel without CONFIG_NUMA or CONFIG_MIGRATION does not know the call."""
    try:
        LibcCalls().query(os.getpid(), array("Q"))
    except ReportError as error:
        return str(error)
    except OSError as error:
        return f"move_pages: {error.strerror}"
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
