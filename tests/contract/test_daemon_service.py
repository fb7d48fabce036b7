"""The daemon as systemd sees it: states, reload, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import ConfigError
from incus_numa.settings import DaemonSettings, PlacementSettings, Settings, parse_settings
from tests.contract.daemon_rig import EVENTS_ONLY, QUICK, Wish, eventually, rig


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """Everything that was said so far, line by line."""
        while True:
            try:
                self._lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._lines

    def close(self) -> None:
        self._socket.close()


@contextmanager
def _systemd(tmp_path: Path, **environ: str) -> Iterator[tuple[Systemd, Wish]]:
    path = tmp_path / "notify"
    one = Systemd(path)
    try:
        yield one, Wish(environ={"NOTIFY_SOCKET": str(path), **environ})
    finally:
        one.close()


async def test_ready_is_said_although_the_server_is_down(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish, run=False) as r:
            await r.simulator.stop_server()
            r.start_daemon()
            await eventually(lambda: "READY=1" in systemd.lines())
            assert "STATUS=waiting for the server" in systemd.lines()
            await r.simulator.start_server()
            await r.listening()


async def test_status_counts_what_is_managed(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:
            await r.start(r.simulator.create("plain"))
            await r.present("c1", 2)
            wanted = "STATUS=1 of 2 running instances managed on 4 nodes"
            await eventually(lambda: wanted in systemd.lines())


async def test_status_counts_what_is_refused(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:
            key = await r.present("c1", 2)
            r.simulator.set_config(key, {"user.numa.policy": "garbage"})
            await eventually(lambda: systemd.lines()[-1].endswith(", 1 refused"))
            r.simulator.set_config(key, {"user.numa.policy": ""})
            await eventually(lambda: not systemd.lines()[-1].endswith("refused"))


async def test_watchdog_is_fed(tmp_path: Path) -> None:
    with _systemd(tmp_path, WATCHDOG_USEC="100000") as (systemd, wish):
        async with rig(wish=wish):
            await eventually(lambda: systemd.lines().count("WATCHDOG=1") >= 3)


async def test_watchdog_is_left_alone_when_systemd_wants_none(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:
            await r.present("c1", 2)
        assert "WATCHDOG=1" not in systemd.lines()


async def test_stopping_is_the_last_word(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:
            await r.present("c1", 2)
        assert systemd.lines()[-1] == "STOPPING=1"


async def test_reload_is_announced_and_ended(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:
            seen = len(systemd.lines())
            r.daemon.service.reload()
            told = [line.split("=")[0] for line in systemd.lines()[seen:]]
            assert told == ["RELOADING", "MONOTONIC_USEC", "READY"]


async def test_reload_of_a_bad_file_ends_too(tmp_path: Path) -> None:
    with _systemd(tmp_path) as (systemd, wish):
        async with rig(wish=wish) as r:

            def bad() -> Settings:
                raise ConfigError(("placement.smt = 'sprea': expected spread or pack",))

            r.load_settings = bad
            seen = len(systemd.lines())
            r.daemon.service.reload()
            assert systemd.lines()[seen:][-1] == "READY=1"


async def test_good_settings_take_effect_at_reload() -> None:
    async with rig() as r:
        key = await r.present("c1", 8)
        assert r.seat(key).mems == NodeSet()
        r.load_settings = lambda: replace(r.settings, placement=PlacementSettings(memory="bind"))
        r.daemon.service.reload()
        await eventually(lambda: r.seat(key).mems == r.nodes(key))


async def test_cpus_reserved_at_reload_are_left() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        reserved = CpuSet([r.seat(key).cpus.lowest()])
        r.load_settings = lambda: replace(r.settings, placement=PlacementSettings(reserved_cpus=str(reserved)))
        r.daemon.service.reload()
        await eventually(lambda: len(r.seat(key).cpus) == 2 and not r.seat(key).cpus & reserved)


async def test_resync_set_at_reload_is_used() -> None:
    async with rig() as r:
        r.load_settings = lambda: replace(r.settings, daemon=DaemonSettings(resync_s=0.1, verify_s=(0.1,)))
        r.daemon.service.reload()
        await r.passes(3)


async def test_bad_settings_at_reload_keep_the_old_ones_and_say_why() -> None:
    async with rig() as r:
        r.load_settings = lambda: parse_settings('[placement]\nsmt = "sprea"\nreserved_cpus = 3\n')
        r.daemon.service.reload()
        (line,) = r.log.saying("not reloaded")
        assert "placement.smt" in line
        assert "placement.reserved_cpus" in line
        await r.present("c1", 2)


async def test_hangup_signal_reloads() -> None:
    async with rig() as r:
        r.load_settings = lambda: replace(r.settings, placement=PlacementSettings(memory="none"))
        key = await r.present("c1", 2)
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: r.seat(key).mems == NodeSet())


async def test_stop_leaves_cpusets_and_records_as_they_are() -> None:
    async with rig() as r:
        keys = [await r.present(f"c{number}", 1 + 3 * number) for number in range(4)]
        await r.events_taken()
        await r.placed(*keys)
        before = {key: r.seat(key) for key in keys}
        await r.stop_daemon()
        assert {key: r.seat(key) for key in keys} == before
        assert r.log.lines() == []


async def test_termination_signal_stops() -> None:
    async with rig() as r:
        await r.present("c1", 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(asyncio.shield(r.daemon.running), 10)


async def test_stop_does_not_wait_for_a_server_that_hangs() -> None:
    wish = Wish(settings=Settings(daemon=EVENTS_ONLY))
    async with rig(replace(QUICK, lock_release_s=(30.0, 30.0)), wish=wish) as r:
        key = r.managed("c1", 2)
        never = asyncio.Event()

        async def hang(_: object) -> None:
            await never.wait()

        r.daemon.server.after_get = hang
        starting = asyncio.create_task(r.simulator.start(key))
        await eventually(lambda: r.calls("GET instance", key) > 0)
        await r.stop_daemon()
        starting.cancel()
        await asyncio.wait((starting,))
        r.simulator.incus.end_process()


async def test_stop_in_the_middle_of_many_starts_leaves_what_the_next_daemon_completes() -> None:
    async with rig() as r:
        keys = [r.managed(f"c{number}", 1 + number % 8) for number in range(24)]
        await r.start(*keys)
        await eventually(lambda: any(r.writes(key) for key in keys))
        await r.stop_daemon()
        r.start_daemon()
        await r.placed(*keys)


async def test_daemon_writes_nothing_after_it_has_stopped() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        await r.stop_daemon()
        before = r.writes(key)
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await r.simulator.restart(key)
        assert r.writes(key) == before


async def test_a_reload_names_the_keys_alone_that_need_a_restart() -> None:
    async with rig() as r:
        api = replace(r.settings.api, listen="127.0.0.1:1")
        daemon = replace(r.settings.daemon, resync_s=7.0, run_dir="/elsewhere")
        r.load_settings = lambda: replace(r.settings, api=api, daemon=daemon)
        r.daemon.service.reload()
        assert r.log.saying("need a restart") == ["changes of daemon.run_dir, api.listen need a restart"]
        r.load_settings = lambda: r.settings
        r.daemon.service.reload()
        assert len(r.log.saying("need a restart")) == 1
