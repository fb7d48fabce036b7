"""The daemon and projects: odd names, namesakes, and projects that forbid the record, or take it in another key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import PlacementSettings, Settings
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.personalities import LIMITED, PERSONALITIES, RESTRICTED
from tests.contract.daemon_rig import BALANCED, BUSY, EVENTS_ONLY, QUICK, Rig, Wish, eventually, rig

LIMIT, OPT_IN, RECORD = "limits.cpu.nodes", "user.limits.cpu.nodes", "volatile.cpu.nodes"
OPTED_IN = {OPT_IN: BALANCED}
BY_LIMITS = PlacementSettings(restricted_record="limits")


def projects(**config: dict[str, str]) -> SimulatorOptions:
    return replace(QUICK, projects=config)


def quick(name: str) -> SimulatorOptions:
    """A personality that takes no time."""
    times = {"lock_release_s": QUICK.lock_release_s, "balance_delay_s": QUICK.balance_delay_s, "balance_s": 0.0}
    return replace(PERSONALITIES[name], **times)  # type: ignore[arg-type]


def config_of(r: Rig, key: InstanceKey) -> dict[str, str]:
    return r.simulator.incus.get(key).config


def is_seated(r: Rig, key: InstanceKey, cpus: int = 2) -> bool:
    """Whether CPUs and memory are right, whatever is recorded."""
    if not r.has_group(key):
        return False
    seat = r.seat(key)
    return len(seat.cpus) == cpus and len(r.nodes(key)) == 1 and seat.mems == r.nodes(key)


async def seated(r: Rig, *keys: InstanceKey) -> None:
    """Return when all are, and the server has done rewriting."""
    await eventually(lambda: all(is_seated(r, key) for key in keys))
    await r.simulator.balanced()
    await eventually(lambda: all(is_seated(r, key) for key in keys))


async def crowd(r: Rig) -> None:
    """Take three of the four nodes by CPU lists, so that the server's own choice of nodes is rarely right."""
    taken = r.simulator.create("taken", {"limits.cpu": "0-11"})
    await r.start(taken)


@asynccontextmanager
async def recorded_in_limits() -> AsyncIterator[tuple[Rig, InstanceKey]]:
    """One that has opted in, in a restricted project, placed and with its nodes in `limits.cpu.nodes`."""
    wish = Wish(settings=Settings(daemon=EVENTS_ONLY, placement=BY_LIMITS))
    async with rig(projects(closed=RESTRICTED), wish=wish) as r:
        await crowd(r)
        key = r.managed("c1", 2, "closed", **OPTED_IN)
        await r.start(key)
        await seated(r, key)
        await eventually(lambda: config_of(r, key)[LIMIT] == str(r.nodes(key)))
        yield r, key


async def test_namesakes_in_many_projects_are_placed_each_by_itself() -> None:
    names = ("default", "a", "a_b", "b-c", "a&b=c%41", "é")
    async with rig(projects(**{name: {} for name in names})) as r:
        keys = [r.managed("c1", 2, name) for name in names]
        await r.start(*keys)
        await r.placed(*keys)
        await r.simulator.stop(keys[1])
        await r.events_taken()
        await r.placed(*keys[:1], *keys[2:])
        r.simulator.set_config(keys[2], {"limits.cpu": "3"})
        await eventually(lambda: [len(r.seat(key).cpus) for key in (keys[0], *keys[2:])] == [2, 3, 2, 2, 2])


async def test_underscore_in_the_name_of_a_project_leads_to_no_other_instance() -> None:
    """Names of instances have none, so that the last one of a cgroup's name is the end of the project."""
    async with rig(projects(a={}, a_b={})) as r:
        keys = [r.managed("b-c", 2, "a"), r.managed("c", 2, "a_b"), r.managed("b-c", 2, "a_b")]
        await r.start(*keys)
        await r.placed(*keys)
        groups = {r.path(key, "").name for key in keys}
        assert groups == {"lxc.payload.a_b-c", "lxc.payload.a_b_c", "lxc.payload.a_b_b-c"}
        right = r.seat(keys[0]), r.seat(keys[2])
        await r.simulator.stop(keys[1])
        await r.events_taken()
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await eventually(lambda: (r.seat(keys[0]), r.seat(keys[2])) == right)


@pytest.mark.parametrize("config", [RESTRICTED, LIMITED, {"limits.cpu": "16"}])
async def test_project_that_forbids_the_record_has_its_cgroups_set_and_that_is_said_once(
    config: dict[str, str],
) -> None:
    async with rig(projects(closed=config), wish=Wish(settings=Settings(daemon=BUSY))) as r:
        await crowd(r)
        keys = [r.managed(f"c{number}", 2, "closed") for number in range(2)]
        await r.start(*keys)
        await seated(r, *keys)
        await r.passes(3)
        for key in keys:
            assert len(r.log.saying(f"instance={key}", "forbids")) <= 1
            assert r.calls("PATCH instance", key) <= 1
        wrong = [key for key in keys if r.seat(key).record != r.nodes(key)]
        assert {key for key in keys if r.log.saying(f"instance={key}", "forbids")} == set(wrong)
        assert wrong


async def test_refusal_is_said_of_every_instance_and_again_after_settings_were_read_again() -> None:
    async with rig(projects(closed=RESTRICTED)) as r:
        await crowd(r)
        keys = [r.managed(f"c{number}", 2, "closed") for number in range(2)]
        await r.start(*keys)
        await seated(r, *keys)
        await eventually(lambda: all(r.log.saying(f"instance={key}", "forbids") for key in keys if _is_wrong(r, key)))


def _is_wrong(r: Rig, key: InstanceKey) -> bool:
    return r.seat(key).record != r.nodes(key)


@asynccontextmanager
async def unrecorded() -> AsyncIterator[tuple[Rig, list[InstanceKey]]]:
    """Instances in two restricted projects that are elsewhere than the server's record says. No resync comes."""
    async with rig(projects(closed=RESTRICTED, shut=RESTRICTED)) as r:
        await crowd(r)
        keys = [r.managed(f"c{n}", 2, name) for name in ("closed", "shut") for n in range(3)]
        await r.start(*keys)
        await seated(r, *keys)
        wrong = [key for key in keys if _is_wrong(r, key)]
        assert {key.project for key in wrong} == {"closed", "shut"}
        await eventually(lambda: all(r.log.saying(f"instance={key}", "forbids") for key in wrong))
        await r.events_taken()
        yield r, wrong


@pytest.mark.parametrize("config", [{}, {**RESTRICTED, "restricted.containers.lowlevel": "allow"}])
async def test_project_that_forbids_the_record_no_longer_has_it_written(config: dict[str, str]) -> None:
    async with unrecorded() as (r, wrong):
        before = {key: r.calls("PATCH instance", key) for key in wrong}
        r.simulator.set_project("closed", config)
        freed = [key for key in wrong if key.project == "closed"]
        await eventually(lambda: not any(_is_wrong(r, key) for key in freed))
        await r.events_taken()
        asked = {key: r.calls("PATCH instance", key) - before[key] for key in wrong}
        assert asked == {key: int(key in freed) for key in wrong}


async def test_project_that_still_forbids_the_record_after_an_edit_is_not_told_again() -> None:
    async with unrecorded() as (r, wrong):
        said = len(r.log.saying("forbids"))
        asked = r.calls("PATCH instance")
        r.simulator.set_project("closed", {**RESTRICTED, "user.note": "edited"})
        again = [key for key in wrong if key.project == "closed"]
        await eventually(lambda: r.calls("PATCH instance") == asked + len(again))
        await r.events_taken()
        assert (len(r.log.saying("forbids")), r.calls("PATCH instance")) == (said, asked + len(again))


async def test_settings_that_ask_for_it_record_the_nodes_in_limits() -> None:
    wish = Wish(settings=Settings(daemon=BUSY, placement=BY_LIMITS))
    async with rig(projects(closed=RESTRICTED), wish=wish) as r:
        await crowd(r)
        key = r.managed("c1", 2, "closed", **OPTED_IN)
        await r.start(key)
        await seated(r, key)
        await eventually(lambda: NodeSet.parse(config_of(r, key).get(LIMIT, "").replace(BALANCED, "")) == r.nodes(key))
        calls = r.calls("PATCH instance", key)
        assert calls <= 2
        await r.passes(3)
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await seated(r, key)
        assert r.calls("PATCH instance", key) == calls
        assert len(r.log.saying(f"instance={key}")) <= 1


async def test_one_that_is_recorded_in_limits_is_still_ours_after_restarts() -> None:
    async with recorded_in_limits() as (r, key):
        await r.stop_daemon()
        await r.simulator.restart(key)
        before = r.calls("PATCH instance", key)
        r.start_daemon()
        await seated(r, key)
        await eventually(lambda: config_of(r, key)[LIMIT] == str(r.nodes(key)))
        assert r.calls("PATCH instance", key) - before <= 1
        assert not r.log.saying(f"instance={key}", "only the cgroup is set")


async def test_one_that_has_not_opted_in_keeps_balanced_and_is_told_what_to_do() -> None:
    wish = Wish(settings=Settings(daemon=BUSY, placement=BY_LIMITS))
    async with rig(projects(closed=RESTRICTED), wish=wish) as r:
        await crowd(r)
        keys = [r.managed(f"c{number}", 2, "closed") for number in range(4)]
        await r.start(*keys)
        await seated(r, *keys)
        await r.passes(3)
        assert {config_of(r, key)[LIMIT] for key in keys} == {BALANCED}
        said = r.log.saying("forbids", f"set {OPT_IN}={BALANCED} as well")
        assert len(said) == len({line.split()[0] for line in said}) >= 1


async def test_without_the_setting_limits_are_never_written() -> None:
    async with rig(projects(closed=RESTRICTED), wish=Wish(settings=Settings(daemon=BUSY))) as r:
        await crowd(r)
        keys = [r.managed(f"c{number}", 2, "closed", **OPTED_IN) for number in range(3)]
        await r.start(*keys)
        await seated(r, *keys)
        await r.passes(2)
        assert {config_of(r, key)[LIMIT] for key in keys} == {BALANCED}


async def test_one_that_opts_out_again_stays_where_its_limits_say() -> None:
    async with recorded_in_limits() as (r, key):
        nodes, before = r.nodes(key), r.calls("PATCH instance", key)
        r.simulator.set_config(key, {OPT_IN: ""})
        await eventually(lambda: r.seat(key).mems == NodeSet())
        await r.simulator.balanced()
        await r.events_taken()
        assert r.nodes(key) == nodes
        assert r.calls("PATCH instance", key) == before


async def test_list_that_is_in_the_way_of_the_record_is_what_is_written() -> None:
    """With a list in `limits.cpu.nodes` the server does not look at its record: to write that would change nothing."""
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        await crowd(r)
        key = r.simulator.create("c1", {"limits.cpu": "2", LIMIT: "0", **OPTED_IN})
        await r.start(key)
        await seated(r, key)
        await eventually(lambda: config_of(r, key)[LIMIT] == str(r.nodes(key)))
        await r.passes(3)
        assert RECORD not in config_of(r, key)
        assert r.calls("PATCH instance", key) <= 1


@pytest.mark.parametrize("name", ["incus-without-balanced", "lxd-5.0", "lxd-5.21", "lxd-6"])
async def test_server_without_balanced_has_the_decision_in_limits(name: str) -> None:
    async with rig(quick(name)) as r:
        keys = [r.simulator.create(f"c{n}", {"limits.cpu": "2", **OPTED_IN}) for n in range(4)]
        await r.start(*keys)
        await seated(r, *keys)
        await eventually(lambda: all(config_of(r, key).get(LIMIT) == str(r.nodes(key)) for key in keys))
        assert sorted(r.nodes(key).lowest() for key in keys) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["incus-without-nodes", "lxd-5.0-without-nodes"])
async def test_server_without_nodes_has_its_cgroups_set_and_is_asked_for_nothing(name: str) -> None:
    async with rig(quick(name), wish=Wish(settings=Settings(daemon=BUSY))) as r:
        keys = [r.simulator.create(f"c{n}", {"limits.cpu": "2", **OPTED_IN}) for n in range(4)]
        await r.start(*keys)
        await seated(r, *keys)
        await r.passes(2)
        assert r.calls("PATCH instance") == 0
        assert sorted(r.nodes(key).lowest() for key in keys) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["incus-6.0.0", "incus-6.0.4", "incus-7"])
async def test_every_incus_has_wide_instances_placed_although_events_overtake_each_other(name: str) -> None:
    async with rig(quick(name)) as r:
        keys = [r.managed(f"c{n}", 2 + 2 * n) for n in range(4)]
        await r.start(*keys)
        await r.placed(*keys)
        assert [len(r.seat(key).record) for key in keys] == [1, 1, 2, 2]
        for _ in range(3):
            await r.simulator.restart(keys[3])
            await r.placed(*keys)


async def test_restricted_lxd_takes_the_decision_as_every_lxd() -> None:
    one = replace(quick("lxd-5.21"), projects={"closed": RESTRICTED})
    async with rig(one) as r:
        key = r.simulator.create("c1", {"limits.cpu": "2", **OPTED_IN}, "closed")
        await r.start(key)
        await seated(r, key)
        await eventually(lambda: config_of(r, key).get(LIMIT) == str(r.nodes(key)))
        assert not r.log.saying(f"instance={key}")
