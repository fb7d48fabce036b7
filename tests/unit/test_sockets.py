"""The server's socket is found by itself or set, and a missing one says what was tried."""

import socket
from pathlib import Path

import pytest

from incus_numa.errors import UnreachableError
from incus_numa.server import sockets
from incus_numa.server.protocol import Product, ServerInfo
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
    found = sockets.find_socket("", {}, root)
    assert (found.path, found.product_hint) == (str(root / first), product)


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
    assert (found.path, found.product_hint) == (str(root / path), product)


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


@pytest.mark.parametrize("product", Product)
def test_product_that_is_asked_for_is_taken(root: Path, product: Product) -> None:
    for path in (INCUS, SNAP, LXD):
        make(path)
    expected = {Product.INCUS: INCUS, Product.LXD: SNAP}[product]
    found = sockets.find_socket("", {}, root, product=product)
    assert found == FoundSocket(path=str(root / expected), product_hint=product)
    assert sockets.explain_choice(found) is None


@pytest.mark.parametrize(
    ("there", "product", "says"),
    [
        (INCUS, Product.LXD, 'only Incus is there, at {root}/var/lib/incus/unix.socket: set server.product = "incus"'),
        (
            SNAP,
            Product.INCUS,
            "only LXD is there, at {root}/var/snap/lxd/common/lxd/unix.socket: set server.product = ",
        ),
    ],
)
def test_product_that_is_not_there_is_missed_and_the_other_named(
    root: Path, there: str, product: Product, says: str
) -> None:
    make(there)
    with pytest.raises(UnreachableError) as raised:
        sockets.find_socket("", {}, root, product=product)
    assert says.format(root=root) in str(raised.value)
    tried = str(raised.value).split(";")[0]
    assert there not in tried


def test_product_that_is_asked_for_on_a_host_without_any_is_missed(root: Path) -> None:
    with pytest.raises(UnreachableError, match=r"expected the Unix socket of LXD at .*install and start LXD"):
        sockets.find_socket("", {}, root, product=Product.LXD)


def test_two_servers_are_told_with_how_to_choose(root: Path) -> None:
    for path in (RUN_INCUS, LXD):
        make(path)
    found = sockets.find_socket("", {}, root)
    assert found.passed_over == str(root / LXD)
    text = sockets.explain_choice(found) or ""
    assert text.startswith(f"Incus is used, at {root / RUN_INCUS}; LXD is on this host, too, at {root / LXD}")
    assert "server.product" in text


@pytest.mark.parametrize("paths", [(INCUS, RUN_INCUS), (SNAP, LXD)])
def test_two_sockets_of_one_server_are_no_choice(root: Path, paths: tuple[str, ...]) -> None:
    for path in paths:
        make(path)
    assert sockets.explain_choice(sockets.find_socket("", {}, root)) is None


def test_explicit_socket_is_no_choice(root: Path) -> None:
    make(INCUS)
    make(LXD)
    assert sockets.explain_choice(sockets.find_socket(str(root / LXD), {}, root)) is None


def test_server_that_is_not_the_product_asked_for_is_not_used() -> None:
    info = ServerInfo(product=Product.INCUS, version="7.0", extensions=frozenset())
    sockets.check_product(info, None, "/s")
    sockets.check_product(info, Product.INCUS, "/s")
    with pytest.raises(UnreachableError, match=r'server\.product is "lxd", but Incus answers at /s'):
        sockets.check_product(info, Product.LXD, "/s")


def test_setting_names_a_product_or_none() -> None:
    assert [sockets.parse_product(word) for word in ("auto", "incus", "lxd")] == [None, Product.INCUS, Product.LXD]
