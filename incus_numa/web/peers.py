"""Who is at the other end of a unix socket, and whether they belong to its group."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

_CREDENTIALS = struct.Struct("3i")
"""`struct ucred` of unix(7): process, user, group."""

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
    """Who may use a socket: root, we ourselves, and the members of a group."""

    def __init__(self, group: int | None, accounts: Accounts) -> None:
        self.group = group
        self._accounts = accounts

    def knows(self, peer: Peer) -> bool | None:
        """Whether a peer is one of them; None where the databases must be asked."""
        if peer.uid in (0, os.geteuid()):
            return True
        if self.group is None:
            return False
        return True if peer.gid == self.group else None

    def look_up(self, peer: Peer) -> bool:
        """Ask the databases, which may take long."""
        return self.group in self._accounts.list_groups(peer.uid)


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
