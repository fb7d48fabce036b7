"""Which pages of a process are in memory, without those of files. Called by `pages`.

Kernel document: Documentation/admin-guide/mm/pagemap.rst. Linux 6.7 and newer answer with ranges, pass over what is
empty and tell huge pages; before, the entry of every page has to be read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from incus_numa.host.mappings import Area

WINDOW = 32 * 1024
"""Entries read at a time, 256 KiB."""

STRETCH_BYTES = 4 << 30
"""How far the kernel scans at a time: it takes no longer than about a millisecond if nothing is there."""

_ENTRY_BYTES = 8
_PRESENT, _IS_FILE = 1 << 63, 1 << 61
_EMPTY = bytes(WINDOW * _ENTRY_BYTES)

_PAGEMAP_SCAN = 0xC0606610
_SCAN_FORMAT = "12Q"
_RANGES = 512
_CATEGORY_FILE, _CATEGORY_PRESENT, _CATEGORY_ZERO, _CATEGORY_HUGE = 1 << 2, 1 << 3, 1 << 5, 1 << 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Addresses of pages in memory: of `small` ones, of `large` ones one each; and the `end` of what was looked at."""

    end: int
    small: array[int] = field(default_factory=lambda: array("Q"))
    large: array[int] = field(default_factory=lambda: array("Q"))


class Pagemap:
    """`/proc/PID/pagemap`, open: it stays with the process that it was opened for, even if another gets its id."""

    def __init__(self, path: str, page_bytes: int, large_bytes: int) -> None:
        """Raises OSError: ProcessLookupError when the process has ended but for its parent to notice."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._page = page_bytes
        self._large = large_bytes
        try:
            # A process that has ended has no memory, and not every kernel may check that before it scans. Reading is
            # safe, and a file that could be read once stays with memory that can be scanned.
            if not self.is_alive():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path)
            self.can_scan = self._answers()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def is_alive(self) -> bool:
        """Whether the process still has the address space that it had."""
        return bool(os.pread(self._file, _ENTRY_BYTES, 0))

    def look(self, area: Area, start: int, most: int) -> Found:
        """Pages of an area from `start` on: about `most`, and some of them at least if there are any nearby.

        What is found ends where a large page would. Empty with an end at the start when the process is gone. Raises
        OSError.
        """
        if self.can_scan:
            return self._scan(area, start, most)
        return self._read(area, start, most)

    def _answers(self) -> bool:
        try:
            self._ask(0, 0, 0, 1)
        except OSError as error:
            if error.errno in {errno.ENOTTY, errno.EINVAL, errno.ENOSYS}:
                return False
            raise
        return True

    def _scan(self, area: Area, start: int, most: int) -> Found:
        unwanted = _CATEGORY_ZERO | (0 if area.is_shared else _CATEGORY_FILE)
        ranges, end = self._ask(start, min(area.end, start + STRETCH_BYTES), unwanted, most)
        small, large = array("Q"), array("Q")
        for first, last, categories in ranges:
            if categories & _CATEGORY_HUGE:
                # A limit on pages can cut a large page in two, which moves as a whole.
                whole = -(-last // self._large) * self._large
                large.extend(range(first // self._large * self._large, whole, self._large))
                end = max(end, whole)
            else:
                small.extend(range(first, last, self._page))
        return Found(end=end, small=small, large=large)

    def _ask(self, start: int, end: int, unwanted: int, most: int) -> tuple[list[tuple[int, int, int]], int]:
        """Ranges with their categories, and where the kernel stopped."""
        ranges = array("Q", bytes(_RANGES * 24))
        wanted = _CATEGORY_PRESENT | unwanted
        told = _CATEGORY_PRESENT | _CATEGORY_HUGE
        fields = (96, 0, start, end, 0, ranges.buffer_info()[0], _RANGES, most, unwanted, wanted, 0, told)
        argument = bytearray(struct.pack(_SCAN_FORMAT, *fields))
        count = fcntl.ioctl(self._file, _PAGEMAP_SCAN, argument)
        triples = zip(*[iter(ranges[: count * 3])] * 3, strict=True)
        stopped: int = struct.unpack(_SCAN_FORMAT, argument)[4]
        return [(first, last, categories) for first, last, categories in triples], stopped

    def _read(self, area: Area, start: int, most: int) -> Found:
        count = min(WINDOW, (area.end - start) // self._page)
        data = os.pread(self._file, count * _ENTRY_BYTES, start // self._page * _ENTRY_BYTES)
        mask = _PRESENT if area.is_shared else _PRESENT | _IS_FILE
        small, end = array("Q"), start
        for first, block in self._blocks(start, data):
            end = first + len(block) // _ENTRY_BYTES * self._page
            if block != _EMPTY[: len(block)]:
                entries = array("Q", block)
                small.extend(first + at * self._page for at, one in enumerate(entries) if one & mask == _PRESENT)
            if len(small) >= most:
                break
        return Found(end=end, small=small)

    def _blocks(self, start: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Entries and the address that they begin at, cut where large pages would end."""
        at, place = start, 0
        while place < len(data):
            whole = (at // self._large + 1) * self._large
            size = min((whole - at) // self._page * _ENTRY_BYTES, len(data) - place)
            yield at, data[place : place + size]
            at, place = whole, place + size
