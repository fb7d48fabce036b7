"""The parts of a process's address space that can hold anonymous memory. Called by `pages`.

Formats: proc(5), `/proc/PID/maps` and `/proc/PID/numa_maps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from incus_numa.cpuset import NodeSet

_SHARED = ("/memfd:", "/dev/zero", "/dev/shm/", "/SYSV", "[anon_shmem:")  # noqa: S108
"""Names of shared memory that no file of a disk is behind."""

_ANONYMOUS = ("[heap]", "[stack", "[anon:")
_HUGE = "/anon_hugepage"


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """A mapping, from `start` up to `end` in bytes.

    The kernel calls pages of shared memory pages of a file. Where `is_shared`, they are wanted all the same.
    """

    start: int
    end: int
    is_shared: bool = False


def parse_areas(maps: str, numa_maps: str | None, sources: NodeSet) -> tuple[Area, ...]:
    """Mappings that can have anonymous memory on the sources, by address.

    Without `numa_maps` these are all private ones and all shared memory. Lines that are not understood are passed over:
    names of files are the container's to choose, and only line ends in them are escaped.
    """
    counted = None if numa_maps is None else _parse_counts(numa_maps)
    areas = []
    for line in maps.split("\n"):
        area = _parse_area(line)
        if area is None:
            continue
        if counted is None or _is_on(counted.get(area.start, {}), area, sources):
            areas.append(area)
    return tuple(areas)


def _parse_area(line: str) -> Area | None:
    """`START-END PERMS OFFSET DEVICE INODE NAME`; None for what is never moved: files, huge pages, kernel pages."""
    fields = line.split(maxsplit=5)
    if len(fields) < 5:
        return None
    name = fields[5] if len(fields) == 6 else ""
    is_shared = name.startswith(_SHARED)
    is_private = fields[1].endswith("p") and not name.startswith(_HUGE)
    if name.startswith("[") and not name.startswith((*_ANONYMOUS, *_SHARED)):
        return None
    if not (is_shared or is_private):
        return None
    start, _, end = fields[0].partition("-")
    try:
        return Area(start=int(start, 16), end=int(end, 16), is_shared=is_shared)
    except ValueError:
        return None


def _parse_counts(numa_maps: str) -> Mapping[int, Mapping[str, int]]:
    """Counts of pages by start of mapping: `anon`, and `N0`, `N1`, ... for each node. Huge pages are left out."""
    counts = {}
    for line in filter(None, numa_maps.split("\n")):
        start, *fields = line.split(" ")
        if "huge" in fields:
            continue
        pairs = (field.partition("=") for field in fields)
        try:
            counts[int(start, 16)] = {name: int(value) for name, _, value in pairs if value.isdecimal()}
        except ValueError:
            continue
    return counts


def _is_on(counts: Mapping[str, int], area: Area, sources: NodeSet) -> bool:
    return bool(area.is_shared or counts.get("anon")) and any(counts.get(f"N{node}") for node in sources)
