"""Which of our errors a server's refusal or a broken connection is. Pure; both adapters use it, so they agree.

The server answers most refusals with 500 and a sentence, so the sentence decides. Sources in Incus:
internal/server/instance/operationlock (busy), internal/server/project/permissions.go (restricted projects, project
limits), internal/instance/config.go (unknown keys).
"""

from __future__ import annotations

import errno

from incus_numa.errors import (
    ForbiddenKeyError,
    GoneError,
    IncusNumaError,
    ReportError,
    RetryError,
    UnreachableError,
)

# "invalid pid" is what a container's state says for a moment while it reboots.
_BUSY = ("instance is busy", "matching non-reusable operation", "database is locked", "invalid pid")
_FORBIDDEN = ("is forbidden", "low-level", "checking if instance update allowed", "unknown configuration key")
_NOT_ALLOWED = (401, 403)
_UNAVAILABLE = (429, 503)


def wrap_error(status: int, message: str, request: str) -> IncusNumaError:
    """The error to raise for an HTTP status other than success and the server's own message."""
    text = f"{request}: the server answered {status}: {message}"
    lower = message.lower()
    if status == 404:
        return GoneError(text)
    if status == 412 or status in _UNAVAILABLE or any(one in lower for one in _BUSY):
        return RetryError(text)
    if any(one in lower for one in _FORBIDDEN):
        return ForbiddenKeyError(text)
    if status in _NOT_ALLOWED:
        return UnreachableError(f"{text}; expected to be allowed to: run as root or as a member of incus-admin or lxd")
    return ReportError(text)


def unreachable(socket: str, error: BaseException) -> UnreachableError:
    """Why the socket cannot be used, what is expected, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        do = "it may not be used: run as root or as a member of the group incus-admin (Incus) or lxd (LXD)"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        do = "it does not exist: expected a Unix socket of Incus or LXD; start the server or set server.socket"
    elif number == errno.ECONNREFUSED:
        do = "nothing listens there: expected a running Incus or LXD; start it, for example systemctl start incus"
    elif isinstance(error, TimeoutError):
        do = "it did not answer in time: expected a running Incus or LXD; see its log, or raise server.timeout_s"
    else:
        what = str(error) or type(error).__name__
        do = f"the connection broke ({what}): expected a running Incus or LXD; see its log"
    return UnreachableError(f"cannot use the server's socket {socket}: {do}")


def broken(socket: str, error: BaseException, *, retry: bool) -> IncusNumaError:
    """The error for a connection that broke after the request was sent: a change may be tried again with its ETag."""
    wrapped = unreachable(socket, error)
    return RetryError(str(wrapped)) if retry else wrapped
