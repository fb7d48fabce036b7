"""The server's socket is found by itself or set, and a missing one says what was tried."""

import socket
from pathlib import Path

import pytest

from incus_numa.errors import UnreachableError
from incus_numa.server import sockets
from incus_numa.server.protocol import Product
from incus_numa.server.sockets import FoundSocket

INCUS = "var/lib/incus/unix.socket"
RUN_INCUS = "run/incus/unix.socket"
SNAP = "var/snap/lxd/common/lxd/unix.socket"
LXD = "var/lib/lxd/unix.socket"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # Binding by a relative path keeps clear of the 108 bytes a socket's path may have.
    return tmp_path


def make(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)


@pytest.mark.parametrize(
    ("present", "first", "product"),
    [
        ((INCUS, RUN_INCUS, SNAP, LXD), INCUS, Product.INCUS),
        ((RUN_INCUS, SNAP, LXD), RUN_INCUS, Product.INCUS),
        ((SNAP, LXD), SNAP, Product.LXD),
        ((LXD,), LXD, Product.LXD),
    ],
)
def test_incus_comes_before_lxd(root: Path, present: tuple[str, ...], first: str, product: Product) -> None:
    for path in present:
        make(path)
    assert sockets.find_socket("", {}, root) == FoundSocket(path=str(root / first), product_hint=product)


@pytest.mark.parametrize(
    ("variable", "value", "path", "product"),
    [
        ("INCUS_SOCKET", "mine/s", "mine/s", Product.INCUS),
        ("INCUS_DIR", "mine", "mine/unix.socket", Product.INCUS),
        ("LXD_DIR", "mine", "mine/unix.socket", Product.LXD),
    ],
)
def test_environment_names_the_place(root: Path, variable: str, value: str, path: str, product: Product) -> None:
    make(path)
    make(LXD)
    found = sockets.find_socket("", {variable: str(root / value)}, root)
    assert found == FoundSocket(path=str(root / path), product_hint=product)


def test_explicit_socket_wins(root: Path) -> None:
    make(INCUS)
    make("mine")
    assert sockets.find_socket(str(root / "mine"), {}, root) == FoundSocket(path=str(root / "mine"))


def test_missing_explicit_socket_is_not_replaced(root: Path) -> None:
    make(INCUS)
    with pytest.raises(UnreachableError, match=r"mine \(does not exist\); correct server.socket"):
        sockets.find_socket(str(root / "mine"), {}, root)


def test_everything_tried_is_listed(root: Path) -> None:
    (root / "run/incus").mkdir(parents=True)
    (root / RUN_INCUS).write_text("not a socket")
    with pytest.raises(UnreachableError) as error:
        sockets.find_socket("", {"INCUS_SOCKET": "/no/socket", "INCUS_DIR": "", "LXD_DIR": "/no/lxd"}, root)
    text = str(error.value)
    for place in ("/no/socket", INCUS, RUN_INCUS + " (is not a socket)", "/no/lxd/unix.socket", SNAP, LXD):
        assert place in text
    assert "install and start Incus or LXD" in text


def test_impossible_path_is_reported(root: Path) -> None:
    with pytest.raises(UnreachableError, match="no server found"):
        sockets.find_socket("/a\0b", {}, root)
