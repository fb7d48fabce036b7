"""A server whose socket may not be there yet: at boot it may come after the daemon, and it may be installed later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from incus_numa.errors import UnreachableError
from incus_numa.model.notice import ServerCalled
from incus_numa.server import events, sockets
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Heard
from incus_numa.server.sockets import FoundSocket

log = logging.getLogger(__name__)

SEARCH_S = 5.0
"""How often the socket is looked for while there is none."""


class AwaitedServer(HttpServer):
    """Whoever follows its events waits for its socket; nothing else may be asked of it before that is found.

    `find` raises UnreachableError while there is none.
    """

    def __init__(
        self, find: Callable[[], FoundSocket], timeout_s: float, tell: Callable[[ServerCalled], None] | None = None
    ) -> None:
        super().__init__("", timeout_s, tell)
        self._find = find

    @property
    def path(self) -> str:
        """Its socket, empty until it is found."""
        return self._socket

    async def watch_events(self) -> AsyncIterator[Heard]:
        """Lifecycle events of all projects, for ever, from when there is a socket on."""
        await self._search()
        async for heard in events.watch_events(self._socket):
            yield heard

    async def _search(self) -> None:
        said = ""
        while not self._socket:
            try:
                found = self._find()
            except UnreachableError as error:
                if said != str(error):
                    said = str(error)
                    log.warning("%s; looking again every %g s", error, SEARCH_S)
                await asyncio.sleep(SEARCH_S)
                continue
            self._socket = found.path
            log.info("server %s", found.path)
            if choice := sockets.explain_choice(found):
                log.info("%s", choice)
