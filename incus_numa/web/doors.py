"""The sockets of the API: bound so that nobody gets in who is not to, or not at all."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path

from incus_numa.errors import ReportError
from incus_numa.settings import ApiSettings, parse_listen
from incus_numa.web.access import is_loopback

BACKLOG = 64
ANSWER_S = 1.0
"""How long to wait for somebody who may still use a socket file."""


def bind_unix(path: Path, group: int | None) -> socket.socket:
    """A unix socket that the group may open, without one only its owner. A file that nobody answers on is replaced.

    Raises ReportError and OSError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _clear(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The file is made with the mode of the socket, so that it is never open to more than it is to be.
        os.fchmod(bound.fileno(), 0o600)
        bound.bind(str(path))
        if group is not None:
            if group != os.getegid():
                os.chown(path, -1, group)
            path.chmod(0o660)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def _clear(path: Path) -> None:
    """Remove the socket that a daemon left behind that was killed."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(about.st_mode):
        raise ReportError(f"{path} is there and no socket: remove it, or set api.socket to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ANSWER_S)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise ReportError(f"{path} may be in use by another daemon: {error}") from error
    raise ReportError(f"{path} is in use by another daemon: stop that one, or set api.socket to another path")


def bind_tcp(settings: ApiSettings) -> tuple[socket.socket, ssl.SSLContext | None]:
    """A TCP socket, and TLS where it is set up. Raises ReportError and OSError.

    On an address that can be reached from outside there is none without TLS and a token, whatever checked that before.
    """
    try:
        address, port = parse_listen(settings.listen)
    except ValueError as error:
        raise ReportError(f"api.listen: {error}") from error
    secured = bool(settings.token_file and settings.tls_certificate)
    if not is_loopback(address) and not secured:
        raise ReportError(f"{address} can be reached from outside: it needs api.token_file and api.tls_certificate")
    context = make_tls(settings) if settings.tls_certificate else None
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.create_server((address, port), family=family, backlog=BACKLOG)
    return bound, context


def make_tls(settings: ApiSettings) -> ssl.SSLContext:
    """TLS 1.2 or later with the certificate of the settings. Raises ReportError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # With a password set, a key that is encrypted is an error; else the daemon would ask a terminal for it.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key or None, password="")
    except (OSError, ValueError) as error:
        told = f"api.tls_certificate {settings.tls_certificate} or its key cannot be used"
        raise ReportError(f"{told}: {getattr(error, 'strerror', None) or error}") from error
    return context
