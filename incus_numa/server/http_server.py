"""Incus or LXD over aiohttp: what the daemon uses, because a request costs it a fraction of what pylxd needs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from incus_numa.errors import ForbiddenKeyError, GoneError, IncusNumaError, RetryError, UnreachableError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import ServerCalled
from incus_numa.server import decode, events, refusals
from incus_numa.server.protocol import Heard, Listing, Project, ServerInfo, ServerInstance

# The server ignores the host of a request that comes over its socket.
_BASE = "http://incus"

_KINDS: Mapping[type[IncusNumaError], str] = {
    UnreachableError: "unreachable",
    RetryError: "busy",
    GoneError: "gone",
    ForbiddenKeyError: "forbidden",
}
"""Errors as they are told."""


class HttpServer:
    """The Server protocol over one aiohttp session on the Unix socket."""

    def __init__(
        self, socket: str, timeout_s: float = 30.0, tell: Callable[[ServerCalled], None] | None = None
    ) -> None:
        self._socket = socket
        self._tell = tell
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def get_info(self) -> ServerInfo:
        """Who answers, and what it can do."""
        body, _ = await self._get(decode.INFO_REQUEST, "/1.0")
        return decode.decode_info(body)

    async def list_instances(self) -> Listing:
        """All instances of all projects, in one request, without ETag and pid. A broken one hides no other."""
        body, _ = await self._get(decode.LIST_REQUEST, "/1.0/instances?recursion=1&all-projects=true")
        return decode.decode_instances(body)

    async def get_instance(self, key: InstanceKey) -> ServerInstance:
        """One instance with its ETag, in one request. Raises GoneError."""
        body, etag = await self._get(decode.INSTANCE_REQUEST, _path(key))
        return decode.decode_instance(body, etag)

    async def get_pid(self, key: InstanceKey) -> int | None:
        """The pid of a running instance's init or QEMU, None when it does not run. Raises GoneError."""
        body, _ = await self._get(decode.STATE_REQUEST, _path(key, "/state"))
        return decode.decode_pid(body)

    async def patch_config(self, key: InstanceKey, changes: Mapping[str, str], etag: str | None) -> None:
        """Change keys of one instance, if it still has the ETag.

        Raises RetryError (412, busy, connection lost), GoneError, ForbiddenKeyError, ReportError.
        """
        request = f"PATCH /1.0/instances/{key.name}"
        headers = {"Content-Type": "application/json"}
        if etag is not None:
            headers["If-Match"] = etag
        content = msgspec.json.encode({"config": dict(changes)})
        body, _ = await self._send(request, "PATCH", _path(key), content=content, headers=headers)
        decode.decode_done(body, request)

    async def list_projects(self) -> tuple[Project, ...]:
        """All projects with their keys, in one request."""
        body, _ = await self._get(decode.PROJECTS_REQUEST, "/1.0/projects?recursion=1")
        return decode.decode_projects(body)

    async def get_resources(self) -> bytes:
        """The `metadata` of `GET /1.0/resources`, as JSON."""
        body, _ = await self._get(decode.RESOURCES_REQUEST, "/1.0/resources")
        return decode.decode_metadata(body, decode.RESOURCES_REQUEST)

    def watch_events(self) -> AsyncIterator[Heard]:
        """Lifecycle events of all projects, for ever: reconnects by itself, with `Connected` first each time."""
        return events.watch_events(self._socket)

    async def close(self) -> None:
        """Give back connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _get(self, request: str, path: str) -> tuple[bytes, str | None]:
        return await self._send(request, "GET", path)

    async def _send(
        self,
        request: str,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str | None]:
        """Body and ETag of a successful answer; everything else becomes one of our errors. Both are told."""
        began, error = time.monotonic(), "cancelled"
        try:
            answer = await self._ask(request, method, path, content, headers)
            error = ""
        except IncusNumaError as failed:
            error = _KINDS.get(type(failed), "failed")
            raise
        finally:
            if self._tell is not None:
                # The name of the instance would make each call one of its own.
                call = decode.PATCH_REQUEST if method == "PATCH" else request
                self._tell(ServerCalled(call=call, took_s=time.monotonic() - began, error=error or None))
        return answer

    async def _ask(
        self, request: str, method: str, path: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[bytes, str | None]:
        if self._session is None:
            connector = aiohttp.UnixConnector(path=self._socket, limit=32)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        url = URL(_BASE + path, encoded=True)
        try:
            async with self._session.request(method, url, data=content, headers=headers) as response:
                body = await response.read()
                if response.status != 200:
                    raise refusals.wrap_error(response.status, decode.decode_error(body), request)
                return body, response.headers.get("ETag")
        except IncusNumaError:
            raise
        except aiohttp.ClientConnectorError as error:
            raise refusals.unreachable(self._socket, error.os_error) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise refusals.broken(self._socket, error, retry=method == "PATCH") from error


def _path(key: InstanceKey, below: str = "") -> str:
    return f"/1.0/instances/{quote(key.name, safe='')}{below}?project={quote(key.project, safe='')}"
