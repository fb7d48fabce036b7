"""Connections as aiohttp has them, but bounded in number and in what they may keep waiting."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web

from incus_numa.web import problems
from incus_numa.web.limits import Limits
from incus_numa.web.problems import Problem

log = logging.getLogger(__name__)

HARDENED = {
    "Server": "incus-numa",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""

UNLESS_TOLD = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Headers of every answer that does not have others."""


def harden(response: web.StreamResponse) -> None:
    """Give an answer the headers that every answer has."""
    response.headers.update(HARDENED)
    for name, value in UNLESS_TOLD.items():
        response.headers.setdefault(name, value)


class Crowd:
    """How many connections there are at one socket."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0


class Connection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_crowd", "_is_counted")

    def __init__(self, manager: web.Server, crowd: Crowd, limits: Limits) -> None:
        self._crowd, self._is_counted = crowd, False
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.headers_s,
            lingering_time=limits.linger_s,
            # What is logged is said where it is known that it holds no secret.
            access_log=cast(Any, None),
            auto_decompress=False,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, unless there are too many."""
        if self._crowd.count >= self._crowd.most:
            log.debug("a connection was refused: there are %d already", self._crowd.count)
            cast(asyncio.Transport, transport).abort()
            return
        self._crowd.count += 1
        self._is_counted = True
        # So that waiting for what was written means that the client has taken it.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Make room for another one."""
        if self._is_counted:
            self._crowd.count -= 1
            self._is_counted = False
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP. Neither the answer nor the log repeats what was sent, which may be a token."""
        log.log(logging.DEBUG if status < 500 else logging.ERROR, "status %d: %s", status, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer was sent already")
        response = problems.respond(Problem(status=status, detail="the request cannot be read as HTTP"), "/")
        harden(response)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Say of what kind it was; what it says may hold what a client sent."""
        error = kw.get("exc_info")
        log.error("a connection was ended by a bug: %s", type(error).__name__)
