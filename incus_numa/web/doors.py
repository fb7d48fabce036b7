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


def bind_tcp(settings: ApiSettings) -> tuple[socket.socket, Tls | None]:
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
    tls = Tls(settings) if settings.tls_certificate else None
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.create_server((address, port), family=family, backlog=BACKLOG)
    return bound, tls


class Tls:
    """TLS 1.2 or later with the certificate of the settings. Raises ReportError where that cannot be used.

    `context` is for those who listen: whatever is read later, a connection is shown what was read last.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._certificate, self._key = settings.tls_certificate, settings.tls_key
        self._seen = self._stamps()
        self._newest = self.context = self._read()
        self.context.sni_callback = self._show_newest

    def read_again(self) -> bool:
        """Show new connections the certificate that is in the files by now; says whether these have changed.

        Raises ReportError where it cannot be used; the one that there was is still shown then.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        # Not into the context that is used: it would be left with a certificate and another's key.
        self._newest = self._read()
        self._seen = stamps
        return True

    def _show_newest(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        """Called at the beginning of each connection, whether the client names us or not."""
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # With a password set, a key that is encrypted is an error; else the daemon would ask a terminal for it.
            context.load_cert_chain(self._certificate, self._key or None, password="")
        except (OSError, ValueError) as error:
            told = f"api.tls_certificate {self._certificate} or its key cannot be used"
            raise ReportError(f"{told}: {getattr(error, 'strerror', None) or error}") from error
        return context

    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        """What changes with the files; () for those that are not there."""
        return tuple(_stamp(Path(one)) for one in (self._certificate, self._key) if one)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size
