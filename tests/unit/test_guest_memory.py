"""Where a guest's memory is and what it is bound to, from the lines that the kernel writes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.host.guest_memory import GuestMemory, VmMemory, parse_memory

FILE = b"file=/memfd:memory-backend-memfd\\040(deleted)"


@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        (b"bind:0", "0"),
        (b"bind:2-3", "2-3"),
        (b"bind:0,64-65", "0,64-65"),
        (b"bind=static:1", "1"),
        (b"bind=relative|balancing:1", "1"),
        (b"default", ""),
        (b"local", ""),
        (b"prefer:1", ""),
        (b"prefer (many):1", ""),
        (b"interleave:0-1", ""),
        (b"weighted interleave:0-1", ""),
    ],
)
def test_binding_is_what_the_kernel_writes_of_it(policy: bytes, bound: str) -> None:
    line = b"7efd59535000 " + policy + b" " + FILE + b" dirty=5 active=0 N0=2 N3=3 kernelpagesize_kB=4\n"
    assert parse_memory(line) == VmMemory(by_node={0: 8192, 3: 12288}, bound=NodeSet.parse(bound))


def test_bindings_of_several_mappings_are_taken_together_touched_or_not() -> None:
    text = (
        b"55d0c0000000 default heap anon=1 dirty=1 N2=1 kernelpagesize_kB=4\n"
        b"7efd59535000 bind:2 " + FILE + b" dirty=1 N2=1 kernelpagesize_kB=4\n"
        b"7efd69535000 bind:1 " + FILE + b"\n"
        b"7efd79535000 bind:3\n"
    )
    assert parse_memory(text) == VmMemory(by_node={2: 8192}, bound=NodeSet.parse("1-3"))


def test_name_of_a_file_is_no_binding() -> None:
    text = b"7f00 default file=/tmp/bind:3\\0401000 bind:2 x\n7f10 default file=/a\\0127f20\\040bind:1\n"
    assert parse_memory(text) == VmMemory(by_node=None, bound=NodeSet())


@pytest.mark.parametrize("text", [b"7f00 bind:5-2 x\n", b"7f00 bind:99999999 x\n", b"7f00 bind:- x\n"])
def test_binding_that_is_not_understood_is_unknown(text: bytes) -> None:
    assert parse_memory(text) == VmMemory(by_node=None, bound=None)


def test_nothing_is_known_without_the_file() -> None:
    assert parse_memory(b"") == VmMemory()


def test_reading_that_ends_late_is_not_taken_for_a_newer_one(tmp_path: Path) -> None:
    maps = tmp_path / "7/numa_maps"
    maps.parent.mkdir()
    os.mkfifo(maps)
    guests = GuestMemory(str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(guests.read, 7, 1)
        # This waits until somebody reads.
        end = os.open(maps, os.O_WRONLY)
        maps.unlink()
        maps.write_bytes(b"7f00 default anon=1 N1=1 kernelpagesize_kB=4\n")
        assert guests.read(7, 1, fresh=True).by_node == {1: 4096}
        os.write(end, b"7f00 default anon=1 N0=1 kernelpagesize_kB=4\n")
        os.close(end)
        assert late.result().by_node == {0: 4096}
    assert guests.read(7, 1).by_node == {1: 4096}
