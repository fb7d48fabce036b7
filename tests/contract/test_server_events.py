"""The event stream comes back after every kind of loss, and says so once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha1
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, web
from tenacity import wait_none

from incus_numa.server import events
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Connected, Disconnected, Event, Heard, Server
from incus_numa.server.pylxd_server import PylxdServer
from tests.contract.small_server import EVENT, KEY, SmallServer, html, refused

WATCHED = Event(action="instance-started", key=KEY, location=None)


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


async def take(stream: AsyncIterator[Heard], count: int) -> list[Event | type]:
    """The next items; types stand for those that have no value."""
    taken: list[Event | type] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            item = await anext(stream)
            taken.append(item if isinstance(item, Event) else type(item))
    return taken


@contextlib.asynccontextmanager
async def watching(fake: SmallServer, heartbeat_s: float = 10) -> AsyncIterator[AsyncIterator[Heard]]:
    stream = events.watch_events(fake.path, heartbeat_s=heartbeat_s, pace=wait_none())
    try:
        yield stream
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


async def test_adapters_watch_events_of_all_projects(server: Server, fake: SmallServer) -> None:
    stream = server.watch_events()
    assert await take(stream, 2) == [Connected, WATCHED]
    assert fake.queries[-1] == "/1.0/events?type=lifecycle&all-projects=true"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_lost_stream_connects_again_and_says_so_once(fake: SmallServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "incus_numa"):
        async with watching(fake) as stream:
            assert await take(stream, 2) == [Connected, WATCHED]
            await fake.listeners[0].close(code=WSCloseCode.GOING_AWAY)
            assert await take(stream, 3) == [Disconnected, Connected, WATCHED]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_server_that_comes_later_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = SmallServer(tmp_path)
    async with watching(fake) as stream:
        first = asyncio.create_task(take(stream, 2))
        for _ in range(100):
            await asyncio.sleep(0)
        await fake.start()
        assert await first == [Connected, WATCHED]
    await fake.runner.cleanup()
    assert len(caplog.records) == 1
    assert "does not exist" in caplog.text


async def test_half_closed_stream_is_noticed(tmp_path: Path) -> None:
    """The first connection takes the handshake and then is silent, pings included; later ones are good."""
    fake = SmallServer(tmp_path)
    await fake.runner.setup()
    good = fake.runner.server
    assert good is not None
    seen: list[asyncio.Transport] = []

    class Mute(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            seen.append(transport)

        def data_received(self, data: bytes) -> None:
            if b"Sec-WebSocket-Key: " in data:
                self.transport.write(handshake(data))

    loop = asyncio.get_running_loop()
    listener = await loop.create_unix_server(lambda: good() if seen else Mute(), fake.path)
    async with watching(fake, heartbeat_s=0.05) as stream:
        assert await take(stream, 4) == [Connected, Disconnected, Connected, WATCHED]
    listener.close()
    for transport in seen:
        transport.abort()
    await fake.runner.cleanup()


def handshake(request: bytes) -> bytes:
    """The server's half of the websocket handshake (RFC 6455, 4.2.2)."""
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )


async def test_refused_stream_is_tried_again(fake: SmallServer, caplog: pytest.LogCaptureFixture) -> None:
    good, answers = fake.listen, iter([refused(403, "not authorized"), html()])

    async def listen(request: web.Request) -> web.StreamResponse:
        answer = next(answers, None)
        return answer if answer is not None else await good(request)

    for route in fake.runner.app.router.routes():
        if route.handler == good:
            route._handler = listen
    async with watching(fake) as stream:
        assert await take(stream, 2) == [Connected, WATCHED]
    assert len(caplog.records) == 1
    assert "status 403" in caplog.text


async def test_malformed_messages_are_skipped_with_one_warning(
    fake: SmallServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(fake) as stream:
        await take(stream, 2)
        for text in ("{", "[]", '{"type":"logging","metadata":{}}', json.dumps(EVENT)):
            await fake.listeners[0].send_str(text)
        await fake.listeners[0].send_bytes(b"\xff\x00")
        await fake.listeners[0].send_str(json.dumps(EVENT))
        assert await take(stream, 2) == [WATCHED, WATCHED]
    assert len(caplog.records) == 1


async def test_cancelled_watch_ends(fake: SmallServer) -> None:
    async with watching(fake) as stream:
        await take(stream, 2)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
