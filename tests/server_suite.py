"""What every server must do for every adapter: one suite, run on simulated servers and in the lab on real ones.

Who runs it subclasses `ServerSuite` and gives it a `case`: an adapter that is connected to a server on which there are
the instances that `ServerCase` names. Nobody else changes them meanwhile, and tests may come in any order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import ForbiddenKeyError, GoneError, IncusNumaError, ReportError, RetryError
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server import demand
from incus_numa.server.protocol import Connected, Event, Heard, Product, Server, ServerInstance

PATIENCE_S = 120.0
NOTE: Final = "user.suite"
"""A key that every project lets everybody change."""

PROFILED: Final = {"user.from-profile": "yes"}
"""What the default profile gives every instance of the suite."""

OWN: Final = {"limits.cpu": "1", NOTE: "first"}
"""What every instance of the suite has itself."""

GONE = InstanceKey("default", "no-such-instance")


@dataclass(frozen=True, kw_only=True)
class ServerCase:
    """A server as its maker knows it. All instances are unmanaged containers that have OWN and the profile PROFILED.

    `running` and its namesake `twin`, in a project with an odd name, run; `stopped` does not. `closed` is a stopped one
    in a restricted project, where only some keys can be changed; None when there is no such project. `strict` says
    that even the default project is so. `switch` starts or stops the stopped one. `records` are node lists to try.
    """

    server: Server
    product: Product
    version: str
    has_balanced: bool
    has_nodes: bool
    takes_node_zero: bool
    strict: bool
    cpus: Mapping[int, CpuSet]
    running: InstanceKey
    twin: InstanceKey
    stopped: InstanceKey
    switch: Callable[[str], Awaitable[None]]
    closed: InstanceKey | None = None
    member: str | None = None
    records: tuple[str, ...] = ("0", "0-0", "1", "0-1")

    @property
    def keys(self) -> frozenset[InstanceKey]:
        """All instances that the suite knows."""
        closed = frozenset() if self.closed is None else frozenset({self.closed})
        return frozenset({self.running, self.twin, self.stopped}) | closed

    def refusal(self, key: InstanceKey, name: str, value: str) -> type[IncusNumaError] | None:
        """What our error for a change of this key is to be; None when the server takes it."""
        if name == demand.VOLATILE_NODES:
            if not self.has_balanced or key == self.closed or (self.strict and key.project == "default"):
                return ForbiddenKeyError
            return ReportError if value == "0" and not self.takes_node_zero else None
        if name == demand.LIMIT_NODES:
            if not self.has_nodes:
                return ForbiddenKeyError
            return ReportError if value == demand.BALANCED and not self.has_balanced else None
        return ForbiddenKeyError if name.startswith("volatile.") else None


class ServerSuite:
    """The promises of the Server protocol."""

    async def test_server_says_who_it_is(self, case: ServerCase) -> None:
        info = await case.server.get_info()
        assert (info.product, info.version, info.member) == (case.product, case.version, case.member)
        offered = {name for name in ("numa_cpu_balanced", "numa_cpu_placement") if name in info.extensions}
        expected = {"numa_cpu_balanced"} if case.has_balanced else set()
        assert offered == expected | ({"numa_cpu_placement"} if case.has_nodes else set())

    async def test_record_goes_to_the_key_that_the_server_has(self, case: ServerCase) -> None:
        key = demand.nodes_key(await case.server.get_info())
        assert key == (demand.VOLATILE_NODES if case.has_balanced else demand.LIMIT_NODES if case.has_nodes else None)

    async def test_projects_are_listed_with_their_keys(self, case: ServerCase) -> None:
        found = {project.name: project.config for project in await case.server.list_projects()}
        assert {key.project for key in case.keys} <= found.keys()
        if case.closed is not None:
            assert found[case.closed.project].get("restricted") == "true"
        assert "restricted" not in found[case.twin.project]

    async def test_listing_has_the_instances_of_all_projects(self, case: ServerCase) -> None:
        listing = await case.server.list_instances()
        found = {one.key: one for one in listing.instances}
        assert case.keys <= found.keys()
        assert listing.problems == ()
        assert {key for key in case.keys if found[key].running} == {case.running, case.twin}
        for key in case.keys:
            assert found[key].etag is None
            assert found[key].own.items() >= {"limits.cpu": "1"}.items()
            assert found[key].config == {**PROFILED, **found[key].own}

    async def test_instance_is_as_it_was_listed_and_has_an_etag(self, case: ServerCase) -> None:
        listed = {one.key: one for one in (await case.server.list_instances()).instances}
        for key in case.keys:
            one = await case.server.get_instance(key)
            assert one.etag
            assert facts(one) == facts(listed[key])
            assert one.type is InstanceType.CONTAINER

    async def test_namesakes_in_two_projects_are_two_instances(self, case: ServerCase) -> None:
        await case.server.patch_config(case.running, {NOTE: "one"}, None)
        await case.server.patch_config(case.twin, {NOTE: "two"}, None)
        assert case.running.name == case.twin.name
        assert (await case.server.get_instance(case.running)).own[NOTE] == "one"
        assert (await case.server.get_instance(case.twin)).own[NOTE] == "two"
        assert await case.server.get_pid(case.running) != await case.server.get_pid(case.twin)

    @pytest.mark.parametrize("key", [GONE, InstanceKey("default", "..%2Fx"), InstanceKey("no-such-project", "c1")])
    async def test_what_does_not_exist_is_gone(self, case: ServerCase, key: InstanceKey) -> None:
        with pytest.raises(GoneError):
            await case.server.get_instance(key)
        with pytest.raises(GoneError):
            await case.server.get_pid(key)
        with pytest.raises(GoneError):
            await case.server.patch_config(key, {NOTE: "x"}, None)

    async def test_who_runs_has_a_pid_and_who_does_not_has_none(self, case: ServerCase) -> None:
        assert ((await case.server.get_pid(case.running)) or 0) > 1
        assert await case.server.get_pid(case.stopped) is None

    async def test_patch_changes_the_key_alone_and_the_etag(self, case: ServerCase) -> None:
        await case.server.patch_config(case.running, {NOTE: "before"}, None)
        before = await case.server.get_instance(case.running)
        await case.server.patch_config(case.running, {NOTE: "after"}, before.etag)
        after = await case.server.get_instance(case.running)
        assert after.etag != before.etag
        assert after.own == {**before.own, NOTE: "after"}

    async def test_patch_with_an_old_etag_is_to_be_tried_again_and_changes_nothing(self, case: ServerCase) -> None:
        old = await case.server.get_instance(case.running)
        await case.server.patch_config(case.running, {NOTE: f"not {old.own[NOTE]}"[-40:]}, old.etag)
        now = await case.server.get_instance(case.running)
        with pytest.raises(RetryError):
            await case.server.patch_config(case.running, {NOTE: "late"}, old.etag)
        assert await case.server.get_instance(case.running) == now

    async def test_empty_value_removes_a_key(self, case: ServerCase) -> None:
        await case.server.patch_config(case.running, {f"{NOTE}.more": "here"}, None)
        await case.server.patch_config(case.running, {f"{NOTE}.more": ""}, None)
        assert f"{NOTE}.more" not in (await case.server.get_instance(case.running)).own

    async def test_unknown_key_is_forbidden(self, case: ServerCase) -> None:
        with pytest.raises(ForbiddenKeyError):
            await case.server.patch_config(case.running, {"volatile.no.such.key": "1"}, None)

    @pytest.mark.parametrize("name", [demand.VOLATILE_NODES, demand.LIMIT_NODES])
    async def test_record_is_taken_where_the_server_has_the_key(self, case: ServerCase, name: str) -> None:
        for value in case.records:
            for key in sorted(case.keys - {case.twin}):
                await self.check_change(case, key, name, value)

    async def test_balanced_is_taken_where_the_server_has_it(self, case: ServerCase) -> None:
        await self.check_change(case, case.stopped, demand.LIMIT_NODES, demand.BALANCED)

    async def check_change(self, case: ServerCase, key: InstanceKey, name: str, value: str) -> None:
        """Change a key, see that it was taken or refused as this server does, and remove it again."""
        before = await case.server.get_instance(key)
        refusal = case.refusal(key, name, value)
        if refusal is None:
            await case.server.patch_config(key, {name: value}, before.etag)
            after = await case.server.get_instance(key)
            assert after.own == {**before.own, name: value}
            if value != demand.BALANCED:
                assert demand.nodes_from(after) == NodeSet.parse(value)
            await case.server.patch_config(key, {name: ""}, after.etag)
            assert (await case.server.get_instance(key)).own == before.own
            return
        with pytest.raises(IncusNumaError) as raised:
            await case.server.patch_config(key, {name: value}, before.etag)
        assert type(raised.value) is refusal
        assert await case.server.get_instance(key) == before

    async def test_user_keys_can_be_changed_in_every_project(self, case: ServerCase) -> None:
        for key in sorted(case.keys):
            await case.server.patch_config(key, {NOTE: "mine"}, None)
            assert (await case.server.get_instance(key)).own[NOTE] == "mine"

    async def test_resources_have_every_cpu_on_its_node(self, case: ServerCase) -> None:
        body = json.loads(await case.server.get_resources())
        found: dict[int, CpuSet] = {}
        for socket in body["cpu"]["sockets"]:
            for thread in (thread for core in socket["cores"] for thread in core["threads"] if thread["online"]):
                found[thread["numa_node"]] = found.get(thread["numa_node"], CpuSet()) | CpuSet([thread["id"]])
        assert found == case.cpus

    async def test_events_begin_with_the_connection_and_have_our_own_change(self, case: ServerCase) -> None:
        async with watching(case.server) as stream:
            assert isinstance(await anext(stream), Connected)
            await case.server.patch_config(case.twin, {NOTE: "seen"}, None)
            await case.server.patch_config(case.running, {NOTE: "seen"}, None)
            await see(stream, {("instance-updated", case.running), ("instance-updated", case.twin)}, case.member)

    async def test_events_tell_of_a_start_and_of_a_stop(self, case: ServerCase) -> None:
        async with watching(case.server) as stream:
            assert isinstance(await anext(stream), Connected)
            await case.switch("start")
            try:
                assert ((await case.server.get_pid(case.stopped)) or 0) > 1
            finally:
                await case.switch("stop")
            assert await case.server.get_pid(case.stopped) is None
            await see(stream, {("instance-started", case.stopped), ("instance-stopped", case.stopped)}, case.member)

    async def test_many_calls_at_once_get_their_own_answers(self, case: ServerCase) -> None:
        asked = sorted(case.keys) * 5
        assert [one.key for one in await asyncio.gather(*map(case.server.get_instance, asked))] == asked


def facts(one: ServerInstance) -> tuple[object, ...]:
    """What a listing says of an instance, too."""
    return one.key, one.type, one.running, one.config, one.own, one.location


@asynccontextmanager
async def watching(server: Server) -> AsyncIterator[AsyncIterator[Heard]]:
    """The server's events, for no longer than PATIENCE_S."""
    stream = server.watch_events()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield stream
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


async def see(stream: AsyncIterator[Heard], wanted: set[tuple[str, InstanceKey]], member: str | None) -> None:
    """Return when all these events have come, in any order; those of what was done before may come between them."""
    while wanted:
        event = await anext(stream)
        if isinstance(event, Event) and event.key is not None and (event.action, event.key) in wanted:
            assert event.location == member
            wanted.remove((event.action, event.key))
