"""The kernel's counter files, from bytes to numbers. Called by `host.sampler`, thousands of times per sample.

Formats: Documentation/admin-guide/cgroup-v2.rst and numastat.rst, Documentation/accounting/psi.rst, proc(5),
Documentation/ABI/stable/sysfs-devices-node. Text that is not as expected is None, or left out of a mapping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_DIGITS = b"0123456789"
_MAX_DIGITS = 20
"""A longer number is no 64-bit counter."""

_BY_NODE = re.compile(rb"N[0-9]{1,5}=[0-9]{1,20}(?: N[0-9]{1,5}=[0-9]{1,20})*")
# Most nodes of a large machine hold nothing of an instance, and are not worth a number.
_SOME_ON_NODE = re.compile(rb"N([0-9]+)=([1-9][0-9]*)")


class ProcessTimes(NamedTuple):
    """Of a process with all its threads: ticks of CPU time, guest time included, and when it started, in ticks."""

    used: int
    started: int


def parse_flat(text: bytes, name: bytes) -> int | None:
    """The value of the line `NAME VALUE`, as in `cpu.stat` and a node's `numastat`."""
    return _number(_after(text, name + b" "))


def parse_pressure(text: bytes) -> int | None:
    """Microseconds in which some task waited: `total=` of the line `some`."""
    return _number(_after(text, b"some ").partition(b" total=")[2])


def parse_anonymous(text: bytes) -> Mapping[int, int] | None:
    """Bytes of anonymous memory by node, without nodes that have none: the line `anon N0=4096 N1=0` of
    `memory.numa_stat`.
    """
    line = _after(text, b"anon ")
    if not _BY_NODE.fullmatch(line):
        return None
    return {int(node): int(size) for node, size in _SOME_ON_NODE.findall(line)}


def parse_anonymous_pages(text: bytes, page_bytes: int) -> Mapping[int, int] | None:
    """The same of cgroup v1, which counts in pages: `hierarchical_anon=3 N0=1 N1=2`, with all groups inside it."""
    for name in (b"hierarchical_anon=", b"anon="):
        _, _, line = _after(text, name).partition(b" ")
        if _BY_NODE.fullmatch(line):
            return {int(node): int(pages) * page_bytes for node, pages in _SOME_ON_NODE.findall(line)}
    return None


def parse_number(text: bytes) -> int | None:
    """The number that is all of a file, as in `cpuacct.usage`; without its line end it was cut off."""
    return _number(text[:-1]) if text.endswith(b"\n") else None


def parse_process(text: bytes) -> ProcessTimes | None:
    """CPU time and start of `/proc/PID/stat`. Guest time is part of user time: proc(5)."""
    # The name of the process may hold spaces and brackets, so what counts begins after the last bracket.
    fields = text.rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    user, system, started = (_number(fields[place]) for place in (11, 12, 19))
    return None if user is None or system is None or started is None else ProcessTimes(user + system, started)


def parse_numa_maps(text: bytes) -> Mapping[int, int] | None:
    """Bytes by node of the mappings in `/proc/PID/numa_maps` that the process wrote to.

    These have `anon=` or `dirty=` pages: what a virtual machine has, be it private, shared or huge pages. Others map
    files. None when no line is of that kind, or one is wrong.
    """
    found: dict[int, int] = {}
    for line in text.splitlines():
        if b" anon=" not in line and b" dirty=" not in line:
            continue
        page = 0
        counts: dict[int, int] = {}
        for field in line.split():
            name, equals, value = field.partition(b"=")
            if name == b"kernelpagesize_kB":
                page = (_number(value) or 0) << 10
            elif equals and name[:1] == b"N" and name[1:].isdigit():
                node, pages = _number(name[1:]), _number(value)
                if node is None or pages is None:
                    return None
                counts[node] = pages
        if not page:
            return None
        for node, pages in counts.items():
            found[node] = found.get(node, 0) + pages * page
    return found or None


def parse_busy_ticks(text: bytes) -> Mapping[int, int]:
    """Ticks that each CPU of `/proc/stat` was busy for this host: user, nice, system, both kinds of interrupts.

    Guest time is part of user time. Stolen time was another machine's, so it is not busy. CPUs that are offline have no
    line.
    """
    found: dict[int, int] = {}
    for line in text.split(b"\n"):
        if not line.startswith(b"cpu"):
            # The CPUs come first, and the line of interrupts after them is longer than all of theirs.
            break
        fields = line.split()
        if len(fields) < 8 or line.translate(None, _DIGITS + b"cpu "):
            continue
        cpu = _number(fields[0][3:])
        if cpu is not None:
            found[cpu] = sum(map(int, fields[1:4])) + int(fields[6]) + int(fields[7])
    return found


def parse_free(text: bytes) -> int | None:
    """Free bytes of a node: the line `Node 0 MemFree:  1024 kB` of its `meminfo`, where kB are KiB."""
    fields = text.partition(b" MemFree:")[2].partition(b"\n")[0].split()
    kib = _number(fields[0]) if len(fields) == 2 and fields[1] == b"kB" else None
    return None if kib is None else kib << 10


def _after(text: bytes, start: bytes) -> bytes:
    """The rest of the first line that starts so; empty if none does."""
    if text.startswith(start):
        begin = len(start)
    else:
        place = text.find(b"\n" + start)
        if place < 0:
            return b""
        begin = place + 1 + len(start)
    end = text.find(b"\n", begin)
    # Without its line end it was cut off, and half a number is a wrong one.
    return text[begin:end] if end >= 0 else b""


def _number(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else None
