"""Tells systemd how the service does: the sd_notify protocol. Called by the service.

See sd_notify(3). Without NOTIFY_SOCKET (not started by systemd) everything here does nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends state lines to the socket that systemd named in the environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for Linux' abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1_000_000 if usec.isdecimal() and int(usec) else None

    def ready(self) -> None:
        """The service works now; also ends a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The settings are being read again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The service is not stuck."""
        self._send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """The line that `systemctl status` shows; an unchanged one is not sent again."""
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.sendto(text.encode(), self._address)
        except OSError:
            # systemd notices a silent service by its own watchdog; failing here would only make things worse.
            return
