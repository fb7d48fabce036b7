"""Who may do what, on real sockets: peers of the unix socket, TCP with and without token and TLS, and bounds."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Refused
from incus_numa.model.plan import Reason, Rejection
from incus_numa.settings import ApiSettings
from incus_numa.web import pages
from incus_numa.web.limits import DEFAULT, Limits
from tests.contract.api_rig import TOKEN, Answer, Api, Client, api, free_address, tcp_client, write_token
from tests.contract.daemon_rig import Rig, rig

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
AS_SOMEBODY = r"""
socket(my $asking, AF_UNIX, SOCK_STREAM, 0) or die $!;
connect($asking, pack_sockaddr_un($ARGV[0])) or die $!;
syswrite $asking, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
print((split / /, <$asking>)[1]);
"""
"""In Perl, which Debian always has where everybody may run it."""
HARDENED = {
    ("Server", "incus-numa"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
}
POLICY = {"placement": {"smt": "pack"}}


@asynccontextmanager
async def serve(settings: ApiSettings | None = None, limits: Limits = DEFAULT) -> AsyncIterator[tuple[Rig, Api]]:
    async with rig() as r, api(r, settings, limits) as served:
        yield r, served


async def status_for(path: str, uid: int, gid: int) -> int:
    """What another user's process is answered."""
    run = await asyncio.to_thread(
        subprocess.run,
        ["/usr/bin/perl", "-MSocket", "-e", AS_SOMEBODY, path],
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


def open_to_all(path: Path) -> None:
    """Let everybody reach a socket, whatever we think of that."""
    path.chmod(0o666)
    folder = path.parent
    while folder.stat().st_mode & 0o001 == 0:
        folder.chmod(0o755)
        folder = folder.parent


@needs_root
async def test_a_stranger_is_refused_even_where_the_file_would_let_them_in() -> None:
    async with serve(ApiSettings(group="nogroup")) as (_, served):
        open_to_all(Path(served.settings.socket))
        found = [await status_for(served.settings.socket, *ids) for ids in ((NOBODY - 1, NOBODY - 1), (0, NOBODY - 1))]
    assert found == [403, 200]


@needs_root
async def test_members_of_the_group_are_let_in_by_what_they_run_as_and_by_what_the_database_says() -> None:
    async with serve(ApiSettings(group="nogroup")) as (_, served):
        open_to_all(Path(served.settings.socket))
        running_as = await status_for(served.settings.socket, NOBODY - 1, NOBODY)
        # The user nobody is in nogroup, whatever group its process has.
        by_database = await status_for(served.settings.socket, NOBODY, NOBODY - 1)
    assert (running_as, by_database) == (200, 200)


@needs_root
async def test_the_socket_belongs_to_the_group_and_to_nobody_else() -> None:
    async with serve(ApiSettings(group="nogroup")) as (_, served):
        about = os.lstat(served.settings.socket)
    assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (0o660, 0, NOBODY)
    assert not served.socket_is_there()


async def test_without_its_group_the_socket_is_for_root_alone() -> None:
    async with serve(ApiSettings(group="no-such-group")) as (r, served):
        about = os.lstat(served.settings.socket)
        told = r.log.saying("no-such-group", "api.group", level=logging.ERROR)
    assert (stat.S_IMODE(about.st_mode), len(told)) == (0o600, 1)


async def test_a_socket_that_a_dead_daemon_left_is_replaced() -> None:
    async with rig() as r:
        path = r.simulator.socket_path.parent / "api.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with api(r) as served:
            assert (await served.unix.ask("/v1/status")).status == 200


async def test_a_socket_on_which_somebody_answers_is_left_alone() -> None:
    async with rig() as r, api(r) as served:
        before = os.lstat(served.settings.socket)
        async with api(r):
            told = r.log.saying("in use by another daemon", level=logging.ERROR)
        assert os.path.samestat(before, os.lstat(served.settings.socket))
        assert (await served.unix.ask("/v1/status")).status == 200
    assert len(told) == 1


async def test_a_file_that_is_no_socket_is_left_alone() -> None:
    async with rig() as r:
        path = r.simulator.socket_path.parent / "api.sock"
        path.write_text("precious")
        async with api(r):
            told = r.log.saying("no socket", level=logging.ERROR)
        assert (path.read_text(), len(told)) == ("precious", 1)
        path.unlink()


async def test_what_cannot_be_served_does_not_end_the_daemon() -> None:
    address = free_address()
    host, _, port = address.partition(":")
    async with rig() as r:
        with socket.create_server((host, int(port))):
            async with api(r, ApiSettings(listen=address)) as served:
                assert (await served.unix.ask("/v1/status")).status == 200
        told = r.log.saying(address, level=logging.ERROR)
        assert not r.daemon.running.done()
    assert len(told) == 1


async def test_nothing_is_served_where_the_settings_say_so() -> None:
    async with serve(ApiSettings(enabled=False)) as (_, served):
        assert not served.socket_is_there()


async def test_tcp_is_for_reading_and_changes_need_the_token(tmp_path: Path) -> None:
    address = free_address()
    settings = ApiSettings(listen=address, token_file=str(write_token(tmp_path)))
    async with serve(settings) as (r, _), tcp_client(address) as tcp:
        read = await tcp.ask("/v1/policy")
        refused = [
            await tcp.ask("/v1/policy", "PUT", POLICY),
            await tcp.ask("/v1/policy", "DELETE"),
            await tcp.ask("/v1/rebalance", "POST", {"dry_run": True}),
            await tcp.ask("/v1/policy", "PUT", POLICY, Authorization="Bearer wrong-wrong-wrong-wrong"),
        ]
        before = r.daemon.service.settings.placement.smt
        done = await tcp.ask("/v1/policy", "PUT", POLICY, Authorization=f"Bearer {TOKEN}")
    assert (read.status, [one.status for one in refused], before, done.status) == (200, [401] * 4, "spread", 200)
    assert {one.headers["WWW-Authenticate"] for one in refused} == {'Bearer realm="incus-numa"'}


async def test_names_and_origins_of_others_are_refused_over_tcp() -> None:
    address = free_address()
    async with serve(ApiSettings(listen=address, hosts=("numa.example",))) as (_, _), tcp_client(address) as tcp:
        found = [
            (await tcp.ask(path, Host=host)).status
            for path in ("/v1/status", "/metrics", "/", "/nosuch")
            for host in (address, "numa.example", "evil.example")
        ]
        origins = [(await tcp.ask("/v1/status", Origin=f"http://{one}")).status for one in (address, "evil.example")]
    assert found == [200, 200, 421] * 3 + [404, 404, 421]
    assert origins == [200, 403]


@pytest.mark.parametrize("listen", ["0.0.0.0", "[::]"])
async def test_nothing_listens_outside_without_token_and_tls(tmp_path: Path, listen: str) -> None:
    port = free_address().rpartition(":")[2]
    settings = ApiSettings(listen=f"{listen}:{port}", token_file=str(write_token(tmp_path)))
    async with serve(settings) as (r, served):
        assert (await served.unix.ask("/v1/status")).status == 200
        told = r.log.saying("reached from outside", level=logging.ERROR)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(port))
    assert len(told) == 1


async def test_nothing_listens_with_a_token_file_that_everybody_may_read(tmp_path: Path) -> None:
    address = free_address()
    async with serve(ApiSettings(listen=address, token_file=str(write_token(tmp_path, 0o644)))) as (r, _):
        told = r.log.saying("may be opened by everybody", level=logging.ERROR)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    assert len(told) == 1


async def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A new certificate for localhost and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subject = ["-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", *words.split(), *subject, "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    return certificate, key


async def shown_certificate(address: str) -> str:
    """The certificate that a client is shown now."""
    host, _, port = address.partition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=10)


@needs_openssl
async def test_outside_there_is_tls_and_even_reading_needs_the_token(tmp_path: Path) -> None:
    certificate, key = await make_certificate(tmp_path)
    port = free_address().rpartition(":")[2]
    settings = ApiSettings(
        listen=f"0.0.0.0:{port}",
        token_file=str(write_token(tmp_path)),
        tls_certificate=str(certificate),
        tls_key=str(key),
    )
    trusted = ssl.create_default_context(cafile=str(certificate))
    async with serve(settings) as (_, _), tcp_client(f"localhost:{port}", "https", ssl=trusted, family=2) as tcp:
        found = [
            (await tcp.ask(path, **({"Authorization": f"Bearer {token}"} if token else {}))).status
            for path in ("/v1/status", "/metrics", "/")
            for token in ("", TOKEN)
        ]
    assert found == [401, 200] * 3


@needs_openssl
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_new_certificate_is_shown_after_a_reload(tmp_path: Path, host: str) -> None:
    certificate, key = await make_certificate(tmp_path)
    old = certificate.read_text()
    address = free_address()
    settings = ApiSettings(listen=address, tls_certificate=str(certificate), tls_key=str(key))
    asked = address.replace("127.0.0.1", host)
    async with serve(settings) as (r, _):
        shown = [await shown_certificate(asked)]
        await make_certificate(tmp_path)
        shown.append(await shown_certificate(asked))
        r.daemon.service.reload()
        shown.append(await shown_certificate(asked))
        r.daemon.service.reload()
        told = r.log.saying("certificate", "read again", level=logging.INFO)
    assert [one.strip() for one in shown] == [old.strip(), old.strip(), certificate.read_text().strip()]
    assert len(told) == 1


@needs_openssl
@pytest.mark.parametrize("bad", ["cert.pem", "key.pem"])
async def test_a_bad_certificate_or_key_leaves_the_old_one_until_it_is_right(tmp_path: Path, bad: str) -> None:
    certificate, key = await make_certificate(tmp_path)
    old, address = certificate.read_text(), free_address()
    async with serve(ApiSettings(listen=address, tls_certificate=str(certificate), tls_key=str(key))) as (r, _):
        # Another pair, of which one file is not there yet.
        other = tmp_path / "other"
        other.mkdir()
        for one in await make_certificate(other):
            if one.name != bad:
                one.replace(tmp_path / one.name)
        r.daemon.service.reload()
        shown = [await shown_certificate(address)]
        told = r.log.saying(str(certificate), "the old one stays", level=logging.ERROR)
        (other / bad).replace(tmp_path / bad)
        r.daemon.service.reload()
        shown.append(await shown_certificate(address))
    assert [one.strip() for one in shown] == [old.strip(), certificate.read_text().strip()]
    assert len(told) == 1


async def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    address = free_address()
    async with serve(ApiSettings(listen=address, tls_certificate=str(tmp_path / "none.pem"))) as (r, served):
        assert (await served.unix.ask("/v1/status")).status == 200
        assert len(r.log.saying("none.pem", "cannot be used", level=logging.ERROR)) == 1


async def raw(path: str, text: bytes) -> bytes:
    """All that is answered to these bytes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(text)
    found = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    return found


async def test_no_secret_is_logged_or_sent_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "a-secret-in-the-header"
    async with serve() as (r, served):
        broken = await raw(
            served.settings.socket,
            f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\x01\r\n\r\n".encode(),
        )
        answers = [
            await served.unix.ask("/v1/policy", "PUT", POLICY, Authorization=f"Bearer {secret}"),
            await served.unix.ask("/nosuch", Authorization=f"Bearer {secret}"),
        ]
        logged = "\n".join(f"{record.getMessage()} {record.exc_info}" for record in r.log.records)
    assert b" 400 " in broken.splitlines()[0]
    assert b"application/problem+json" in broken
    assert [one.status for one in answers] == [200, 404]
    assert secret.encode() not in broken + b"".join(one.body for one in answers)
    assert secret not in logged + caplog.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nosuch", None, 404),
        ("GET", "/v1/instances/nosuch", None, 404),
        ("GET", "/v1/rebalance", None, 405),
        ("POST", "/v1/status", {}, 405),
        ("GET", "/v1/moves?limit=0", None, 422),
        ("GET", "/v1/moves?limit=1&limit=2", None, 422),
        ("GET", "/v1/instances?projct=x", None, 422),
        ("PUT", "/v1/policy", "{", 400),
        ("PUT", "/v1/policy", b'{"placement": {"smt": "\xff"}}', 400),
        ("PUT", "/v1/policy", '{"placement": {"smt": ' + "[" * 60_000, 400),
        ("PUT", "/v1/policy", [], 422),
        ("PUT", "/v1/policy", {"api": {"enabled": False}}, 422),
        ("POST", "/v1/rebalance", {"max_moves": -1}, 422),
        ("POST", "/v1/rebalance", {"nosuch": 1}, 422),
        ("POST", "/v1/rebalance", {"dry_run": "yes"}, 422),
        ("PUT", "/v1/policy", "x" * (64 * 1024 + 1), 413),
    ],
)
async def test_every_error_is_a_problem_document(method: str, path: str, body: object, status: int) -> None:
    async with serve() as (_, served):
        answer = await served.unix.ask(path, method, body)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.data.keys() >= {"type", "title", "status", "detail", "instance"}
    assert (answer.data["status"], answer.data["instance"].split("?")[0]) == (
        status,
        path.split("?")[0].replace("/../..", ""),
    )
    assert (status == 422) == ("errors" in answer.data)
    assert (status == 405) == ("Allow" in answer.headers)


async def test_a_large_body_is_refused_without_its_length_being_told() -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    async with serve() as (_, served):
        found = await raw(served.settings.socket, head + 2 * chunk + b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413 ")


async def test_a_line_that_is_too_long_is_a_problem() -> None:
    async with serve() as (_, served):
        answer = await served.unix.ask(f"/v1/moves?limit={'1' * 9000}")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert (answer.data["status"], hardening(answer)) == (400, HARDENED)


async def test_a_body_is_not_unpacked() -> None:
    async with serve() as (_, served):
        packed = gzip.compress(b" " * 1_000_000 + b"{}")
        answer = await served.unix.ask("/v1/policy", "PUT", packed, Content_Encoding="gzip")
    assert answer.status == 415


async def test_a_mistake_in_a_body_has_its_place() -> None:
    async with serve() as (_, served):
        answer = await served.unix.ask("/v1/rebalance", "POST", {"max_moves": "many"})
    assert answer.data["errors"] == [{"detail": "Expected int | null, got str", "pointer": "#/max_moves"}]


async def test_clients_that_go_at_once_are_nothing_to_speak_of() -> None:
    async with serve() as (r, served):
        for request in (
            b"GET /v1/plan HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
            b"G",
        ):
            for _ in range(5):
                _, writer = await asyncio.open_unix_connection(served.settings.socket)
                writer.write(request)
                writer.transport.abort()
        assert (await served.unix.ask("/v1/status")).status == 200
        assert [line for line in r.log.lines(logging.ERROR) if "connection" in line or "status" in line] == []


async def test_a_bug_is_logged_and_not_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as (r, served):
        # What nobody has thought of.
        monkeypatch.setattr(r.daemon.service.balancing.journal, "read", lambda: [][0])
        answer = await served.unix.ask("/v1/moves")
        assert len(r.log.bugs()) == 1
        assert "IndexError" in caplog.text
        r.log.records.clear()
    assert (answer.status, b"IndexError" in answer.body, b"Traceback" in answer.body) == (500, False, False)


def hardening(answer: Answer) -> set[tuple[str, str]]:
    names = ("Server", "X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Resource-Policy")
    return {(name, answer.headers[name]) for name in names}


async def test_every_answer_is_hardened() -> None:
    async with serve() as (_, served):
        answers = [await served.unix.ask(path) for path in ("/", "/v1/status", "/metrics", "/nosuch")]
    assert [hardening(one) for one in answers] == [HARDENED] * 4
    policies = [one.headers["Content-Security-Policy"].split("; ") for one in answers]
    assert policies[0] == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    assert policies[1] == policies[2] == policies[3]
    assert not any("src" in one and "default" not in one for one in policies[1])


async def test_a_page_is_sent_again_only_when_it_changed() -> None:
    async with serve() as (_, served):
        first = await served.unix.ask("/")
        again = await served.unix.ask("/", If_None_Match=first.headers["ETag"])
        other = await served.unix.ask("/", If_None_Match='"other"')
        script = await served.unix.ask("/main.js")
    assert [(one.status, bool(one.body)) for one in (first, again, other)] == [(200, True), (304, False), (200, True)]
    assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_only_files_of_known_kinds_are_pages(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("index.html", "sub/a.js", "b.py", ".hidden"):
        (tmp_path / name).write_text(name)
    assert set(pages.read_pages(tmp_path)) == {"/", "/index.html", "/sub/a.js"}
    assert pages.read_pages(tmp_path / "nosuch") == {}


async def refused(client: Client) -> Answer:
    """What a client is answered once there are too many."""
    async with asyncio.timeout(10):
        while True:
            answer = await client.ask("/v1/topology")
            if answer.status != 200:
                return answer


async def test_so_many_requests_are_worked_on_and_others_are_to_come_again() -> None:
    async with serve(ApiSettings(max_clients=2)) as (_, served):
        path = served.settings.socket
        held = []
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(path)
            head = b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            writer.write(head)
            held.append((reader, writer))
        answer = await refused(served.unix)
        for reader, writer in held:
            writer.write(b"       }")
            assert b" 200 " in await reader.readline()
            writer.close()
        after = await served.unix.ask("/v1/topology")
    assert (answer.status, answer.headers["Retry-After"].isdecimal(), after.status) == (503, True, 200)


async def hold(address: str) -> asyncio.StreamWriter:
    """Somebody who takes up a place with a body that does not come."""
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PUT /v1/policy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
    return writer


async def test_who_comes_over_tcp_does_not_take_the_place_of_those_at_the_unix_socket(tmp_path: Path) -> None:
    address = free_address()
    settings = ApiSettings(max_clients=1, listen=address, token_file=str(write_token(tmp_path)))
    async with serve(settings) as (_, served), tcp_client(address) as tcp:
        held = await hold(address)
        found = [(await refused(tcp)).status, (await served.unix.ask("/v1/topology")).status]
        held.close()
    assert found == [503, 200]


async def mute(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose request never gets to its end."""
    reader, writer = await asyncio.open_unix_connection(path)
    with suppress(ConnectionError):
        writer.write(b"GET /v1/topology HTTP/1.1\r\nHo")
        await writer.drain()
    return reader, writer


async def is_over(reader: asyncio.StreamReader, within_s: float) -> bool:
    try:
        await asyncio.wait_for(reader.read(), within_s)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


async def test_so_many_connections_are_open_at_a_time() -> None:
    async with serve(ApiSettings(max_clients=1)) as (_, served):
        opened = [await mute(served.settings.socket) for _ in range(40)]
        over = await asyncio.gather(*(is_over(reader, 1.0) for reader, _ in opened))
        for _, writer in opened:
            writer.close()
        await asyncio.sleep(0.1)
        assert (await served.unix.ask("/v1/topology")).status == 200
    most = DEFAULT.most_connections(1)
    assert over == [False] * most + [True] * (40 - most)


async def test_a_connection_that_says_nothing_is_ended() -> None:
    async with serve(limits=Limits(headers_s=0.3)) as (_, served):
        reader, writer = await mute(served.settings.socket)
        assert await is_over(reader, 8.0)
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    head = b"PUT /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    async with serve(limits=Limits(body_s=0.1, linger_s=0.1)) as (_, served):
        found = await raw(served.settings.socket, head)
    assert found.startswith(b"HTTP/1.1 408 ")


async def test_a_watcher_that_reads_too_slowly_is_told_and_cut_off() -> None:
    async with serve(limits=Limits(kept_bytes=200)) as (r, served):
        reader, writer = await asyncio.open_unix_connection(served.settings.socket)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"retry: 2000\n\n")
        for _ in range(9):
            # Without giving anybody a turn: as if all of it happened while the client was not reading.
            r.daemon.service.reload()
        rest = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert (await served.unix.ask("/v1/status")).status == 200
    assert (rest.count(b"event:"), rest.count(b'event: overflow\ndata: {"missed":9}')) == (1, 1)


async def test_a_watcher_that_takes_nothing_is_cut_off() -> None:
    large = Refused(rejection=Rejection(key=InstanceKey("default", "web"), reason=Reason.BAD_KEY, detail="x" * 100_000))
    async with serve(limits=Limits(event_s=0.2)) as (r, served):
        reader, writer = await asyncio.open_unix_connection(served.settings.socket)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"retry: 2000\n\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(50):
            r.daemon.service.reconciler.notices.tell(large)
        await asyncio.sleep(0.5)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            assert len(await asyncio.wait_for(reader.read(), 5)) < 50 * 100_000
        writer.close()


async def test_so_many_may_watch() -> None:
    async with serve(limits=Limits(watching=2)) as (_, served):
        watching = [await served.unix.session.get(f"{served.unix.base}/v1/events") for _ in range(2)]
        third = await served.unix.ask("/v1/events")
        for one in watching:
            one.close()
    assert ([one.status for one in watching], third.status) == ([200, 200], 503)


async def test_a_quiet_stream_is_kept_alive_and_ends_with_the_daemon() -> None:
    async with rig() as r:
        async with api(r, limits=Limits(quiet_s=0.05)) as served:
            reader, writer = await asyncio.open_unix_connection(served.settings.socket)
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b": nothing happened\n\n")
        rest = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert rest.endswith(b"0\r\n\r\n")
