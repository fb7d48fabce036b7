"""Writes to cpusets are seen by whose they are, also after a container came back under the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_numa.host.watch import CpusetWatch
from incus_numa.model.instance import InstanceKey

C1, C2 = InstanceKey("default", "c1"), InstanceKey("default", "c2")


@pytest.fixture
def watch() -> Iterator[CpusetWatch]:
    one = CpusetWatch()
    yield one
    one.close()


def _group(folder: Path, name: str = "c1") -> Path:
    group = folder / name
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (group / name).write_text("\n")
    return group


async def _next(watch: CpusetWatch) -> tuple[InstanceKey | None, bool]:
    async with asyncio.timeout(10):
        return await anext(watch.changes())


@pytest.mark.parametrize("name", ["cpuset.cpus", "cpuset.mems"])
async def test_write_is_seen(watch: CpusetWatch, tmp_path: Path, name: str) -> None:
    assert watch.add(C1, _group(tmp_path))
    group = _group(tmp_path, "c2")
    assert watch.add(C2, group)
    (group / name).write_text("1\n")
    assert await _next(watch) == (C2, name == "cpuset.mems")


async def test_same_group_is_watched_once(watch: CpusetWatch, tmp_path: Path) -> None:
    group = _group(tmp_path)
    assert watch.add(C1, group)
    assert not watch.add(C1, group)


async def test_new_group_under_the_same_name_is_watched_although_the_old_one_was_not_seen_to_go(
    watch: CpusetWatch, tmp_path: Path
) -> None:
    old = _group(tmp_path)
    watch.add(C1, old)
    # Kept aside, so that the file system does not give its inode to the new one.
    old.rename(tmp_path / "old")
    new = _group(tmp_path)
    assert watch.add(C1, new)
    (new / "cpuset.cpus").write_text("1\n")
    assert await _next(watch) == (C1, False)


async def test_group_that_is_gone_is_not_watched(watch: CpusetWatch, tmp_path: Path) -> None:
    assert not watch.add(C1, tmp_path / "gone")


async def test_group_that_is_no_longer_watched_says_nothing(watch: CpusetWatch, tmp_path: Path) -> None:
    left, kept = _group(tmp_path), _group(tmp_path, "c2")
    watch.add(C1, left)
    watch.add(C2, kept)
    watch.remove(C1)
    watch.remove(C1)
    (left / "cpuset.cpus").write_text("1\n")
    (kept / "cpuset.cpus").write_text("1\n")
    assert await _next(watch) == (C2, False)
