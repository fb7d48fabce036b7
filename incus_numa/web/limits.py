"""How much is done at a time, and how long a client may take over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from incus_numa.web.problems import AGAIN_S, Problem, Refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may take of the API; times in seconds.

    `body_bytes` is the size of a body; `headers_s` how long a connection may be open without a request being complete,
    and how long it is kept for the next one; `body_s` how long a body may take, `answer_s` the taking of an answer,
    and `handshake_s` how long TLS may take to begin. What is sent after an answer is still read for `linger_s`, so that
    the client sees the answer.

    So many may be `watching` events at a time, at each of the unix socket and TCP. `kept_bytes` of events are kept for
    one who does not read, and one who takes nothing for `event_s` is cut off. After `quiet_s` without an event a
    comment is sent: nobody between takes the connection for dead then.
    """

    body_bytes: int = 64 << 10
    headers_s: float = 10.0
    body_s: float = 10.0
    answer_s: float = 30.0
    linger_s: float = 2.0
    handshake_s: float = 10.0
    watching: int = 32
    kept_bytes: int = 1 << 20
    event_s: float = 10.0
    quiet_s: float = 15.0

    def most_connections(self, max_clients: int) -> int:
        """How many connections may be open: those that ask, those that watch, and as many that are idle."""
        return 2 * max_clients + self.watching


DEFAULT = Limits()
"""What docs/api.md says."""


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
