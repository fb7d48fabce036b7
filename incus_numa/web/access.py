"""Who may do what. Rules over facts of a request, and the token file; `peers` knows who is at a unix socket.

Over the unix socket everything is allowed to those who may open it. Over TCP everybody may read on loopback, and
changes need the token; where TCP can be reached from outside, everything does.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from incus_numa.errors import ReportError
from incus_numa.web.problems import Problem, Refusal

log = logging.getLogger(__name__)

READS = frozenset({"GET", "HEAD"})
"""Methods that change nothing, whatever they are asked for."""

JSON = "application/json"
CARRIES = frozenset({"POST", "PUT", "PATCH"})
"""Methods with a body; a page of another origin can send a POST unasked, but not with this type."""

LEAST_TOKEN = 16
"""A shorter token could be guessed."""

MOST_TOKEN = 4096

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What is known of a request before it is carried out.

    `is_member` says of a unix socket whether its peer may use it, None over TCP. `address` is the one that was
    connected to. Headers that were not sent are None; `hosts` are all the Host headers there are. `is_known` says that
    there is such a path with such a method.
    """

    method: str
    is_member: bool | None = None
    address: str = ""
    hosts: tuple[str, ...] = ()
    origin: str | None = None
    authorization: str | None = None
    content_type: str = ""
    is_known: bool = True


class TokenFile:
    """The token that changes need over TCP, read again when its file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._token: bytes | None = None
        self._said = ""

    def check(self) -> None:
        """Raises ReportError if there is no token that may be used."""
        self._token, self._seen = self._read()

    def admits(self, authorization: str | None) -> bool:
        """Whether an Authorization header has the token. A file that went bad admits nobody, which is logged once."""
        try:
            if self._stamp(self._path.stat()) != self._seen:
                self._token, self._seen = self._read()
            self._said = ""
        except (OSError, ReportError) as error:
            self._token, self._seen = None, ()
            told = str(error) if isinstance(error, ReportError) else f"{self._path}: {error.strerror}"
            if told != self._said:
                log.error("nobody is let in by a token: %s", told)
            self._said = told
        scheme, _, given = (authorization or "").partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)

    def _read(self) -> tuple[bytes, tuple[int, ...]]:
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                text = file.read(MOST_TOKEN + 1).strip()
        except OSError as error:
            raise ReportError(f"api.token_file {self._path} cannot be read: {error.strerror}") from error
        if about.st_mode & stat.S_IRWXO:
            raise ReportError(
                f"api.token_file {self._path} may be opened by everybody: chmod o= it, and better write a new token"
            )
        if not LEAST_TOKEN <= len(text) <= MOST_TOKEN or not all(33 <= one <= 126 for one in text):
            raise ReportError(
                f"api.token_file {self._path}: expected one line of {LEAST_TOKEN} to {MOST_TOKEN} visible ASCII "
                f"characters, such as `openssl rand -hex 32` prints"
            )
        return text, self._stamp(about)

    @staticmethod
    def _stamp(about: os.stat_result) -> tuple[int, ...]:
        return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """The rules of one daemon. `names` are those under which TCP is reached, in small letters.

    `is_inside` says that TCP is on loopback, so that who reaches it is on this host.
    """

    names: frozenset[str] = frozenset({"localhost"})
    token: TokenFile | None = None
    is_inside: bool = True

    def check(self, visit: Visit) -> None:
        """Raises Refusal if this visit may not be carried out."""
        if visit.is_member is False:
            raise _refusal(403, "the socket is for root and the members of its group: see api.group")
        if visit.is_member is None:
            self._check_host(visit)
        _check_origin(visit)
        if visit.is_member is None:
            self._check_token(visit)
        if visit.is_known and visit.method in CARRIES and visit.content_type != JSON:
            raise _refusal(415, f"expected Content-Type: {JSON}")

    def _check_host(self, visit: Visit) -> None:
        # A page whose name was made to point here would else be let in as one of ours.
        found = _HOST.fullmatch(visit.hosts[0]) if len(visit.hosts) == 1 else None
        name = "" if found is None else (found[1] or found[2]).lower()
        if name and (name in self.names or _same_address(name, visit.address)):
            return
        raise _refusal(421, "this name is not ours: use the address, localhost, or add the name to api.hosts")

    def _check_token(self, visit: Visit) -> None:
        if self.is_inside and visit.method in READS and visit.authorization is None:
            return
        if self.token is None:
            if self.is_inside and visit.method in READS:
                return
            raise _refusal(403, "TCP is for reading: use the unix socket, or set api.token_file")
        if not self.token.admits(visit.authorization):
            told = "the token is not the one in api.token_file" if visit.authorization else "a token is needed"
            headers = {"WWW-Authenticate": 'Bearer realm="incus-numa"'}
            raise Refusal(Problem(status=401, detail=f"{told}: Authorization: Bearer TOKEN", headers=headers))


def is_loopback(address: str) -> bool:
    """Whether only this host reaches an address; of what is no address, nothing is known, so it is not."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _check_origin(visit: Visit) -> None:
    """A page of another origin must not act in the name of who looks at it, nor see what is answered."""
    if visit.origin is None:
        return
    try:
        parts = urlsplit(visit.origin)
    except ValueError:
        parts = urlsplit("")
    own = visit.hosts[0].lower() if len(visit.hosts) == 1 else ""
    if parts.scheme in _PORTS and own:
        default = f":{_PORTS[parts.scheme]}"
        if parts.netloc.lower().removesuffix(default) == own.removesuffix(default):
            return
    raise _refusal(403, "the request comes from a page of another origin")


def _same_address(name: str, address: str) -> bool:
    try:
        own, asked = ipaddress.ip_address(address.partition("%")[0]), ipaddress.ip_address(name)
    except ValueError:
        return False
    return asked in (own, getattr(own, "ipv4_mapped", None))


def _refusal(status: int, detail: str) -> Refusal:
    return Refusal(Problem(status=status, detail=detail))
