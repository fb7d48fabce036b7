"""Notices as server-sent events (HTML standard, 9.2): each is written once and passed on to all who watch.

Nothing is kept: who comes again sees what happens from then on. Who reads too slowly is told so and cut off, so that
what is kept for them is bounded.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from incus_numa.model.notice import Notice
from incus_numa.web.limits import Limits
from incus_numa.web.telling import KINDS, render_notice

_BEGIN = b"retry: 2000\n\n"
_COMMENT = b": nothing happened\n\n"


class Listener:
    """One who watches: the events that are still to be sent, so many bytes at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._missed = 0
        self.is_over = False

    def put(self, text: bytes) -> None:
        """Keep an event; when there are too many, all of them are forgotten and the end is told."""
        if self._size + len(text) > self._most and not self.is_over:
            self._missed, self.is_over = len(self._kept), True
            self._drop()
        if self.is_over:
            self._missed += 1
        else:
            self._kept.append(text)
            self._size += len(text)
        self._wake.set()

    def end(self) -> None:
        """No more events come."""
        self.is_over = True
        self._wake.set()

    async def take(self, wait_s: float) -> bytes:
        """What is to be sent next: all events there are, a comment where none came in time."""
        if not self._kept and not self.is_over:
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return _COMMENT
        found = b"".join(self._kept)
        self._drop()
        if self._missed:
            found += b"event: overflow\ndata: " + msgspec.json.encode({"missed": self._missed}) + b"\n\n"
        return found

    def _drop(self) -> None:
        self._kept.clear()
        self._size = 0


class Broadcast:
    """Those who watch. `take` is called with every notice."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._listeners: set[Listener] = set()
        self._count = 0
        self._is_over = False

    def take(self, notice: Notice) -> None:
        """Pass a notice on to all who watch."""
        self._count += 1
        if not self._listeners:
            return
        data = msgspec.json.encode(render_notice(notice))
        text = b"id: %d\nevent: %s\ndata: %s\n\n" % (self._count, KINDS[type(notice)].encode(), data)
        for one in self._listeners:
            one.put(text)

    def end(self) -> None:
        """Let everybody go, and nobody in any more."""
        self._is_over = True
        for one in self._listeners:
            one.end()

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Send what happens until the client goes, is too slow, or the daemon ends."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        response.force_close()
        if request.method == "HEAD":
            return response
        listener = Listener(self._limits.kept_bytes)
        if self._is_over:
            listener.end()
        self._listeners.add(listener)
        try:
            await response.prepare(request)
            await self._write(request, response, _BEGIN)
            while True:
                found = await listener.take(self._limits.quiet_s)
                await self._write(request, response, found)
                if listener.is_over and found is not _COMMENT:
                    break
            await response.write_eof()
        except TimeoutError:
            abort(request)
        except ConnectionError:
            # They have gone, which nobody needs to be told.
            return response
        finally:
            self._listeners.discard(listener)
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, text: bytes) -> None:
        """Send and wait until it is taken. Raises TimeoutError and ConnectionError."""
        async with asyncio.timeout(self._limits.event_s):
            await response.write(text)
            await request.writer.drain()


def abort(request: web.Request) -> None:
    """Cut the connection at once: closing it would wait until everything is taken."""
    if request.transport is not None:
        request.transport.abort()
