"""The APIs in the virtual host, spoken from outside through forwarded sockets: the server's and the daemon's.

Under emulation each start of the server's own command costs more than two seconds, and one of curl more than one.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ApiError(AssertionError):
    """The server refused; the text is its own."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("server", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One of the server-sent events."""

    kind: str
    data: dict[str, Any]


class OwnApi:
    """Requests to the daemon of incus-numa. Each has a connection of its own, so threads may share it."""

    def __init__(self, path: Path, timeout_s: float = 60) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and document of an answer; None where there is no document."""
        with self._open() as connection:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def get(self, path: str) -> Any:
        """The document, which must be there."""
        status, document = self.ask("GET", path)
        if status != 200:
            raise ApiError(f"GET {path}: {status} {document}")
        return document

    @contextmanager
    def events(self) -> Iterator[Iterator[Event]]:
        """What happens from now on; waits for each for as long as a request may take."""
        with self._open() as connection:
            connection.request("GET", "/v1/events")
            answer = connection.getresponse()
            if answer.status != 200:
                raise ApiError(f"GET /v1/events: {answer.status} {answer.read()!r}")
            yield _read_events(answer)

    @contextmanager
    def _open(self) -> Iterator[_Connection]:
        connection = _Connection(self._path, self._timeout_s)
        try:
            yield connection
        finally:
            connection.close()


def _read_events(answer: http.client.HTTPResponse) -> Iterator[Event]:
    kind = ""
    for line in answer:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield Event(kind=kind, data=json.loads(value))


class Api:
    """Requests to one server. Each has a connection of its own, so threads may share it."""

    def __init__(self, path: Path, timeout_s: float = 150) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """What the server answers. Raises ApiError."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: object = None) -> Any:
        """What the server answers, for an operation what it ended with. Raises ApiError if it refuses or it fails."""
        answer = self._send(method, path, body)
        if answer["type"] == "async":
            answer = self._send("GET", f"{answer['operation']}/wait?timeout={self._timeout_s:.0f}", None)
            ended = answer["metadata"]
            if ended["status_code"] != 200:
                raise ApiError(f"{method} {path}: {ended['status']} {ended['err']}")
        return answer["metadata"]

    def _send(self, method: str, path: str, body: object) -> Any:
        connection = _Connection(self._path, self._timeout_s + 10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer["type"] == "error":
            raise ApiError(f"{method} {path}: {answer['error']}")
        return answer
