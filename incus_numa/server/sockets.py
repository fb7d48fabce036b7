"""Where the server's Unix socket is. Called by the daemon and by every command that needs a server."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from incus_numa.errors import UnreachableError
from incus_numa.server.protocol import Product, ServerInfo

_INCUS = ("var/lib/incus/unix.socket", "run/incus/unix.socket")
_LXD = ("var/snap/lxd/common/lxd/unix.socket", "var/lib/lxd/unix.socket")


_NAMES = {Product.INCUS: "Incus", Product.LXD: "LXD"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundSocket:
    """A socket that exists. `product_hint` is whose it should be by its place, None where the user named it.

    `passed_over` is the socket of the other product, where both are there and the settings do not choose.
    """

    path: str
    product_hint: Product | None = None
    passed_over: str | None = None


def find_socket(
    explicit: str, environ: Mapping[str, str], root: Path = Path("/"), *, product: Product | None = None
) -> FoundSocket:
    """The explicit socket, else the first that exists: of the product, else of Incus, then of LXD.

    Raises UnreachableError with everything that was tried and what to do. Permission is not checked: that shows when
    the socket is used, and says more there.
    """
    if explicit:
        missing = _missing(Path(explicit))
        if missing is None:
            return FoundSocket(path=explicit)
        raise _not_found(f"{explicit} ({missing})", "correct server.socket in the configuration, or leave it empty")
    places = list(_candidates(environ, root))
    there = [(path, own) for path, own, missing in places if missing is None]
    wanted = [(path, own) for path, own in there if product in (None, own)]
    if wanted:
        path, own = wanted[0]
        others = [str(other) for other, owner in there if owner is not own and product is None]
        return FoundSocket(path=str(path), product_hint=own, passed_over=others[0] if others else None)
    tried = ", ".join(f"{path} ({missing})" for path, own, missing in places if product in (None, own))
    if there and product is not None:
        path, own = there[0]
        do = (
            f'the configuration asks for server.product = "{product.value}", and only {_NAMES[own]} is there, at {path}'
        )
        raise _not_found(tried, f'{do}: set server.product = "{own.value}" or "auto"', product)
    raise _not_found(tried, f"install and start {_name(product)}, or set server.socket in the configuration", product)


def explain_choice(found: FoundSocket) -> str | None:
    """That there are two servers, what that means and how to choose; None where there is one."""
    if found.product_hint is None or found.passed_over is None:
        return None
    other = Product.LXD if found.product_hint is Product.INCUS else Product.INCUS
    return (
        f"{_NAMES[found.product_hint]} is used, at {found.path}; {_NAMES[other]} is on this host, too, at "
        f"{found.passed_over}, and its instances are neither placed nor counted: set server.product to choose"
    )


def check_product(info: ServerInfo, product: Product | None, socket: str) -> None:
    """Raises UnreachableError when not the product answers that the settings ask for."""
    if product is not None and info.product is not product:
        raise UnreachableError(
            f'server.product is "{product.value}", but {_NAMES[info.product]} answers at {socket}: correct '
            "server.product or server.socket"
        )


def parse_product(text: str) -> Product | None:
    """The setting `server.product`: None for `auto`. Raises ValueError for any other word."""
    return None if text == "auto" else Product(text)


def _not_found(tried: str, do: str, product: Product | None = None) -> UnreachableError:
    return UnreachableError(f"no server found: expected the Unix socket of {_name(product)} at {tried}; {do}")


def _name(product: Product | None) -> str:
    return "Incus or LXD" if product is None else _NAMES[product]


def _candidates(environ: Mapping[str, str], root: Path) -> Iterator[tuple[Path, Product, str | None]]:
    """Where sockets may be, whose they would be, and why there is none."""
    paths: list[tuple[Path, Product]] = []
    if environ.get("INCUS_SOCKET"):
        paths.append((Path(environ["INCUS_SOCKET"]), Product.INCUS))
    for variable, product, places in (("INCUS_DIR", Product.INCUS, _INCUS), ("LXD_DIR", Product.LXD, _LXD)):
        if environ.get(variable):
            paths.append((Path(environ[variable]) / "unix.socket", product))
        paths += [(root / place, product) for place in places]
    return ((path, product, _missing(path)) for path, product in paths)


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
