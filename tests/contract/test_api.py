"""What the API tells of a running daemon, and what it can be told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, get_args, get_origin

import msgspec
import pytest

from incus_numa.model.instance import InstanceKey
from incus_numa.settings import DaemonSettings, MemorySettings, RebalanceSettings, Settings
from incus_numa.topology import document
from incus_numa.web.routes import ROUTES
from incus_numa.web.telling import KINDS
from tests import builders
from tests.builders import GIB
from tests.commands import run_beside, write_config
from tests.contract.api_rig import Api, Client, api
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, QUICK, Rig, Wish, eventually, rig

SWIFT = RebalanceSettings(
    interval_s=0.15, time_constant_s=0.1, hold_s=3600.0, cooldown_s=3600.0, bytes_per_second=64 * GIB
)
"""Measures at once, and moves nobody unless it is asked to."""
UNMEASURED = Settings(daemon=EVENTS_ONLY, rebalance=RebalanceSettings(enabled=False))
MEASURED = Settings(daemon=DaemonSettings(resync_s=3600.0, verify_s=(0.2,)), rebalance=SWIFT)


@asynccontextmanager
async def host(settings: Settings = UNMEASURED) -> AsyncIterator[tuple[Rig, Api]]:
    """Four nodes with four CPUs and 16 GiB each, and a project beside the default one."""
    machine = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)
    options = replace(QUICK, projects={"other": {}})
    async with rig(options, machine, Wish(settings=settings)) as r, api(r) as served:
        yield r, served


async def until(served: Api, path: str, condition: Callable[[Any], object]) -> Any:
    """What is told at a path once the condition holds."""
    for _ in range(400):
        if condition(found := await served.unix.get(path)):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} never told what was waited for")


async def uneven(r: Rig, served: Api) -> InstanceKey:
    """A busy container that shares a node with another one and would move; idle ones elsewhere may not."""
    keys = [await r.present(f"c{n}", 4, user_numa_movable=str(n > 3).lower()) for n in range(5)]
    mate = next(key for key in keys[:4] if r.nodes(key) == r.nodes(keys[4]))
    for key in (mate, keys[4]):
        r.simulator.set_work(key, 4.0)
    await until(served, "/v1/plan", lambda plan: plan["by_load"]["moves"])
    return keys[4]


async def test_status_tells_who_serves_and_how_it_goes() -> None:
    async with host() as (r, served):
        await r.present("web", 2)
        await r.start(r.managed("odd", 2, user_numa_policy="nonsense"))
        await r.start(r.simulator.create("free", {"limits.cpu": "1"}))
        found = await until(served, "/v1/status", lambda status: status["instances"]["running"] == 3)
    assert found["server"] == {
        "product": "incus",
        "version": "6.0.4",
        "member": None,
        "socket": str(r.simulator.socket_path),
        "connected": True,
    }
    assert (found["nodes"], found["cpus"], found["policy_source"], found["rebalancing"]) == (4, 16, "file", False)
    assert found["instances"] == {"running": 3, "managed": 2, "differ": 0, "refused": 1}


async def test_the_topology_is_that_of_the_command() -> None:
    async with host() as (r, served):
        found = await served.unix.get("/v1/topology")
        told = await run_beside("topology", "-f", "json", "--sysfs", r.simulator.sysfs.parent)
    assert document.parse_machine(json.dumps(found)).nodes == document.parse_machine(told.out).nodes


async def test_instances_and_their_explanations_are_those_of_the_commands() -> None:
    async with host(replace(UNMEASURED, daemon=BUSY)) as (r, served):
        await r.present("web", 2)
        await r.present("db", 6, limits_memory="4GiB")
        config = write_config(r.simulator)
        listed = await run_beside("list", "-f", "json", "--window", "0", "--config", config)
        # Where the memory is was read before it was there; a look at everything reads it again.
        rows = await until(served, "/v1/instances", lambda rows: all(one["locality"] for one in rows))
        explained = {}
        for name in ("web", "db"):
            told = await run_beside("explain", name, "-f", "json", "--window", "0", "--config", config)
            explained[name] = told.data
        found = {name: await served.unix.get(f"/v1/instances/{name}") for name in ("web", "db")}
    assert rows == listed.data["instances"]
    assert found == explained


async def test_instances_can_be_had_of_one_project() -> None:
    async with host() as (r, served):
        await r.present("web", 2)
        await r.start(r.managed("there", 2, "other"))
        await until(served, "/v1/instances", lambda rows: len(rows) == 2)
        names = {
            project: [one["name"] for one in await served.unix.get(f"/v1/instances?project={project}")]
            for project in ("default", "other", "nosuch")
        }
        known = [(await served.unix.ask(f"/v1/instances/there{query}")).status for query in ("", "?project=other")]
    assert names == {"default": ["web"], "other": ["there"], "nosuch": []}
    assert known == [404, 200]


async def test_metrics_are_packed_for_those_who_accept_it() -> None:
    async with host() as (_, served):
        asked = ("gzip", "identity", "")
        answers = [await served.unix.ask("/metrics", Accept_Encoding=accepted) for accepted in asked]
    assert [one.headers.get("Content-Encoding") for one in answers] == ["gzip", None, None]
    # The client has unpacked it.
    assert all(b"incus_numa_server_connected 1.0\n" in one.body for one in answers)
    assert {one.headers["Vary"] for one in answers} == {"Accept, Accept-Encoding"}


async def test_nodes_tell_who_is_on_them_and_how_busy_their_cpus_are() -> None:
    async with host() as (r, served):
        key = await r.present("web", 4)
        (home,) = r.nodes(key)
        r.simulator.set_work(key, 2.0)
        rows = await until(served, "/v1/nodes", lambda rows: any(sum(one["cpu_busy"].values()) for one in rows))
        found = {one["node"]: one for one in rows}
    assert {node: one["instances"] for node, one in found.items()} == {
        node: [{"project": "default", "name": "web"}] if node == home else [] for node in range(4)
    }
    assert {node for node, one in found.items() if sum(one["cpu_busy"].values())} == {home}
    assert {node: len(one["cpu_busy"]) for node, one in found.items()} == dict.fromkeys(range(4), 4)


async def test_the_plan_tells_what_a_pass_would_do() -> None:
    async with host() as (r, served):
        await r.present("web", 2)
        found = await served.unix.get("/v1/plan")
    assert [(one["name"], one["moved"]) for one in found["placements"]] == [("web", False)]
    assert (found["rejections"], found["steps"], found["by_load"]["moves"]) == ([], {}, [])


async def test_a_policy_is_in_force_at_once_and_until_it_is_taken_back() -> None:
    async with host() as (r, served):
        before = await served.unix.get("/v1/policy")
        first = await r.present("first", 2)
        put = await served.unix.ask("/v1/policy", "PUT", {"placement": {"memory": "none"}, "rebalance": {}})
        second = r.managed("second", 2)
        await r.start(second)
        await eventually(lambda: not r.seat(first).mems and not r.seat(second).mems)
        taken_back = await served.unix.ask("/v1/policy", "DELETE")
        await r.placed(first, second)
    assert (before["source"], before["changes"], before["effective"]["placement"]["memory"]) == ("file", {}, "local")
    assert (put.status, put.data["source"], put.data["changes"]) == (200, "api", {"placement": {"memory": "none"}})
    assert put.data["effective"]["placement"]["memory"] == "none"
    assert (taken_back.status, taken_back.data) == (200, before)


async def test_a_policy_replaces_the_one_before() -> None:
    async with host() as (_, served):
        await served.unix.ask("/v1/policy", "PUT", {"placement": {"smt": "pack"}})
        second = await served.unix.ask("/v1/policy", "PUT", {"rebalance": {"enabled": False}})
        kept = json.loads(served.policy_file.read_text())
        nothing = await served.unix.ask("/v1/policy", "PUT", {})
    assert second.data["changes"] == kept == {"rebalance": {"enabled": False}}
    assert (nothing.data["source"], served.policy_file.exists()) == ("file", False)


async def test_a_bad_policy_is_refused_with_every_problem_and_changes_nothing() -> None:
    bad: dict[str, Any] = {
        "placement": {"smt": "other", "nosuch": 1},
        "memory": {"policy": "static"},
        "rebalance": {"journal": "/etc/passwd", "interval_s": -1},
    }
    async with host() as (r, served):
        await served.unix.ask("/v1/policy", "PUT", {"placement": {"smt": "pack"}})
        before, settings = served.policy_file.read_text(), r.daemon.service.settings
        answer = await served.unix.ask("/v1/policy", "PUT", bad)
        assert (served.policy_file.read_text(), r.daemon.service.settings) == (before, settings)
    problem = answer.data
    assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert (problem["type"], problem["instance"]) == ("urn:incus-numa:invalid-settings", "/v1/policy")
    told = [one["detail"].partition(" ")[0].rstrip(":") for one in problem["errors"]]
    assert sorted(told) == [
        "memory.policy",
        "placement.nosuch",
        "placement.smt",
        "rebalance.interval_s",
        "rebalance.journal",
    ]


async def test_reservations_that_the_machine_cannot_keep_are_refused() -> None:
    memory = {"policy": "static", "reserved_total": "32GiB", "reserved": {"0": "32GiB"}}
    async with host() as (r, served):
        answer = await served.unix.ask("/v1/policy", "PUT", {"memory": memory})
        assert (r.daemon.service.settings.memory, served.policy_file.exists()) == (MemorySettings(), False)
    assert answer.status == 422


async def test_a_policy_that_cannot_be_kept_is_not_set() -> None:
    async with host() as (r, served):
        served.policy_file.mkdir()
        before = r.daemon.service.settings
        answer = await served.unix.ask("/v1/policy", "PUT", {"placement": {"smt": "pack"}})
        assert (answer.status, r.daemon.service.settings) == (500, before)
        assert (await served.unix.get("/v1/policy"))["source"] == "file"
        assert [path.name for path in served.policy_file.parent.iterdir() if path.name.startswith(".policy")] == []
        served.policy_file.rmdir()


async def test_sighup_keeps_the_policy_over_the_file_as_it_is_then() -> None:
    async with host() as (r, served):
        await served.unix.ask("/v1/policy", "PUT", {"placement": {"smt": "pack"}})
        r.settings = replace(r.settings, placement=replace(r.settings.placement, memory="bind"))
        r.daemon.service.reload()
        both = r.daemon.service.settings.placement
        served.policy_file.unlink()
        r.daemon.service.reload()
        found = await served.unix.get("/v1/policy")
    assert (both.smt, both.memory) == ("pack", "bind")
    assert (found["source"], found["effective"]["placement"]["smt"]) == ("file", "spread")


async def test_a_file_that_went_bad_is_no_way_back() -> None:
    async with host() as (_, served):
        await served.unix.ask("/v1/policy", "PUT", {"placement": {"smt": "pack"}})
        served.file.problem = "config.toml: not TOML"
        answers = [await served.unix.ask("/v1/policy", "DELETE"), await served.unix.ask("/v1/policy", "PUT", {})]
        assert (await served.unix.get("/v1/policy"))["changes"] == {"placement": {"smt": "pack"}}
    assert [(one.status, one.data["errors"]) for one in answers] == [(422, [{"detail": "config.toml: not TOML"}])] * 2


async def test_a_dry_run_says_who_would_move_and_a_real_one_moves_them() -> None:
    async with host(MEASURED) as (r, served):
        mover = await uneven(r, served)
        before = r.nodes(mover)
        preview = await served.unix.ask("/v1/rebalance", "POST", {"dry_run": True})
        assert (await served.unix.get("/v1/moves"), r.nodes(mover)) == ([], before)
        done = await served.unix.ask("/v1/rebalance", "POST", {"max_moves": 1})
        (move,) = await until(served, "/v1/moves?limit=1", bool)
        after = r.nodes(mover)
    told = [(one.status, one.data["dry_run"], [move["name"] for move in one.data["moves"]]) for one in (preview, done)]
    assert told == [(200, True, [mover.name]), (202, False, [mover.name])]
    assert (move["name"], move["result"], move["from"], move["to"]) == (mover.name, "moved", str(before), str(after))


async def test_a_rebalance_is_of_one_project_and_no_more_moves_than_were_asked_for() -> None:
    async with host(MEASURED) as (r, served):
        mover = await uneven(r, served)
        found = await served.unix.ask("/v1/rebalance", "POST", {"dry_run": True, "project": "default"})
        others = await served.unix.ask("/v1/rebalance", "POST", {"project": "other"})
        none = await served.unix.ask("/v1/rebalance", "POST", {"max_moves": 0})
    assert [(one.status, one.data["moves"]) for one in (others, none)] == [(200, []), (200, [])]
    assert [one["name"] for one in found.data["moves"]] == [mover.name]


async def test_a_rebalance_without_measured_load_is_refused() -> None:
    async with host() as (_, served):
        answer = await served.unix.ask("/v1/rebalance", "POST", {})
    assert (answer.status, "rebalance.enabled" in answer.data["detail"]) == (409, True)


async def test_a_rebalance_without_a_server_is_refused() -> None:
    async with rig(wish=Wish(settings=UNMEASURED), run=False) as r:
        await r.simulator.stop_server()
        r.start_daemon()
        async with api(r) as served:
            status = await served.unix.get("/v1/status")
            answer = await served.unix.ask("/v1/rebalance", "POST", {})
    assert (status["server"]["connected"], status["instances"]["running"]) == (False, 0)
    assert (answer.status, answer.headers["Retry-After"].isdecimal()) == (503, True)


async def read_events(client: Client, until: str) -> list[dict[str, Any]]:
    """Events up to the first of a kind: `id`, `event`, and `data` decoded."""
    found: list[dict[str, Any]] = []
    event: dict[str, Any] = {}
    async with client.session.get(f"{client.base}/v1/events") as response:
        assert response.content_type == "text/event-stream"
        async for raw in response.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name in ("id", "event"):
                event[name] = value
            elif name == "data":
                event[name] = json.loads(value)
            elif not name and event:
                found.append(event)
                if event["event"] == until:
                    break
                event = {}
    return found


async def test_who_watches_sees_a_start() -> None:
    async with host() as (r, served):
        watching = asyncio.create_task(read_events(served.unix, "start-placed"))
        key = r.managed("web", 2)
        await asyncio.sleep(0.1)
        await r.start(key)
        events = await asyncio.wait_for(watching, 10)
        seat = r.seat(key)
    last = events[-1]["data"]
    assert (last["name"], last["cpus"], last["took_s"] > 0) == ("web", str(seat.cpus), True)
    assert {one["event"] for one in events} <= set(KINDS.values())
    ids = [int(one["id"]) for one in events]
    assert ids == sorted(set(ids))


async def test_metrics_are_told_in_both_formats() -> None:
    async with host() as (r, served):
        await r.present("web", 2)
        plain = await served.unix.ask("/metrics")
        open_ = await served.unix.ask("/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert b"incus_numa_build_info" in plain.body
    assert open_.headers["Content-Type"].startswith("application/openmetrics-text")
    assert open_.body.endswith(b"# EOF\n")


async def test_load_is_kept_for_its_history() -> None:
    async with host(MEASURED) as (r, served):
        await uneven(r, served)
        found = await until(served, "/v1/history", lambda history: history["at"])
    assert (found["step_s"], len(found["at"]), sorted(found["load"])) == (30.0, 1, ["0", "1", "2", "3"])


PATHS = {"/v1/instances/{name}": "/v1/instances/c4"}


@pytest.mark.parametrize("route", [one for one in ROUTES if one.method == "GET" and one.kinds == ("application/json",)])
async def test_every_answer_is_of_the_type_that_is_documented_and_has_no_more_keys(route: Any) -> None:
    async with host(MEASURED) as (r, served):
        await uneven(r, served)
        kind = route.answers[200]
        await served.unix.ask("/v1/rebalance", "POST", {})
        await until(served, "/v1/moves", bool)
        found = await served.unix.get(PATHS.get(route.path, route.path))
    msgspec.convert(found, kind)
    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    if not hasattr(inner, "__required_keys__"):
        return
    for one in found if isinstance(found, list) else [found]:
        assert one.keys() == inner.__required_keys__
