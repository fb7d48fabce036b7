"""Which parts of an address space can have memory to move, and which pages of them are there."""

from __future__ import annotations

import os
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.host.mappings import Area, parse_areas
from incus_numa.host.pagemap import WINDOW, Found, Pagemap

MAPS = """\
00001000-00002000 r-xp 00000000 fe:01 1234                               /usr/bin/thing
00002000-00004000 rw-p 00001000 fe:01 1234                               /usr/bin/thing
00010000-00020000 rw-p 00000000 00:00 0                                  [heap]
00020000-00030000 rw-p 00000000 00:00 0
00030000-00040000 rw-s 00000000 00:01 77                                 /memfd:frames (deleted)
00040000-00048000 rw-s 00000000 00:01 78                                 /dev/zero (deleted)
00048000-00050000 rw-s 00000000 00:0f 80                                 /memfd:tables (deleted)
00050000-00060000 rw-s 00000000 fe:01 5678                               /var/lib/db/data
00060000-00070000 rw-p 00000000 00:0f 79                                 /anon_hugepage (deleted)
00070000-00080000 rw-p 00000000 00:00 0                                  [anon: GC heap]
00080000-00090000 r--p 00000000 00:00 0                                  [vvar]
00090000-000a0000 rw-p 00000000 00:00 0                                  [stack]
"""
NUMA_MAPS = """\
00001000 default file=/usr/bin/thing mapped=1 N1=1 kernelpagesize_kB=4
00002000 default file=/usr/bin/thing anon=1 dirty=1 mapped=2 N1=2 kernelpagesize_kB=4
00010000 default heap anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=4
00020000 default anon=5 dirty=5 N0=5 kernelpagesize_kB=4
00030000 default file=/memfd:frames\\040(deleted) dirty=2 N1=2 kernelpagesize_kB=4
00040000 default file=/dev/zero\\040(deleted)
00048000 default file=/memfd:tables\\040(deleted) huge dirty=1 N1=1 kernelpagesize_kB=2048
00060000 default file=/anon_hugepage\\040(deleted) huge anon=1 dirty=1 N1=1 kernelpagesize_kB=2048
00090000 bind:0-1 stack anon=4 dirty=4 N1=4 kernelpagesize_kB=4
"""


def _starts(numa_maps: str | None, sources: str) -> list[int]:
    return [area.start for area in parse_areas(MAPS, numa_maps, NodeSet.parse(sources))]


@pytest.mark.parametrize(
    ("sources", "starts"),
    [("1", [0x2000, 0x10000, 0x30000, 0x90000]), ("0", [0x10000, 0x20000]), ("2", [])],
)
def test_areas_are_those_with_anonymous_or_shared_memory_on_the_sources(sources: str, starts: list[int]) -> None:
    assert _starts(NUMA_MAPS, sources) == starts


def test_without_counts_every_area_that_can_have_such_memory_is_looked_at() -> None:
    assert _starts(None, "1") == [0x1000, 0x2000, 0x10000, 0x20000, 0x30000, 0x40000, 0x48000, 0x70000, 0x90000]


def test_pages_of_shared_memory_are_wanted_though_they_look_like_those_of_a_file() -> None:
    heap, frames = parse_areas(MAPS, NUMA_MAPS, NodeSet([1]))[1:3]
    assert heap == Area(start=0x10000, end=0x20000)
    assert frames == Area(start=0x30000, end=0x40000, is_shared=True)


def test_name_of_a_file_cannot_add_an_area() -> None:
    maps = "00010000-00020000 rw-s 00000000 fe:01 9    /a\u202800a00000-00b00000 rw-p 00000000 00:00 0\r\x0b\n"
    assert parse_areas(maps, None, NodeSet([1])) == ()


def test_lines_that_are_not_understood_are_passed_over() -> None:
    maps = "\nnonsense\nxx-yy rw-p 00000000 00:00 0\n00010000-00020000 rw-p 00000000 00:00 0\n"
    assert parse_areas(maps, "\n00010000 default anon=1 N0=1\nzz anon=1 N0=1\n", NodeSet([0])) == (
        Area(start=0x10000, end=0x20000),
    )


PAGE, LARGE = 4096, 16 * 4096
PRESENT, FILE, SWAPPED = 1 << 63, 1 << 61, 1 << 62


def _pagemap(tmp_path: Path, entries: dict[int, int], pages: int) -> Pagemap:
    """A file of as many entries; those given by page number are not empty."""
    path = tmp_path / "pagemap"
    with path.open("wb") as file:
        file.truncate(pages * 8)
        for page, entry in entries.items():
            file.seek(page * 8)
            file.write(entry.to_bytes(8, "little"))
    return Pagemap(str(path), PAGE, LARGE)


def _all(pagemap: Pagemap, area: Area, most: int) -> list[tuple[list[int], int]]:
    """Page numbers of every look, and the page where it ended, until the end of the area."""
    looks, at = [], area.start
    while at < area.end:
        found = pagemap.look(area, at, most)
        assert found.end > at
        at = found.end
        looks.append(([address // PAGE for address in found.small], at // PAGE))
    return looks


def test_pages_of_files_and_those_swapped_out_are_not_found(tmp_path: Path) -> None:
    entries = {2: PRESENT, 3: PRESENT | FILE, 4: SWAPPED, 5: PRESENT | 123}
    with closing(_pagemap(tmp_path, entries, 16)) as pagemap:
        assert pagemap.look(Area(start=0, end=16 * PAGE), 0, 99).small == array("Q", [2 * PAGE, 5 * PAGE])
        shared = pagemap.look(Area(start=0, end=16 * PAGE, is_shared=True), 0, 99).small
    assert shared == array("Q", [2 * PAGE, 3 * PAGE, 5 * PAGE])


def test_looks_end_where_a_large_page_would(tmp_path: Path) -> None:
    with closing(_pagemap(tmp_path, dict.fromkeys(range(5, 45), PRESENT), 64)) as pagemap:
        looks = _all(pagemap, Area(start=5 * PAGE, end=45 * PAGE), 2)
    assert looks == [([*range(5, 16)], 16), ([*range(16, 32)], 32), ([*range(32, 45)], 45)]


def test_one_look_passes_over_a_window_without_pages(tmp_path: Path) -> None:
    last = 2 * WINDOW + 7
    with closing(_pagemap(tmp_path, {last: PRESENT}, last + 1)) as pagemap:
        looks = _all(pagemap, Area(start=0, end=(last + 1) * PAGE), 100)
    assert looks == [([], WINDOW), ([], 2 * WINDOW), ([last], last + 1)]


def test_process_that_ended_while_it_was_looked_at_has_no_pages(tmp_path: Path) -> None:
    with closing(_pagemap(tmp_path, {0: PRESENT}, 1)) as pagemap:
        assert pagemap.is_alive()
        os.truncate(tmp_path / "pagemap", 0)
        assert not pagemap.is_alive()
        assert pagemap.look(Area(start=0, end=PAGE), 0, 9) == Found(end=0)


def test_process_that_has_ended_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        _pagemap(tmp_path, {}, 0)
