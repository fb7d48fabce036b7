"""The server's lifecycle events, as they come, over a websocket that is opened again whenever it is lost.

Events are hints: nothing is replayed after a gap, so `Connected` comes first after every connection and tells the
caller to list everything. Format: doc/events.md of Incus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base, wait_random_exponential

from incus_numa.server import decode, refusals
from incus_numa.server.protocol import Connected, Disconnected, Event, Heard

log = logging.getLogger(__name__)

_URL = "http://incus/1.0/events?type=lifecycle&all-projects=true"
_HEARTBEAT_S = 10.0
_HANDSHAKE_S = 10.0
_CLOSE_S = 1.0
# A connection that lived this long was a good one: the next loss starts with a short wait again.
_SETTLED_S = 10.0
_PACE = wait_random_exponential(multiplier=0.2, min=0.1, max=10)


class _Backoff:
    """How long to wait before the next connection; grows with every loss in a row."""

    def __init__(self, pace: wait_base) -> None:
        self._pace = pace
        self.reset()

    def reset(self) -> None:
        """Start with a short wait again."""
        self._state = RetryCallState(retry_object=AsyncRetrying(), fn=None, args=(), kwargs={})

    def next_s(self) -> float:
        """Seconds to wait now."""
        wait_s = self._pace(self._state)
        self._state.attempt_number += 1
        return wait_s


async def watch_events(
    socket: str, *, heartbeat_s: float = _HEARTBEAT_S, pace: wait_base = _PACE
) -> AsyncIterator[Heard]:
    """Lifecycle events of all projects: `Connected`, the events of that connection, `Disconnected`, and so on for ever.

    A server that answers no ping for one and a half `heartbeat_s` counts as lost. Never raises but for cancellation.
    """
    backoff, lost = _Backoff(pace), False
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket), timeout=timeout) as session:
        while True:
            since, is_open = loop.time(), False
            try:
                async with await _connect(session, heartbeat_s) as websocket:
                    if lost:
                        log.info("event stream is back: socket=%s", socket)
                    lost, is_open = False, True
                    yield Connected()
                    async for event in _events(websocket):
                        yield event
                    reason = str(websocket.exception() or f"the server closed it, code {websocket.close_code}")
            except (aiohttp.ClientError, OSError) as error:
                reason = _reason(socket, error)
            if is_open:
                yield Disconnected()
            if not lost:
                log.warning("event stream is lost, trying again until it is back: %s", reason)
                lost = True
            if loop.time() - since > _SETTLED_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())


async def _connect(session: aiohttp.ClientSession, heartbeat_s: float) -> aiohttp.ClientWebSocketResponse:
    """A websocket that is closed from our side when the server leaves a ping unanswered."""
    async with asyncio.timeout(_HANDSHAKE_S):
        return await session.ws_connect(_URL, heartbeat=heartbeat_s, timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S))


async def _events(websocket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Event]:
    """What the messages of one connection say, until it ends. Senseless ones are skipped, and that is said once."""
    told = False
    async for message in websocket:
        event = decode.decode_event(message.data) if isinstance(message.data, str | bytes) else None
        if event is not None:
            yield event
        elif not told:
            told = True
            log.warning("skipped a message that is no lifecycle event: %.120r", message.data)


def _reason(socket: str, error: BaseException) -> str:
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return f"the server refused the event stream with status {error.status}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(refusals.unreachable(socket, error.os_error))
    return str(refusals.unreachable(socket, error))
