"""The simulated server has the bad habits of the real one: what the daemon lives with, seen through the socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import aiohttp
import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.protocol import Product
from incus_numa.simulator.choices import ServerPanicError
from incus_numa.simulator.refusals import ApiError
from tests.contract.simulated import LOCKED, QUICK, Host, host, until

BALANCED = {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}


@asynccontextmanager
async def starting(h: Host, key: InstanceKey) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A start that has been announced and whose lock is not released."""
    async with h.events(all_projects="true") as events:
        task = asyncio.create_task(h.simulator.start(key))
        yield events
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        h.simulator.incus.end_process()


async def test_started_is_announced_while_the_instance_still_says_stopped() -> None:
    async with host(LOCKED) as h:
        key = h.simulator.create("c1", BALANCED)
        async with starting(h, key) as events:
            assert (await events.receive_json())["metadata"]["action"] == "instance-started"
            shown = (await h.call("GET", "/1.0/instances/c1", recursion="1")).metadata
            assert (shown["status"], shown["state"]["status"], shown["state"]["pid"]) == ("Stopped", "Stopped", 0)


async def test_patch_during_the_start_lock_is_busy() -> None:
    async with host(LOCKED) as h:
        key = h.simulator.create("c1", BALANCED)
        async with starting(h, key) as events:
            await events.receive_json()
            answer = await h.call("PATCH", "/1.0/instances/c1", json={"config": {"volatile.cpu.nodes": "3"}})
            assert answer.status == 500
            assert 'Instance is busy running a "start" operation' in answer.body["error"]


async def test_event_has_the_envelope_of_a_real_one() -> None:
    async with host(replace(QUICK, projects={"web": {}})) as h:
        key = h.simulator.create("c1", project="web")
        async with h.events(type="lifecycle", all_projects="true") as events:
            await h.simulator.start(key)
            event = await events.receive_json()
        assert (event["type"], event["project"], event["location"]) == ("lifecycle", "web", "none")
        assert event["metadata"]["action"] == "instance-started"
        assert event["metadata"]["source"] == "/1.0/instances/c1?project=web"


async def test_listener_without_all_projects_gets_the_default_project_only() -> None:
    async with host(replace(QUICK, projects={"web": {}})) as h, h.events() as events:
        h.simulator.create("c1", project="web")
        h.simulator.create("c2")
        assert (await events.receive_json())["metadata"]["name"] == "c2"


async def test_server_write_makes_the_etag_stale() -> None:
    async with host() as h:
        key = h.simulator.create("c1", BALANCED)
        before = await h.call("GET", "/1.0/instances/c1", recursion="1")
        await h.simulator.start(key)
        answer = await h.call(
            "PATCH", "/1.0/instances/c1", json={"config": {"volatile.cpu.nodes": "3"}}, etag=before.etag
        )
        assert answer.status == 412
        assert "ETag doesn't match" in answer.body["error"]


async def test_server_may_write_once_more_after_the_lock() -> None:
    async with host(replace(QUICK, late_volatile_s=(0.0, 0.0))) as h:
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        marks = h.simulator.measurements.marks[key]
        await until(lambda: marks[-1].what == "late-volatile")
        assert "released" in [mark.what for mark in marks]
        assert "volatile.last_state.ready" in (await h.call("GET", "/1.0/instances/c1")).metadata["config"]


async def test_patch_announces_itself_before_it_returns() -> None:
    async with host() as h:
        h.simulator.create("c1")
        async with h.events() as events:
            answer = await h.call("PATCH", "/1.0/instances/c1", json={"config": {"user.a": "1"}})
            assert answer.status == 200
            assert h.simulator.incus.hub.sent[-1] == ("instance-updated", InstanceKey("default", "c1"))
            assert "requestor" not in (await events.receive_json())["metadata"]


async def test_value_written_while_stopped_is_lost_at_start() -> None:
    async with host() as h:
        # Three others keep nodes 0 to 2 busy, so the server's own choice is node 3 for certain.
        for node in range(3):
            h.simulator.create(f"other{node}", {"limits.cpu.nodes": str(node)})
        key = h.simulator.create("c1", BALANCED)
        h.simulator.set_config(key, {"volatile.cpu.nodes": "0"})
        await h.simulator.start(key)
        assert h.nodes(key) == NodeSet([3])


async def test_server_counts_instances_not_vcpus_and_stopped_ones_too() -> None:
    async with host() as h:
        for number in range(4):
            key = h.simulator.create(f"c{number}", BALANCED)
            await h.simulator.start(key)
            await h.simulator.stop(key)
        assert {h.nodes(InstanceKey("default", f"c{number}")).lowest() for number in range(4)} == {0, 1, 2, 3}


async def test_wide_instance_gets_one_node_per_share_of_cpus() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "9", "limits.cpu.nodes": "balanced"})
        await h.simulator.start(key)
        assert len(h.nodes(key)) == 3


async def test_too_wide_instance_kills_the_server() -> None:
    async with host(replace(QUICK, restart_after_panic_s=0.0)) as h:
        other = h.simulator.create("other", BALANCED)
        await h.simulator.start(other)
        key = h.simulator.create("wide", {"limits.cpu": "64", "limits.cpu.nodes": "balanced"})
        async with h.events() as events:
            with pytest.raises(ServerPanicError):
                await h.simulator.start(key)
            assert (await events.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await until(h.simulator.socket_path.exists)
        assert (await h.call("GET", "/1.0/instances/other")).metadata["status"] == "Running"
        assert (await h.call("GET", "/1.0/instances/wide")).metadata["status"] == "Stopped"


async def test_later_servers_cap_a_too_wide_instance() -> None:
    async with host(replace(QUICK, panics=False)) as h:
        key = h.simulator.create("wide", {"limits.cpu": "64", "limits.cpu.nodes": "balanced"})
        await h.simulator.start(key)
        assert h.nodes(key) == NodeSet(range(4))


async def test_start_of_one_container_rewrites_the_cpus_of_another() -> None:
    async with host() as h:
        first = h.simulator.create("c1", BALANCED)
        await h.simulator.start(first)
        await h.simulator.balanced()
        foreign = h.simulator.machine.node_by_id[(h.nodes(first).lowest() + 1) % 4].cpus
        h.path(first, "cpuset.cpus").write_text(f"{foreign}\n")
        await h.simulator.start(h.simulator.create("c2", BALANCED))
        await h.simulator.balanced()
        assert h.cpus(first) <= h.simulator.machine.node_by_id[h.nodes(first).lowest()].cpus
        assert len(h.cpus(first)) == 2


async def test_written_nodes_are_honoured_only_at_the_next_trigger() -> None:
    async with host() as h:
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        await h.simulator.balanced()
        before = h.cpus(key)
        target = (h.nodes(key).lowest() + 1) % 4
        h.simulator.set_config(key, {"volatile.cpu.nodes": str(target)})
        await h.simulator.balanced()
        assert h.cpus(key) == before
        h.simulator.trigger_balance()
        await h.simulator.balanced()
        assert h.cpus(key) <= h.simulator.machine.node_by_id[target].cpus


async def test_balanced_set_on_a_running_container_does_nothing() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "2"})
        await h.simulator.start(key)
        await h.simulator.balanced()
        before = h.cpus(key)
        h.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
        await h.simulator.balanced()
        assert h.cpus(key) == before
        assert "volatile.cpu.nodes" not in h.simulator.incus.get(key).config


async def test_one_limit_that_does_not_parse_stops_the_pass_for_all() -> None:
    async with host() as h:
        bad = h.simulator.create("bad", {"limits.cpu": "3-1"})
        await h.simulator.start(bad)
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        await h.simulator.balanced()
        assert h.cpus(key) == CpuSet()


async def test_memory_is_never_bound_by_the_server() -> None:
    async with host() as h:
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        await h.simulator.balanced()
        assert h.path(key, "cpuset.mems").read_text().strip() == ""


async def test_restart_sends_one_event_and_chooses_nodes_anew() -> None:
    async with host() as h:
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        chosen = h.nodes(key)
        for node in chosen:
            for number in range(3):
                h.simulator.create(f"other{number}", {"limits.cpu.nodes": str(node)})
        sent = len(h.simulator.incus.hub.sent)
        pid = h.simulator.incus.get(key).pid
        await h.simulator.restart(key)
        assert h.simulator.incus.hub.sent[sent:] == [("instance-restarted", key)]
        assert h.simulator.incus.get(key).pid != pid
        assert h.nodes(key) != chosen


async def test_crash_sends_shutdown_and_stop_takes_the_cgroup_away() -> None:
    async with host() as h:
        keys = [h.simulator.create(name) for name in ("c1", "c2")]
        for key in keys:
            await h.simulator.start(key)
        h.simulator.crash(keys[0])
        await h.simulator.stop(keys[1])
        assert h.simulator.incus.hub.sent[-2:] == [("instance-shutdown", keys[0]), ("instance-stopped", keys[1])]
        assert [h.path(key, "").exists() for key in keys] == [False, False]


@pytest.mark.parametrize(
    ("project", "error"),
    [
        ({"restricted": "true"}, 'Setting "volatile.cpu.nodes" on container "c1" in project "shut" is forbidden'),
        ({"limits.cpu": "100"}, 'Setting "volatile.cpu.nodes" on container "c1" in project "shut" is forbidden'),
        ({"restricted": "true", "restricted.containers.lowlevel": "allow"}, None),
        ({"features.images": "true"}, None),
    ],
)
async def test_restricted_projects_refuse_the_key(project: dict[str, str], error: str | None) -> None:
    async with host(replace(QUICK, projects={"shut": project})) as h:
        h.simulator.create("c1", project="shut")
        answer = await h.call(
            "PATCH", "/1.0/instances/c1", json={"config": {"volatile.cpu.nodes": "1"}}, project="shut"
        )
        assert (answer.status, answer.body["error"] or None) == ((500, error) if error else (200, None))


async def test_restricted_project_still_takes_user_keys_and_limits() -> None:
    async with host(replace(QUICK, projects={"shut": {"restricted": "true"}})) as h:
        key = h.simulator.create("c1", project="shut")
        h.simulator.set_config(key, {"limits.cpu.nodes": "1", "user.numa.policy": "none"})


@pytest.mark.parametrize(
    ("options", "config", "error"),
    [
        (QUICK, {"volatile.nonsense": "1"}, "Unknown configuration key: volatile.nonsense"),
        (QUICK, {"volatile.cpu.nodes": "a"}, "Invalid CPU limit syntax"),
        (replace(QUICK, refuses_node_zero=True), {"volatile.cpu.nodes": "0"}, "Invalid CPU limit syntax"),
        (replace(QUICK, product=Product.LXD), {"limits.cpu.nodes": "balanced"}, "Invalid CPU limit syntax"),
        (replace(QUICK, product=Product.LXD), {"volatile.cpu.nodes": "1"}, "Unknown configuration key"),
    ],
)
async def test_bad_keys_and_values_are_refused(options: object, config: dict[str, str], error: str) -> None:
    async with host(options) as h:  # type: ignore[arg-type]
        key = h.simulator.create("c1")
        with pytest.raises(ApiError, match=error):
            h.simulator.set_config(key, config)


async def test_range_form_of_node_zero_is_accepted_by_older_servers() -> None:
    async with host(replace(QUICK, refuses_node_zero=True)) as h:
        key = h.simulator.create("c1")
        h.simulator.set_config(key, {"volatile.cpu.nodes": "0-0"})
        assert h.nodes(key) == NodeSet([0])


async def test_lxd_moves_a_running_container_when_its_nodes_change() -> None:
    async with host(replace(QUICK, product=Product.LXD)) as h:
        key = h.simulator.create("c1", {"limits.cpu": "2", "user.limits.cpu.nodes": "balanced"})
        await h.simulator.start(key)
        h.simulator.set_config(key, {"limits.cpu.nodes": "2"})
        await h.simulator.balanced()
        assert h.cpus(key) <= h.simulator.machine.node_by_id[2].cpus


async def test_patch_of_a_running_vm_asks_for_a_reset() -> None:
    async with host() as h:
        key = h.simulator.create("vm1", {"limits.cpu": "2"}, kind=InstanceType.VIRTUAL_MACHINE)
        h.simulator.set_config(key, {"user.a": "1"})
        assert "volatile.vm.needs_reset" not in h.simulator.incus.get(key).config
        await h.simulator.start(key)
        h.simulator.set_config(key, {"user.a": "2"})
        assert h.simulator.incus.get(key).config["volatile.vm.needs_reset"] == "true"


async def test_events_overtake_each_other() -> None:
    async with host(replace(QUICK, event_jitter_s=0.05)) as h:
        async with h.events() as events:
            for number in range(20):
                h.simulator.create(f"c{number}")
            names = [(await events.receive_json())["metadata"]["name"] for _ in range(20)]
        assert names != [f"c{number}" for number in range(20)]
        assert set(names) == {f"c{number}" for number in range(20)}


async def test_dropped_listener_sees_its_connection_end() -> None:
    async with host() as h:
        async with h.events() as events:
            h.simulator.drop_listeners()
            assert (await events.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await until(lambda: h.simulator.incus.hub.listener_count == 0)


async def test_mute_listener_stays_connected_and_gets_nothing() -> None:
    async with host() as h, h.events() as mute, h.events() as deaf:
        h.simulator.mute_listeners()
        async with h.events() as alive:
            h.simulator.create("c1")
            assert (await alive.receive_json())["metadata"]["action"] == "instance-created"
        assert not mute.closed
        assert not deaf.closed
        with pytest.raises(TimeoutError):
            await mute.receive(timeout=0.01)


async def test_mute_listener_does_not_answer_pings() -> None:
    async with host() as h:
        h.simulator.create("c1")
        address = "http://incus/1.0/events"
        patience = aiohttp.ClientWSTimeout(ws_close=0.05)
        async with h.session.ws_connect(address, heartbeat=0.05, timeout=patience) as websocket:
            await until(lambda: h.simulator.incus.hub.listener_count == 1)
            h.simulator.mute_listeners()
            assert (await websocket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


async def test_start_that_cannot_be_understood_fails_and_frees_the_instance() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "3-1", "limits.cpu.nodes": "balanced"})
        with pytest.raises(ApiError, match="Failed to start instance"):
            await h.simulator.start(key)
        h.simulator.set_config(key, {"limits.cpu": "2"})
        await h.simulator.start(key)
        assert len(h.nodes(key)) == 1


async def test_profile_edit_sends_one_update_per_instance() -> None:
    async with host() as h:
        keys = [h.simulator.create(name) for name in ("c1", "c2")]
        sent = len(h.simulator.incus.hub.sent)
        h.simulator.set_profile("default", {"limits.cpu": "1"})
        assert h.simulator.incus.hub.sent[sent:] == [("instance-updated", key) for key in keys]


async def test_server_restart_keeps_instances_sends_nothing_and_balances() -> None:
    async with host() as h:
        key = h.simulator.create("c1", BALANCED)
        await h.simulator.start(key)
        await h.simulator.balanced()
        h.path(key, "cpuset.cpus").write_text("\n")
        sent = len(h.simulator.incus.hub.sent)
        await h.simulator.restart_server()
        await h.simulator.balanced()
        assert (await h.call("GET", "/1.0/instances/c1")).metadata["status"] == "Running"
        assert len(h.simulator.incus.hub.sent) == sent
        assert len(h.cpus(key)) == 2


async def test_start_in_progress_ends_with_the_servers_process() -> None:
    async with host(replace(QUICK, start_s=(0.1, 0.1))) as h:
        key = h.simulator.create("c1", BALANCED)
        task = asyncio.create_task(h.simulator.start(key))
        await until(lambda: h.simulator.incus.get(key).lock)
        await h.simulator.restart_server()
        with pytest.raises(ApiError, match="process ended"):
            await task
        assert (await h.call("GET", "/1.0/instances/c1")).metadata["status"] == "Running"
        assert ("instance-started", key) not in h.simulator.incus.hub.sent


async def test_cpu_hotplug_sends_nothing_and_balances() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "4", "limits.cpu.nodes": "1"})
        await h.simulator.start(key)
        await h.simulator.balanced()
        sent = len(h.simulator.incus.hub.sent)
        h.simulator.offline_cpu(5)
        await h.simulator.balanced()
        assert str(h.cpus(key)) == "4,6-7"
        assert len(h.simulator.incus.hub.sent) == sent
        h.simulator.online_cpu(5)
        await h.simulator.balanced()
        assert str(h.cpus(key)) == "4-7"


async def test_same_seed_makes_the_same_choices() -> None:
    async def choose(seed: int) -> list[CpuSet]:
        async with host(replace(QUICK, seed=seed)) as h:
            keys = [h.simulator.create(f"c{number}", BALANCED) for number in range(6)]
            for key in keys:
                await h.simulator.start(key)
                await h.simulator.balanced()
            return [h.cpus(key) for key in keys]

    first = await choose(1)
    assert await choose(1) == first
    assert await choose(2) != first
