"""Asks the daemon's API over its unix socket: for commands that steer the daemon, or are quicker with what it knows."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from incus_numa.errors import (
    ChangedError,
    ConfigError,
    GoneError,
    IncusNumaError,
    ReportError,
    RetryError,
    UnreachableError,
)
from incus_numa.settings import ApiSettings, Settings

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""How long a daemon may take to answer."""

SILENCE_S = 60.0
"""A daemon that has nothing to tell says so every 15 s; after so long it is gone."""

_SERVER_GONE = "urn:incus-numa:server-unreachable"


async def ask(
    settings: Settings,
    method: str,
    path: str,
    body: Any = None,
    *,
    within_s: float = ANSWER_S,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """What the daemon answers, decoded; None when there is no daemon. `path` has its escapes already.

    Raises ConfigError with everything that is wrong with the request, GoneError (404), RetryError (it is busy; or
    ChangedError, if it is not as `headers` say any more),
    UnreachableError (its server does not answer), and ReportError for anything else, with what to do.
    """
    api = settings.api
    if not api.enabled or not _is_there(api.socket):
        return None
    # It takes longer to import than a command takes that finds no daemon.
    import aiohttp
    from yarl import URL

    connector, timeout = aiohttp.UnixConnector(path=api.socket), aiohttp.ClientTimeout(total=within_s)
    url = URL(f"http://localhost{path}", encoded=True)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, url, json=body, headers=headers, allow_redirects=False) as response,
        ):
            status, content = response.status, await response.read()
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
            log.debug("no daemon at %s: %s", api.socket, error.os_error.strerror)
            return None
        raise _unconnected(api, error.os_error) from error
    except TimeoutError as error:
        do = "look at `journalctl -u incus-numa`"
        raise ReportError(f"the daemon at {api.socket} did not answer within {within_s:g} s: {do}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ReportError(f"the daemon at {api.socket} broke off ({error}): try again") from error
    return _decode(api, status, content)


async def ask_daemon(
    settings: Settings, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
) -> Any:
    """The same for those who cannot do without. Raises ReportError with what to do when there is no daemon, too."""
    found = await ask(settings, method, path, body, headers=headers)
    if found is not None:
        return found
    if not settings.api.enabled:
        raise ReportError("the daemon has no API: set api.enabled and restart it")
    raise ReportError(
        f"no daemon answers at {settings.api.socket}: start it with `systemctl start incus-numa` (`systemctl status "
        "incus-numa` and `journalctl -u incus-numa` say why it ended), or name the configuration of the one that runs "
        "with --config"
    )


async def watch_events(settings: Settings) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """What happens, as kinds and documents, until the daemon ends or the connection is lost, which is no error.

    Raises ReportError if the daemon refuses to tell.
    """
    import aiohttp

    connector = aiohttp.UnixConnector(path=settings.api.socket)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S, sock_read=SILENCE_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://localhost/v1/events") as response,
        ):
            if response.status != 200:
                _decode(settings.api, response.status, await response.read())
            kind = ""
            async for line in response.content:
                field, _, text = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                if field == "event":
                    kind = text
                elif field == "data":
                    yield kind, msgspec.json.decode(text, type=dict[str, Any])
    except (aiohttp.ClientError, OSError, ValueError) as error:
        log.debug("events of the daemon at %s are lost: %s", settings.api.socket, error)


def _is_there(socket: str) -> bool:
    """Whether there is such a file, or may be, where its folder may not be looked into."""
    try:
        Path(socket).stat()
    except (FileNotFoundError, NotADirectoryError):
        log.debug("no daemon: there is no %s", socket)
        return False
    except (OSError, ValueError):
        return True
    return True


def _unconnected(api: ApiSettings, error: OSError) -> ReportError:
    if isinstance(error, PermissionError):
        return ReportError(f"{api.socket} may not be opened by this user: {_whose(api)}")
    return ReportError(f"{api.socket} cannot be opened: {error.strerror or error}; correct api.socket")


def _whose(api: ApiSettings) -> str:
    """Who may use the socket, as advice."""
    return f"be root or a member of the group {api.group or 'incus-admin or lxd'} (api.group)"


def _decode(api: ApiSettings, status: int, content: bytes) -> Any:
    try:
        document = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _stranger(api) from error
    if status < 300 and document is not None:
        return document
    if status < 400 or not isinstance(document, dict) or not isinstance(document.get("detail"), str):
        raise _stranger(api)
    raise _explain(api, status, document)


def _stranger(api: ApiSettings) -> ReportError:
    return ReportError(f"what answers at {api.socket} is no API of incus-numa: correct api.socket")


def _explain(api: ApiSettings, status: int, problem: dict[str, Any]) -> IncusNumaError:
    """Problem details of RFC 9457 as the error of ours that they were made from."""
    detail = problem["detail"]
    if status in (401, 403):
        return ReportError(f"the daemon refuses: {detail}; {_whose(api)}")
    if status == 404:
        return GoneError(detail)
    if status == 412:
        return ChangedError(detail)
    if status == 422:
        return ConfigError(tuple(_mistakes(problem)) or (detail,))
    if status == 503 and problem.get("type") == _SERVER_GONE:
        return UnreachableError(detail)
    if status in (409, 503):
        return RetryError(f"{detail}: try again")
    return ReportError(f"the daemon could not do it: {detail}")


def _mistakes(problem: dict[str, Any]) -> Iterator[str]:
    """Every mistake as a sentence, with its key."""
    for one in problem.get("errors", ()):
        key = one.get("pointer", "").removeprefix("#").strip("/").replace("/", ".")
        yield f"{key}: {one['detail']}" if key else one["detail"]
