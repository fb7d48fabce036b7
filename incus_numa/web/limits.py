"""How much is done at a time, and how long a client may take over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from incus_numa.web.problems import AGAIN_S, Problem, Refusal

MOST_BODY = 64 << 10
"""Bytes of a body."""

MOST_WATCHING = 32
"""So many may watch events at a time, at each of the unix socket and TCP."""

HEADERS_S = 10.0
"""How long a connection may be open without a request being complete, and how long it is kept for the next one."""

READ_S = 10.0
"""How long the body of a request may take."""

SEND_S = 30.0
"""How long a client may take to accept an answer."""

LINGER_S = 2.0
"""How long what a client sends after its answer is still read, so that it sees the answer."""

HANDSHAKE_S = 10.0
"""How long TLS may take to begin."""


def most_connections(max_clients: int) -> int:
    """How many connections may be open: those that ask, those that watch, and as many that are idle."""
    return 2 * max_clients + MOST_WATCHING


class Gate:
    """Lets so many through at a time."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self.inside = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be one of them. Raises Refusal where there are enough."""
        if self.inside >= self._most:
            again = {"Retry-After": str(AGAIN_S)}
            raise Refusal(Problem(status=503, detail=f"{self._most} {self._what} already", headers=again))
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
