"""The daemon asks the server who it is before it places anything: other members' instances are not to be touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.errors import UnreachableError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Notice, StreamOpened
from incus_numa.server.protocol import Product
from incus_numa.settings import Settings
from incus_numa.simulator.options import SimulatorOptions
from tests.contract.daemon_rig import BALANCED, BUSY, QUICK, Rig, Wish, eventually, rig

HERE = "here"
MEMBER = replace(QUICK, member=HERE)
FULL = {"limits.cpu": "4", "limits.cpu.nodes": BALANCED}


class Mood:
    """Whether the server says who it is, and how often it was asked while it did not."""

    def __init__(self) -> None:
        self.asked = 0
        self.silent = True

    async def __call__(self) -> None:
        if self.silent:
            self.asked += 1
            raise UnreachableError("it did not answer in time")


@asynccontextmanager
async def mute(options: SimulatorOptions) -> AsyncIterator[tuple[Rig, Mood]]:
    """A host whose server sends events and lists instances, but does not say who it is, before a daemon is started."""
    async with rig(options, wish=Wish(settings=Settings(daemon=BUSY)), run=False) as r:
        yield r, Mood()


def start(r: Rig, mood: Mood) -> None:
    r.start_daemon().server.before_info = mood


async def elsewhere(r: Rig, name: str) -> InstanceKey:
    """An instance that runs on another member, with CPUs that this one knows nothing of."""
    key = r.simulator.members.create(name, {**FULL, "volatile.cpu.nodes": "2-3"})
    await r.simulator.start(key)
    return key


def called(r: Rig, key: InstanceKey) -> dict[str, int]:
    return dict(r.simulator.measurements.calls_by_instance.get(key, {}))


async def test_nothing_is_placed_before_the_server_has_said_who_it_is() -> None:
    async with mute(MEMBER) as (r, mood):
        other = await elsewhere(r, "other")
        mine = r.managed("mine", 4)
        await r.start(mine)
        start(r, mood)
        await eventually(lambda: mood.asked >= 1)
        # A reload and a start both ask for passes.
        r.daemon.service.reload()
        late = r.managed("late", 4)
        await r.start(late)
        await eventually(lambda: mood.asked >= 3)
        assert (r.calls("GET instances"), called(r, mine), called(r, late)) == (0, {}, {})
        mood.silent = False
        await r.placed(mine, late)
        await r.passes(2)
        assert called(r, other) == {}
        assert len(r.log.saying("description was not read")) == 1


async def test_a_server_that_says_late_that_it_is_lxd_has_its_decisions_where_it_follows_them() -> None:
    async with mute(replace(QUICK, product=Product.LXD, version="5.0.2")) as (r, mood):
        key = r.simulator.create("c1", {"limits.cpu": "2", "user.limits.cpu.nodes": BALANCED})
        await r.start(key)
        start(r, mood)
        await eventually(lambda: mood.asked >= 1)
        mood.silent = False
        await eventually(lambda: r.simulator.incus.get(key).config.get("limits.cpu.nodes") == str(r.nodes(key)))
        assert len(r.nodes(key)) == 1
        assert not r.log.saying(f"instance={key}")


async def test_what_was_known_stays_while_the_server_does_not_say_who_it_is_after_a_cut() -> None:
    async with mute(MEMBER) as (r, mood):
        mood.silent = False
        other = await elsewhere(r, "other")
        start(r, mood)
        mine = await r.present("mine", 4)
        mood.silent = True
        r.simulator.drop_listeners()
        await eventually(lambda: mood.asked >= 1)
        late = await r.present("late", 4)
        await r.passes(2)
        await eventually(lambda: mood.asked >= 3)
        listed = r.calls("GET instances")
        r.simulator.drop_listeners()
        await eventually(lambda: mood.asked >= 5 and r.calls("GET instances") > listed)
        assert (r.nodes(mine) & r.nodes(late), called(r, other)) == (NodeSet(), {})
        assert len(r.log.saying("description was not read")) == 1
        asked, mood.silent = mood.asked, False
        await eventually(lambda: r.log.saying("description was read", level=20))
        assert mood.asked == asked


async def test_a_server_that_becomes_a_member_is_asked_again_until_it_says_its_name() -> None:
    async with mute(QUICK) as (r, mood):
        mood.silent = False
        start(r, mood)
        mine = await r.present("mine", 4)
        mood.silent = True
        r.simulator.members.enable(HERE)
        await eventually(lambda: mood.asked >= 2)
        mood.silent = False
        await eventually(lambda: r.log.saying("description was read", level=20))
        await r.passes(2)
        other = await elsewhere(r, "other")
        await r.events_taken()
        await r.passes(2)
        await r.placed(mine)
        assert called(r, other) == {}


async def test_every_connection_is_told_once_however_often_the_server_was_asked() -> None:
    async with mute(QUICK) as (r, mood):
        told: list[Notice] = []
        start(r, mood)
        r.daemon.service.reconciler.notices.watch(told.append)
        await eventually(lambda: mood.asked >= 2)
        assert not r.daemon.service.connected
        mood.silent = False
        await r.listening()
        mood.silent = True
        r.simulator.drop_listeners()
        await eventually(lambda: mood.asked >= 5)
        opened = [one for one in told if isinstance(one, StreamOpened)]
        assert opened == [StreamOpened(again=False), StreamOpened(again=True)]
        assert r.daemon.service.connected


async def test_a_daemon_that_is_stopped_before_the_server_said_who_it_is_ends() -> None:
    async with mute(QUICK) as (r, mood):
        start(r, mood)
        await eventually(lambda: mood.asked >= 1)
        await r.stop_daemon()
        assert r.calls("GET instances") == 0


async def test_a_daemon_that_is_stopped_while_it_asks_again_ends() -> None:
    async with mute(QUICK) as (r, mood):
        mood.silent = False
        start(r, mood)
        await r.listening()
        mood.silent = True
        r.simulator.drop_listeners()
        await eventually(lambda: mood.asked >= 2)
        await r.stop_daemon()
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "greeting"]
        assert left == []
