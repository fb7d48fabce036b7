"""sd_notify: what is sent, and that a missing or broken socket hurts nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_numa.daemon.notify import Notifier


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(tmp_path / "notify"))
        link.settimeout(10)
        yield link


def _notifier(receiver: socket.socket, **environ: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": str(receiver.getsockname()), **environ})


def test_states_are_sent_as_systemd_expects_them(receiver: socket.socket) -> None:
    notifier = _notifier(receiver)
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    notifier.status("all is well")
    assert [receiver.recv(100) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1", b"STATUS=all is well"]


def test_reload_carries_the_time_that_systemd_orders_it_by(receiver: socket.socket) -> None:
    _notifier(receiver).reloading()
    first, second = receiver.recv(100).decode().splitlines()
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


def test_unchanged_status_is_sent_once(receiver: socket.socket) -> None:
    notifier = _notifier(receiver)
    notifier.status("one")
    notifier.status("one")
    notifier.status("two")
    assert [receiver.recv(100) for _ in range(2)] == [b"STATUS=one", b"STATUS=two"]


def test_abstract_socket_is_named_with_an_at_sign(tmp_path: Path) -> None:
    name = f"incus-numa-test{str(tmp_path).replace('/', '-')}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(f"\0{name}")
        link.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert link.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/notify"}])
def test_nothing_happens_without_a_socket(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.reloading()
    notifier.status("nobody hears it")


@pytest.mark.parametrize(
    ("text", "wanted"), [("30000000", 30.0), ("500000", 0.5), ("0", None), ("", None), ("soon", None), ("-1", None)]
)
def test_watchdog_interval_is_read_from_the_environment(text: str, wanted: float | None) -> None:
    assert Notifier({"WATCHDOG_USEC": text}).watchdog_s == wanted
