"""Who is at the other end of a unix socket, and whether they belong to its group."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from incus_numa.web.problems import AGAIN_S, Problem, Refusal
from incus_numa.web.workers import Workers

_CREDENTIALS = struct.Struct("3i")
"""`struct ucred` of unix(7): process, user, group."""

LOOK_UP_S = 5.0
"""How long the databases are waited for: behind them may be a directory that does not answer."""

BELIEVED_S = 10.0
"""For how long what they said of a user is believed."""

GROUPS = ("incus-admin", "lxd")
"""Those who may use the server's own socket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A process as it was when it connected."""

    uid: int
    gid: int


class Accounts(Protocol):
    """The users and groups of a host."""

    def find_group(self, name: str) -> int | None:
        """The id of a group, None if there is none of this name."""

    def list_groups(self, uid: int) -> frozenset[int]:
        """Every group that a user belongs to; none of an unknown user."""


class HostAccounts:
    """The user and group databases of this host. They may ask the network, so not in an event loop."""

    def find_group(self, name: str) -> int | None:
        """The id of a group, None if there is none of this name."""
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return None

    def list_groups(self, uid: int) -> frozenset[int]:
        """Every group that a user belongs to; none of an unknown user."""
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return frozenset()
        return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))


class Members:
    """Who may use a socket: root, we ourselves, and the members of a group. One event loop uses it.

    The databases are asked in threads of its own, as they may take long. `clock` never goes back.
    """

    def __init__(
        self,
        group: int | None,
        accounts: Accounts,
        *,
        look_up_s: float = LOOK_UP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.group = group
        self._accounts = accounts
        self._look_up_s = look_up_s
        self._clock = clock
        self._workers = Workers("accounts", 2)
        self._said: dict[int, tuple[float, bool]] = {}

    async def admit(self, peer: Peer) -> bool:
        """Whether a peer is one of them. Raises Refusal where the databases do not say it in time."""
        if peer.uid in (0, os.geteuid()):
            return True
        if self.group is None:
            return False
        return peer.gid == self.group or await self._look_up(peer.uid)

    async def _look_up(self, uid: int) -> bool:
        now = self._clock()
        self._said = {one: said for one, said in self._said.items() if said[0] > now}
        if uid not in self._said:
            try:
                async with asyncio.timeout(self._look_up_s):
                    groups = await self._workers.run(lambda: self._accounts.list_groups(uid))
            except TimeoutError as error:
                told = f"the groups of user {uid} could not be found out within {self._look_up_s:g} s"
                raise Refusal(Problem(status=503, detail=told, headers={"Retry-After": str(AGAIN_S)})) from error
            self._said[uid] = now + BELIEVED_S, self.group in groups
        return self._said[uid][1]


def read_peer(connection: socket.socket) -> Peer:
    """Who connected. Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(uid=uid, gid=gid)


def choose_group(wanted: str, accounts: Accounts) -> int | None:
    """The group of the socket: the one that is set, else the first that there is of those of the servers."""
    for name in (wanted,) if wanted else GROUPS:
        found = accounts.find_group(name)
        if found is not None:
            return found
    return None
