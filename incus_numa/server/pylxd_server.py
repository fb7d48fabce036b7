"""Incus or LXD over pylxd's raw API: what the one-shot commands use.

pylxd is blocking and its sessions are not thread-safe, so calls run in a few worker threads with one client each. It
is imported with the first call, and aiohttp with the first watch, because loading them takes longer than most commands
take to run.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from incus_numa.errors import IncusNumaError, ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.server import decode, refusals
from incus_numa.server.protocol import Heard, Listing, Project, ServerInfo, ServerInstance

_WORKERS = 4


class PylxdServer:
    """The Server protocol over `pylxd.Client.api`; model objects are never used, their save() replaces everything.

    Reads say `is_api=False`, so that pylxd leaves the body to our decoder instead of decoding it for its own check.
    """

    def __init__(self, socket: str, timeout_s: float = 30.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._workers = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="pylxd")
        self._local = threading.local()
        self._sessions: list[Any] = []

    async def get_info(self) -> ServerInfo:
        """Who answers, and what it can do."""
        response = await self._call(decode.INFO_REQUEST, lambda api: api.get(is_api=False))
        return decode.decode_info(response.content)

    async def list_instances(self) -> Listing:
        """All instances of all projects, in one request, without ETag and pid. A broken one hides no other."""
        params = {"recursion": "1", "all-projects": "true"}
        response = await self._call(decode.LIST_REQUEST, lambda api: api.instances.get(params=params, is_api=False))
        return decode.decode_instances(response.content)

    async def get_instance(self, key: InstanceKey) -> ServerInstance:
        """One instance with its ETag, in one request. Raises GoneError."""
        params = {"project": key.project}
        name = quote(key.name, safe="")
        response = await self._call(
            decode.INSTANCE_REQUEST, lambda api: api.instances[name].get(params=params, is_api=False)
        )
        return decode.decode_instance(response.content, response.headers.get("ETag"))

    async def get_pid(self, key: InstanceKey) -> int | None:
        """The pid of a running instance's init or QEMU, None when it does not run. Raises GoneError."""
        params = {"project": key.project}
        name = quote(key.name, safe="")
        response = await self._call(
            decode.STATE_REQUEST, lambda api: api.instances[name].state.get(params=params, is_api=False)
        )
        return decode.decode_pid(response.content)

    async def patch_config(self, key: InstanceKey, changes: Mapping[str, str], etag: str | None) -> None:
        """Change keys of one instance, if it still has the ETag.

        Raises RetryError (412, busy, connection lost), GoneError, ForbiddenKeyError, ReportError.
        """
        request = f"PATCH /1.0/instances/{key.name}"
        content = {"config": dict(changes)}
        headers = {} if etag is None else {"If-Match": etag}
        params = {"project": key.project}
        name = quote(key.name, safe="")
        response = await self._call(
            request, lambda api: api.instances[name].patch(json=content, headers=headers, params=params)
        )
        decode.decode_done(response.content, request)

    async def list_projects(self) -> tuple[Project, ...]:
        """All projects with their keys, in one request."""
        params = {"recursion": "1"}
        response = await self._call(decode.PROJECTS_REQUEST, lambda api: api.projects.get(params=params, is_api=False))
        return decode.decode_projects(response.content)

    async def get_resources(self) -> bytes:
        """The `metadata` of `GET /1.0/resources`, as JSON."""
        response = await self._call(decode.RESOURCES_REQUEST, lambda api: api.resources.get(is_api=False))
        return decode.decode_metadata(response.content, decode.RESOURCES_REQUEST)

    def watch_events(self) -> AsyncIterator[Heard]:
        """Lifecycle events of all projects, for ever: reconnects by itself, with `Connected` first each time."""
        from incus_numa.server import events

        return events.watch_events(self._socket)

    async def close(self) -> None:
        """Give back connections and end the worker threads."""
        await asyncio.to_thread(self._workers.shutdown)
        while self._sessions:
            self._sessions.pop().close()

    async def _call(self, request: str, use: Callable[[Any], Any]) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._use, request, use)

    def _use(self, request: str, use: Callable[[Any], Any]) -> Any:
        """Run in a worker thread: the response, or one of our errors."""
        import requests
        from pylxd.exceptions import ClientConnectionFailed, LXDAPIException

        try:
            return use(self._client().api)
        except IncusNumaError:
            raise
        except LXDAPIException as error:
            response = error.response
            if response.status_code == 200:
                return response  # Not what it should be, which the decoder says better.
            raise refusals.wrap_error(response.status_code, decode.decode_error(response.content), request) from error
        except (requests.exceptions.InvalidJSONError, KeyError, TypeError) as error:
            # What pylxd itself lets through when an answer is not the JSON it expects.
            what = str(getattr(error, "doc", error))[:80]
            raise ReportError(f"{request}: expected the server's standard answer in JSON, got {what!r}") from error
        except requests.exceptions.Timeout as error:
            raise refusals.broken(self._socket, TimeoutError(), retry=request.startswith("PATCH")) from error
        except (requests.exceptions.RequestException, ClientConnectionFailed, OSError) as error:
            cause = _cause(error)
            if cause.errno in _NOT_CONNECTED or not request.startswith("PATCH"):
                raise refusals.unreachable(self._socket, cause) from error
            raise refusals.broken(self._socket, cause, retry=True) from error

    def _client(self) -> Any:
        """This thread's client. Making one asks the server who it is."""
        client = getattr(self._local, "client", None)
        if client is not None:
            return client
        import pylxd

        # pylxd would take a missing path for an address, and leaves its own socket open when it cannot connect.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._timeout_s)
            try:
                probe.connect(self._socket)
            except OSError as error:
                raise refusals.unreachable(self._socket, error) from error
        # The session is made here to be closed when the client, whose first act is a request, cannot be made.
        session = pylxd.client.get_session_for_url(f"http+unix://{quote(self._socket, safe='')}")
        self._sessions.append(session)
        client = pylxd.Client(endpoint=self._socket, timeout=self._timeout_s, session=session)
        self._local.client = client
        return client


_NOT_CONNECTED = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.EACCES, errno.EPERM)


def _cause(error: BaseException) -> OSError:
    """The operating system's error behind the libraries' wrappers, which keep it as an argument, cause or context."""
    seen: list[BaseException] = [error]
    for one in seen:
        if isinstance(one, OSError) and one.errno is not None:
            return one
        inner = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
        seen.extend(item for item in inner if isinstance(item, BaseException) and item not in seen)
    return OSError(str(error) or type(error).__name__)
