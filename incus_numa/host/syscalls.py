"""move_pages(2), which Python has no function for. Called by `pages`.

Manual page: move_pages(2). Memory of another process needs CAP_SYS_NICE and the right to trace it (CAP_SYS_PTRACE).
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from pathlib import Path
from typing import Protocol

from incus_numa.errors import ReportError

UNKNOWN = -(1 << 15)
"""The status of a page that the kernel said nothing about."""

_NUMBERS = {
    "x86_64": 279,
    "aarch64": 239,
    "riscv64": 239,
    "loongarch64": 239,
    "ppc64le": 301,
    "ppc64": 301,
    "s390x": 310,
}
_MOVE_ALL = 4
"""MPOL_MF_MOVE_ALL: pages that several processes have are moved, too. After fork() most pages are such."""

_LARGE_PAGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


class PageCalls(Protocol):
    """What the running kernel can do with pages of a process. Addresses are unsigned 64-bit, in arrays of type Q."""

    @property
    def page_bytes(self) -> int:
        """The size of a page."""

    @property
    def large_bytes(self) -> int:
        """The size of a transparent huge page; that of a page when there are none."""

    def query(self, pid: int, addresses: array[int]) -> array[int]:
        """The node of each page, or a negative error number where there is none. Raises OSError."""

    def move(self, pid: int, addresses: array[int], node: int) -> array[int]:
        """Move pages to a node: for each the node where it is now, a negative error number, or UNKNOWN.

        The kernel may stop early and leave the rest as it is: what is UNKNOWN has to be queried. Raises OSError.
        """


class LibcCalls:
    """PageCalls of the kernel that we run on."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self.page_bytes = os.sysconf("SC_PAGE_SIZE")
        self.large_bytes = max(_read_number(_LARGE_PAGE), self.page_bytes)

    def query(self, pid: int, addresses: array[int]) -> array[int]:
        """The node of each page, or a negative error number. Raises OSError; ReportError on an unknown machine."""
        statuses = array("i", [UNKNOWN]) * len(addresses)
        self._call(pid, addresses, None, statuses)
        return statuses

    def move(self, pid: int, addresses: array[int], node: int) -> array[int]:
        """Move pages, as the protocol says. Raises OSError; ReportError on an unknown machine."""
        statuses = array("i", [UNKNOWN]) * len(addresses)
        self._call(pid, addresses, array("i", [node]) * len(addresses), statuses)
        return statuses

    def _call(self, pid: int, addresses: array[int], nodes: array[int] | None, statuses: array[int]) -> None:
        """A positive result, the number of pages that were not moved, is no error: the statuses say the same."""
        number = system_call_number(os.uname().machine)
        result = self._libc.syscall(
            ctypes.c_long(number),
            ctypes.c_int(pid),
            ctypes.c_ulong(len(addresses)),
            ctypes.c_void_p(addresses.buffer_info()[0]),
            ctypes.c_void_p(None if nodes is None else nodes.buffer_info()[0]),
            ctypes.c_void_p(statuses.buffer_info()[0]),
            ctypes.c_int(0 if nodes is None else _MOVE_ALL),
        )
        if result < 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number))


def system_call_number(machine: str) -> int:
    """The number of move_pages(2) on a machine as uname(2) names it. Raises ReportError when we do not know it."""
    number = _NUMBERS.get(machine)
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        known = ", ".join(sorted(_NUMBERS))
        raise ReportError(f"memory cannot be moved in slices on {machine}: known are 64-bit {known}")
    return number


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
