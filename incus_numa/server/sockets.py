"""Where the server's Unix socket is. Called by the daemon and by every command that needs a server."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from incus_numa.errors import UnreachableError
from incus_numa.server.protocol import Product

_INCUS = ("var/lib/incus/unix.socket", "run/incus/unix.socket")
_LXD = ("var/snap/lxd/common/lxd/unix.socket", "var/lib/lxd/unix.socket")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundSocket:
    """A socket that exists. `product_hint` is whose it should be by its place, None where the user named it."""

    path: str
    product_hint: Product | None = None


def find_socket(explicit: str, environ: Mapping[str, str], root: Path = Path("/")) -> FoundSocket:
    """The explicit socket, else the first that exists of Incus, then of LXD.

    Raises UnreachableError with everything that was tried and what to do. Permission is not checked: that shows when
    the socket is used, and says more there.
    """
    tried = []
    candidates = [(Path(explicit), None)] if explicit else _candidates(environ, root)
    for path, hint in candidates:
        missing = _missing(path)
        if missing is None:
            return FoundSocket(path=str(path), product_hint=hint)
        tried.append(f"{path} ({missing})")
    do = (
        "correct server.socket in the configuration, or leave it empty to search"
        if explicit
        else "install and start Incus or LXD, or set server.socket in the configuration"
    )
    raise UnreachableError(f"no server found: expected the Unix socket of Incus or LXD at {', '.join(tried)}; {do}")


def _candidates(environ: Mapping[str, str], root: Path) -> Iterator[tuple[Path, Product | None]]:
    if environ.get("INCUS_SOCKET"):
        yield Path(environ["INCUS_SOCKET"]), Product.INCUS
    for variable, product, places in (("INCUS_DIR", Product.INCUS, _INCUS), ("LXD_DIR", Product.LXD, _LXD)):
        if environ.get(variable):
            yield Path(environ[variable]) / "unix.socket", product
        for place in places:
            yield root / place, product


def _missing(path: Path) -> str | None:
    """Why this is not a socket we could try; None when it is, or when its folder may not be looked into."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except PermissionError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error).lower()
    return None if stat.S_ISSOCK(mode) else "is not a socket"
