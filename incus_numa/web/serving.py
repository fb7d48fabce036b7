"""Serves the API while the daemon works. What goes wrong with it is logged and does not end the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from incus_numa.errors import ReportError
from incus_numa.model.notice import Notice, SettingsChanged
from incus_numa.settings import ApiSettings, parse_listen
from incus_numa.web.access import Access, TokenFile, is_loopback
from incus_numa.web.app import Front, create_app
from incus_numa.web.connections import Connection, Crowd
from incus_numa.web.doors import Tls, bind_tcp, bind_unix
from incus_numa.web.limits import DEFAULT, Limits
from incus_numa.web.peers import GROUPS, Accounts, HostAccounts, Members, choose_group
from incus_numa.web.protocol import Exposition, Host
from incus_numa.web.stream import Broadcast

log = logging.getLogger(__name__)

STOP_S = 1.0
"""How long requests that are under way may still take when the daemon is stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What is shown and to whom. `max_instances` may change while the daemon runs."""

    host: Host
    exposition: Exposition
    settings: ApiSettings
    max_instances: Callable[[], int]
    accounts: Accounts = field(default_factory=HostAccounts)
    limits: Limits = DEFAULT


@asynccontextmanager
async def serving(stage: Stage) -> AsyncIterator[tuple[str, ...]]:
    """Serve the API until the block ends; gives the addresses at which that works, none where it does not."""
    server = _Server(stage)
    addresses = await server.open() if stage.settings.enabled else ()
    try:
        yield addresses
    finally:
        await server.close()


class _Server:
    """The sockets, and the application behind them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._settings = stage.settings
        self._broadcast = Broadcast(stage.limits)
        self._runner: web.AppRunner | None = None
        self._listening: list[asyncio.Server] = []
        self._file: tuple[Path, os.stat_result] | None = None
        self._unwatch: Callable[[], None] | None = None
        self._tls: Tls | None = None

    async def open(self) -> tuple[str, ...]:
        """Begin to serve. What cannot be is logged and left out."""
        group = await asyncio.to_thread(self._find_group)
        try:
            token = self._read_token()
        except ReportError as error:
            # Without a token changes over TCP are refused; an address that needs one is not listened on.
            log.error("no API over TCP: %s", error)
            token = None
        self._runner = web.AppRunner(self._make_app(group, token), access_log=None, shutdown_timeout=STOP_S)
        await self._runner.setup()
        self._unwatch = self._stage.host.watch(self._take)
        addresses = [self._settings.socket] if await self._open_unix(group) else []
        if self._settings.listen and (token is not None or not self._settings.token_file) and await self._open_tcp():
            addresses.append(self._settings.listen)
        if addresses:
            log.info("API at %s", " and ".join(addresses))
        return tuple(addresses)

    async def close(self) -> None:
        """Let everybody go."""
        if self._unwatch is not None:
            self._unwatch()
        self._broadcast.end()
        for one in self._listening:
            one.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._file is not None:
            path, own = self._file
            with suppress(OSError):
                if os.path.samestat(path.lstat(), own):
                    path.unlink()

    def _take(self, notice: Notice) -> None:
        """Tell those who watch. That settings came in force is what a reload looks like from here."""
        self._broadcast.take(notice)
        if self._tls is None or not isinstance(notice, SettingsChanged):
            return
        try:
            if self._tls.read_again():
                log.info("certificate of the API read again: %s", self._settings.tls_certificate)
        except ReportError as error:
            log.error("certificate of the API not read again, the old one stays: %s", error)

    def _make_app(self, group: int | None, token: TokenFile | None) -> web.Application:
        names = {"localhost", *(name.lower() for name in self._settings.hosts)}
        is_inside = True
        with suppress(ValueError):
            address, _ = parse_listen(self._settings.listen)
            names.add(address)
            is_inside = is_loopback(address)
        front = Front(
            access=Access(names=frozenset(names), token=token, is_inside=is_inside),
            members=Members(group, self._stage.accounts),
            max_clients=self._settings.max_clients,
            max_instances=self._stage.max_instances,
            limits=self._stage.limits,
        )
        return create_app(self._stage.host, front, self._stage.exposition, self._broadcast)

    def _find_group(self) -> int | None:
        wanted = self._settings.group
        group = choose_group(wanted, self._stage.accounts)
        if group is None and wanted:
            log.error("there is no group %s (api.group): the API's socket is for root alone", wanted)
        elif group is None:
            log.info("there is no group %s: the API's socket is for root alone", " or ".join(GROUPS))
        return group

    def _read_token(self) -> TokenFile | None:
        if not self._settings.token_file:
            return None
        token = TokenFile(Path(self._settings.token_file))
        token.check()
        return token

    async def _open_unix(self, group: int | None) -> bool:
        path = Path(self._settings.socket)
        try:
            bound = bind_unix(path, group)
        except (OSError, ReportError) as error:
            log.error("no API at %s: %s", path, error)
            return False
        self._file = path, os.lstat(path)
        await self._listen(bound, None)
        return True

    async def _open_tcp(self) -> bool:
        try:
            bound, self._tls = bind_tcp(self._settings)
        except (OSError, ReportError) as error:
            log.error("no API at %s: %s", self._settings.listen, error)
            return False
        await self._listen(bound, None if self._tls is None else self._tls.context)
        return True

    async def _listen(self, bound: socket.socket, context: ssl.SSLContext | None) -> None:
        manager = None if self._runner is None else self._runner.server
        if manager is None:
            raise RuntimeError("there is no application to listen for")
        limits = self._stage.limits
        crowd = Crowd(limits.most_connections(self._settings.max_clients))
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(manager, crowd, limits)

        if bound.family == socket.AF_UNIX:
            server = await loop.create_unix_server(connect, sock=bound)
        else:
            handshake_s = None if context is None else limits.handshake_s
            server = await loop.create_server(connect, sock=bound, ssl=context, ssl_handshake_timeout=handshake_s)
        self._listening.append(server)
