"""Both adapters against a small server that answers as badly as a test wants, and what exactly they ask of it.

What every server promises is in `tests.server_suite`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from incus_numa.errors import (
    ForbiddenKeyError,
    GoneError,
    IncusNumaError,
    ReportError,
    RetryError,
    UnreachableError,
)
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server import refusals
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Server, ServerInstance
from incus_numa.server.pylxd_server import PylxdServer
from incus_numa.server.retrying import retrying
from tests.contract.small_server import CHANGES, KEY, SmallServer, html, refused, sync


@pytest_asyncio.fixture(loop_scope="function")
async def fake(tmp_path: Path) -> AsyncIterator[SmallServer]:
    server = SmallServer(tmp_path)
    await server.start()
    yield server
    await server.runner.cleanup()


@pytest_asyncio.fixture(params=[HttpServer, PylxdServer], loop_scope="function")
async def server(request: pytest.FixtureRequest, fake: SmallServer) -> AsyncIterator[Server]:
    made: Server = request.param(fake.path, timeout_s=5)
    yield made
    await made.close()


@pytest_asyncio.fixture(params=[HttpServer, PylxdServer], loop_scope="function")
async def alone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """An adapter whose socket is up to the test."""
    made: Server = request.param(str(tmp_path / "s"), timeout_s=0.3)
    yield made
    await made.close()


async def test_listing_covers_all_projects_and_survives_a_broken_instance(server: Server, fake: SmallServer) -> None:
    listing = await server.list_instances()
    assert [one.key for one in listing.instances] == [KEY]
    assert len(listing.problems) == 1
    assert "recursion=1&all-projects=true" in fake.queries[-1]


async def test_instance_comes_with_its_etag(server: Server, fake: SmallServer) -> None:
    assert await server.get_instance(KEY) == ServerInstance(
        key=KEY,
        type=InstanceType.CONTAINER,
        running=True,
        config={"limits.cpu": "2", "limits.cpu.nodes": "balanced"},
        own={"limits.cpu": "2"},
        etag="e1",
    )
    assert fake.queries[-1] == "/1.0/instances/c1?project=web"


@pytest.mark.parametrize("etag", ["e1", None])
async def test_patch_sends_the_changes_under_the_etag(server: Server, fake: SmallServer, etag: str | None) -> None:
    await server.patch_config(KEY, CHANGES, etag)
    assert fake.patches == [(etag, "/1.0/instances/c1?project=web", {"config": CHANGES})]


async def test_names_are_quoted(server: Server, fake: SmallServer) -> None:
    with pytest.raises(GoneError):
        await server.get_instance(InstanceKey("a&b", "../x"))
    assert fake.queries[-1] == "/1.0/instances/..%2Fx?project=a%26b"


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (404, 'Failed to fetch instance "c1" in project "web": Instance not found', GoneError),
        (412, "ETag doesn't match: e1 vs e2", RetryError),
        (500, 'Instance is busy running a "start" operation', RetryError),
        (500, "A matching non-reusable operation has now succeeded", RetryError),
        (503, "Shutting down", RetryError),
        (500, 'Changing "volatile.cpu.nodes" on container "c1" in project "web" is forbidden', ForbiddenKeyError),
        (403, 'Use of low-level config "volatile.cpu.nodes" on container "c1" is forbidden', ForbiddenKeyError),
        (500, "Failed checking if instance update allowed: Reached maximum aggregate value", ForbiddenKeyError),
        (400, "Unknown configuration key: volatile.cpu.nodes", ForbiddenKeyError),
        (403, "not authorized", UnreachableError),
        (500, "Invalid CPU limit syntax", ReportError),
    ],
)
async def test_refusals(
    server: Server, fake: SmallServer, status: int, message: str, error: type[IncusNumaError]
) -> None:
    fake.answers["PATCH /1.0/instances/c1"] = lambda: refused(status, message)
    with pytest.raises(IncusNumaError) as raised:
        await server.patch_config(KEY, CHANGES, "e1")
    assert type(raised.value) is error
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        html,
        lambda: web.Response(text='{"type":"sync","metadata":', content_type="application/json"),
        lambda: web.json_response({"hello": "world"}),
        lambda: web.json_response([]),
        lambda: sync({"unexpected": True}),
        lambda: web.Response(body=b""),
        lambda: web.Response(text="<html>Bad Gateway</html>", status=502, content_type="text/html"),
    ],
)
@pytest.mark.parametrize(
    ("call", "path", "name"),
    [
        (lambda one: one.get_info(), "/1.0", "GET /1.0"),
        (lambda one: one.list_instances(), "/1.0/instances", "GET /1.0/instances"),
        (lambda one: one.get_instance(KEY), "/1.0/instances/c1", "GET /1.0/instances/NAME"),
    ],
)
async def test_senseless_answer_is_reported(
    server: Server, fake: SmallServer, answer: Callable[[], web.Response], call: Any, path: str, name: str
) -> None:
    fake.answers[f"GET {path}"] = answer
    with pytest.raises(ReportError) as raised:
        await call(server)
    assert str(raised.value).startswith(f"{name}: ")


async def test_senseless_answer_to_a_change_is_reported(server: Server, fake: SmallServer) -> None:
    fake.answers["PATCH /1.0/instances/c1"] = html
    with pytest.raises(ReportError, match="Welcome to nginx"):
        await server.patch_config(KEY, CHANGES, None)


async def test_missing_socket(alone: Server) -> None:
    with pytest.raises(UnreachableError, match="does not exist: expected a Unix socket"):
        await alone.get_info()


async def test_nobody_listens(alone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sockets.socket(sockets.AF_UNIX) as unused:
        unused.bind("s")
    with pytest.raises(UnreachableError, match="nothing listens there"):
        await alone.get_info()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
async def test_socket_that_may_not_be_used(server: Server, fake: SmallServer) -> None:
    os.chmod(fake.path, 0)
    with pytest.raises(UnreachableError, match="may not be used: run as root"):
        await server.get_info()


def test_permission_tells_what_to_do() -> None:
    assert "run as root" in str(refusals.unreachable("/s", PermissionError(13, "Permission denied")))


async def test_server_that_never_answers(alone: Server, tmp_path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    async with await asyncio.start_unix_server(silence, tmp_path / "s"):
        with pytest.raises(UnreachableError, match="did not answer in time"):
            await alone.get_info()
        await alone.close()


async def test_connection_that_breaks_is_tried_again_for_a_change_only(server: Server, fake: SmallServer) -> None:
    await server.get_info()
    fake.cut = {"PATCH /1.0/instances/c1", "GET /1.0/instances/c1"}
    with pytest.raises(UnreachableError):
        await server.get_instance(KEY)
    with pytest.raises(RetryError):
        await server.patch_config(KEY, CHANGES, "e1")


async def test_get_and_patch_are_tried_again_until_the_etag_holds(server: Server, fake: SmallServer) -> None:
    answers = iter([refused(412, "ETag doesn't match"), refused(500, "Instance is busy"), sync({})])
    fake.answers["PATCH /1.0/instances/c1"] = lambda: next(answers)

    async def change() -> str | None:
        seen = await server.get_instance(KEY)
        await server.patch_config(KEY, CHANGES, seen.etag)
        return seen.etag

    assert await retrying(change, give_up_after_s=30) == "e1"
    assert [query for query in fake.queries if query.startswith("/1.0/instances/c1")] == [
        "/1.0/instances/c1?project=web"
    ] * 6


async def test_retrying_gives_up_with_the_last_error(server: Server, fake: SmallServer) -> None:
    fake.answers["PATCH /1.0/instances/c1"] = lambda: refused(412, "ETag doesn't match")
    with pytest.raises(RetryError, match="ETag"):
        await retrying(lambda: server.patch_config(KEY, CHANGES, "e1"), give_up_after_s=0.05)


async def test_retrying_passes_on_other_errors(server: Server) -> None:
    with pytest.raises(GoneError):
        await retrying(lambda: server.get_instance(InstanceKey("web", "none")), give_up_after_s=30)
