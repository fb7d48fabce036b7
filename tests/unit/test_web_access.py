"""Who may do what: the rules over a visit, one by one."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from incus_numa.errors import ConfigError, ReportError
from incus_numa.settings import parse_settings
from incus_numa.web.access import Access, TokenFile, Visit
from incus_numa.web.peers import BELIEVED_S, Members, Peer, choose_group
from incus_numa.web.problems import Refusal

TOKEN = "0123456789abcdef"
OWN = "127.0.0.1:9714"


def status(access: Access, visit: Visit) -> int:
    """What a visit is answered, 200 if it is let in."""
    try:
        access.check(visit)
    except Refusal as refusal:
        return refusal.problem.status
    return 200


def tcp(
    method: str = "GET",
    host: str = OWN,
    *,
    origin: str | None = None,
    token: str | None = None,
    content_type: str = "application/json",
) -> Visit:
    return Visit(
        method=method,
        address="127.0.0.1",
        hosts=(host,),
        origin=origin,
        authorization=None if token is None else f"Bearer {token}",
        content_type=content_type,
    )


def unix(
    method: str = "GET", *, is_member: bool = True, origin: str | None = None, content_type: str = "application/json"
) -> Visit:
    return Visit(method=method, is_member=is_member, hosts=("localhost",), origin=origin, content_type=content_type)


def token_file(folder: Path, text: str = TOKEN, mode: int = 0o600) -> TokenFile:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return TokenFile(path)


@pytest.fixture
def secured(tmp_path: Path) -> Access:
    """TCP on loopback, with a token."""
    token = token_file(tmp_path)
    token.check()
    return Access(token=token)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_members_may_do_everything_over_the_unix_socket_and_others_nothing(method: str) -> None:
    assert [status(Access(), unix(method, is_member=is_member)) for is_member in (True, False)] == [200, 403]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_everybody_may_read_over_tcp_on_loopback(secured: Access, method: str) -> None:
    assert [status(access, tcp(method)) for access in (Access(), secured)] == [200, 200]


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "TRACE", "MADEUP"])
def test_what_is_no_read_needs_the_token_over_tcp(secured: Access, method: str) -> None:
    tokens = (None, "", "another-token-of-16", TOKEN[:-1], TOKEN)
    assert [status(secured, tcp(method, token=token)) for token in tokens] == [401, 401, 401, 401, 200]


def test_tcp_without_a_token_file_is_for_reading() -> None:
    assert status(Access(), tcp("PUT", token=TOKEN)) == 403


def test_a_wrong_token_is_told_even_where_none_is_needed(secured: Access) -> None:
    assert status(secured, tcp("GET", token="wrong")) == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_where_tcp_is_reached_from_outside_everything_needs_the_token(secured: Access, method: str) -> None:
    outside = Access(token=secured.token, is_inside=False)
    unprotected = Access(is_inside=False)
    assert [status(outside, tcp(method, token=token)) for token in (None, TOKEN)] == [401, 200]
    assert status(unprotected, tcp(method)) == 403


def test_a_refused_token_tells_which_kind_is_expected(secured: Access) -> None:
    with pytest.raises(Refusal) as refusal:
        secured.check(tcp("PUT"))
    assert refusal.value.problem.headers["WWW-Authenticate"].startswith("Bearer")
    assert TOKEN not in refusal.value.problem.detail


@pytest.mark.parametrize(
    ("scheme", "expected"), [("Bearer", 200), ("bearer", 200), ("Basic", 401), ("", 401), ("BearerX", 401)]
)
def test_only_bearer_tokens_count(secured: Access, scheme: str, expected: int) -> None:
    visit = Visit(method="GET", address="127.0.0.1", hosts=(OWN,), authorization=f"{scheme} {TOKEN}".strip())
    assert status(secured, visit) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:9714", 200),
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("numa.example:9714", 200),
        ("evil.example:9714", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example@localhost", 421),
        ("localhost:9714:1", 421),
        ("127.0.0.2", 421),
        ("[::1]:9714", 421),
        ("", 421),
    ],
)
def test_only_our_own_names_are_answered_over_tcp(host: str, expected: int) -> None:
    access = Access(names=frozenset({"localhost", "numa.example"}))
    assert status(access, tcp(host=host)) == expected


@pytest.mark.parametrize(
    ("address", "host"), [("::1", "[::1]:9714"), ("::ffff:127.0.0.1", "127.0.0.1"), ("fe80::1%3", "[fe80::1]")]
)
def test_the_address_that_was_connected_to_is_a_name_of_ours(address: str, host: str) -> None:
    assert status(Access(), Visit(method="GET", address=address, hosts=(host,))) == 200


@pytest.mark.parametrize("hosts", [(), (OWN, "evil.example"), (OWN, OWN)])
def test_a_request_without_one_host_is_refused(hosts: tuple[str, ...]) -> None:
    assert status(Access(), Visit(method="GET", address="127.0.0.1", hosts=hosts)) == 421


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 200),
        (f"http://{OWN}", 200),
        (f"https://{OWN}", 200),
        (f"HTTP://{OWN}", 200),
        ("http://127.0.0.1", 403),
        ("http://localhost:9714", 403),
        ("http://evil.example", 403),
        (f"http://evil.example@{OWN}", 403),
        (f"ftp://{OWN}", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_pages_of_other_origins_are_refused(secured: Access, method: str, origin: str | None, expected: int) -> None:
    assert status(secured, tcp(method, origin=origin, token=TOKEN)) == expected


def test_the_port_of_the_scheme_need_not_be_told() -> None:
    found = [
        status(Access(), tcp(host=host, origin=origin))
        for host, origin in (
            ("localhost", "http://localhost:80"),
            ("localhost:443", "https://localhost"),
            ("localhost:80", "https://localhost"),
        )
    ]
    assert found == [200, 200, 403]


def test_pages_of_other_origins_are_refused_on_the_unix_socket_too() -> None:
    assert [status(Access(), unix(origin=origin)) for origin in ("http://localhost", "http://evil.example")] == [
        200,
        403,
    ]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_any_page_may_send_is_refused(method: str, content_type: str) -> None:
    assert status(Access(), unix(method, content_type=content_type)) == 415


def test_a_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    token = token_file(tmp_path)
    token.check()
    before = [token.admits(f"Bearer {text}") for text in (TOKEN, "fedcba9876543210")]
    token_file(tmp_path, "fedcba9876543210\n")
    assert (before, [token.admits(f"Bearer {text}") for text in (TOKEN, "fedcba9876543210")]) == (
        [True, False],
        [False, True],
    )


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (TOKEN, 0o604, "may be opened by everybody"),
        (TOKEN, 0o602, "may be opened by everybody"),
        ("short", 0o600, "expected one line"),
        ("", 0o600, "expected one line"),
        (f"{TOKEN}\nsecond line", 0o600, "expected one line"),
        (f"{TOKEN}é", 0o600, "expected one line"),
        ("x" * 5000, 0o600, "expected one line"),
    ],
)
def test_a_token_file_that_is_bad_is_refused(tmp_path: Path, text: str, mode: int, told: str) -> None:
    with pytest.raises(ReportError, match=told):
        token_file(tmp_path, text, mode).check()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_owner_and_group_may_read_the_token_file(tmp_path: Path, mode: int) -> None:
    token = token_file(tmp_path, mode=mode)
    token.check()
    assert token.admits(f"Bearer {TOKEN}")


def test_nobody_is_let_in_by_a_token_file_that_went_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = token_file(tmp_path)
    token.check()
    found = []
    for change in (lambda path: path.chmod(0o644), lambda path: path.unlink(), lambda _: token_file(tmp_path)):
        change(tmp_path / "token")
        found += [token.admits(f"Bearer {TOKEN}") for _ in range(2)]
    assert found == [False] * 4 + [True] * 2
    assert len(caplog.records) == 2
    assert TOKEN not in caplog.text


class Accounts:
    """One user, 1000, whose groups are 7 and 8."""

    def find_group(self, name: str) -> int | None:
        return {"incus-admin": 7, "lxd": 9}.get(name)

    def list_groups(self, uid: int) -> frozenset[int]:
        return frozenset((7, 8)) if uid == 1000 else frozenset()


@pytest.mark.parametrize(
    ("uid", "gid", "group", "expected"),
    [
        (0, 0, None, True),
        (os.geteuid(), 5, None, True),
        (1000, 7, None, False),
        (1000, 5, 7, True),
        (1000, 5, 8, True),
        (1000, 5, 9, False),
        (2000, 7, 7, True),
        (2000, 5, 7, False),
    ],
)
async def test_root_ourselves_and_the_group_are_members(uid: int, gid: int, group: int | None, expected: bool) -> None:
    assert await Members(group, Accounts()).admit(Peer(uid=uid, gid=gid)) is expected


class Counted(Accounts):
    """Accounts that wait until they may answer, and count how often they were asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = threading.Event()

    def list_groups(self, uid: int) -> frozenset[int]:
        self.asked += 1
        self.may_answer.wait(10)
        return super().list_groups(uid)


async def test_what_the_group_database_said_is_believed_for_a_while() -> None:
    accounts, now = Counted(), [0.0]
    accounts.may_answer.set()
    members, peer = Members(7, accounts, clock=lambda: now[0]), Peer(uid=1000, gid=5)
    found = [await members.admit(peer) for _ in range(3)]
    asked = accounts.asked
    now[0] += BELIEVED_S + 1
    assert (found, await members.admit(peer), asked, accounts.asked) == ([True] * 3, True, 1, 2)


async def test_a_group_database_that_does_not_answer_keeps_nobody_else_waiting() -> None:
    accounts = Counted()
    members = Members(7, accounts, look_up_s=0.05)
    asking = [members.admit(Peer(uid=1000 + number, gid=5)) for number in range(40)]
    found = await asyncio.gather(*asking, return_exceptions=True)
    # Where placing writes its files: all of those threads are free.
    await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(int) for _ in range(40))), 5)
    accounts.may_answer.set()
    assert {one.problem.status for one in found if isinstance(one, Refusal)} == {503}
    assert len([one for one in found if isinstance(one, Refusal)]) == 40


@pytest.mark.parametrize(("wanted", "found"), [("", 7), ("lxd", 9), ("nobody-has-it", None)])
def test_the_group_is_the_one_that_is_set_or_the_first_that_there_is(wanted: str, found: int | None) -> None:
    assert choose_group(wanted, Accounts()) == found


@pytest.mark.parametrize("name", ["numa.example:9714", "http://numa.example", "", "a b", "*.example"])
def test_a_name_that_no_host_header_has_is_refused_by_the_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=r"api\.hosts"):
        parse_settings(f'[api]\nhosts = ["numa.example", "{name}"]\n')
