"""Where guests have their memory is slow to read: the daemon reads what it needs, and goes on meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.host import guest_memory
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.settings import RebalanceSettings
from tests.builders import GIB
from tests.contract.daemon_rig import BALANCED, Rig, eventually
from tests.contract.test_daemon_vms import NEVER, OFTEN, host, is_placed, nodes, vm

MOST_S = 10.0
"""A daemon that waits for a slow file where it must not would wait for ever: then the file is told after this."""


class SlowFile:
    """A file that tells what it says only when it is let; whoever reads it waits for that."""

    def __init__(self, path: Path) -> None:
        self._text = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        self._path = path
        self._end: int | None = os.open(path, os.O_RDWR)
        self._timer = threading.Timer(MOST_S, self.tell)
        self._timer.start()

    @property
    def is_slow(self) -> bool:
        """Whether it has not told anybody yet, nor was about to be waited for for ever."""
        return self._end is not None

    def is_waited_for(self) -> bool:
        """Whether somebody is reading it now. All who do are in this process."""
        return sum(_link(number) == str(self._path) for number in os.listdir("/proc/self/fd")) > 1

    def tell(self) -> None:
        """Be an ordinary file from now on, for those who wait, too."""
        self._timer.cancel()
        end, self._end = self._end, None
        if end is None:
            return
        fresh = self._path.with_name("numa_maps.told")
        fresh.write_bytes(self._text)
        os.replace(fresh, self._path)
        os.write(end, self._text)
        os.close(end)


def _link(number: str) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    return ""


@contextmanager
def slow(r: Rig, *keys: InstanceKey) -> Iterator[list[SlowFile]]:
    """Make `numa_maps` of these virtual machines slow."""
    files = [SlowFile(r.simulator.kernel.machines[key].folder / "numa_maps") for key in keys]
    try:
        yield files
    finally:
        for one in files:
            one.tell()


async def started(r: Rig, name: str, *, managed: bool) -> InstanceKey:
    opt_in = {"limits.cpu.nodes": BALANCED} if managed else {}
    key = r.simulator.create(name, {"limits.cpu": "2", **opt_in}, kind=InstanceType.VIRTUAL_MACHINE)
    await r.simulator.start(key)
    return key


async def test_containers_are_placed_while_a_sample_waits_for_a_guest() -> None:
    async with host(rebalance=RebalanceSettings(interval_s=0.1)) as r:
        await r.stop_daemon()
        key = await started(r, "v", managed=False)
        with slow(r, key) as (file,):
            r.start_daemon()
            await r.listening()
            await eventually(file.is_waited_for)
            await r.present("c", 1)
            assert file.is_waited_for()


async def test_first_look_reads_guests_together_and_only_those_that_are_placed() -> None:
    async with host(rebalance=NEVER) as r:
        await r.stop_daemon()
        other = await started(r, "a", managed=False)
        keys = [await started(r, f"v{n}", managed=True) for n in range(3)]
        with slow(r, other, *keys) as (ignored, *files):
            r.start_daemon()
            await eventually(lambda: all(one.is_waited_for() for one in files))
            for one in files:
                one.tell()
            await eventually(lambda: all(is_placed(r, key) for key in keys))
            assert ignored.is_slow
            assert not ignored.is_waited_for()


@pytest.mark.parametrize(("memory", "moves"), [("local", True), ("bind", True), ("none", False)])
async def test_memory_that_a_guest_took_later_follows_without_rebalancing_unless_it_is_never_to(
    monkeypatch: pytest.MonkeyPatch, memory: str, *, moves: bool
) -> None:
    monkeypatch.setattr(guest_memory, "PERIOD_S", 0.0)
    monkeypatch.setattr(guest_memory, "PART", 1e9)
    async with host(daemon=OFTEN, rebalance=NEVER) as r:
        key = await vm(r, "v", user_numa_memory=memory)
        machine, home = r.simulator.kernel.machines[key], nodes(r, key)
        away = next(node for node in range(4) if node not in home)
        machine.set_pages({away: GIB})
        await r.passes(2)
        assert machine.pages == {away: GIB}
        r.settings = replace(r.settings, placement=replace(r.settings.placement, vm_memory="migrate"))
        r.daemon.service.reload()
        if moves:
            await eventually(lambda: sum(machine.pages.get(node, 0) for node in home) == GIB)
        await r.passes(3)
        assert {node for node, size in machine.pages.items() if size} == (set(home) if moves else {away})
