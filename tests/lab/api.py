"""The server's API, spoken from outside the virtual host through a forwarded socket. Used by lab.py.

Under emulation each start of the server's own command costs more than two seconds, and one of curl more than one.
"""

from __future__ import annotations

import http.client
import json
import socket
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
