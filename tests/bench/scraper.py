"""Asks for metrics as several Prometheus would, in a process of its own: `python -m tests.bench.scraper PORT RATE`.

It begins when it has printed a line, and ends at SIGTERM with another one: what was asked and answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter

from tests.bench.rig import percentile

CONNECTIONS = 10
"""Each is kept and asks for its part of the rate, as a Prometheus does."""

HEADERS = {
    "Host": "localhost",
    "User-Agent": "Prometheus/3.5.0",
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
REQUEST = ("GET /metrics HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())).encode()


class Scraper:
    """What was asked and answered so far."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._pause_s = CONNECTIONS / rate
        self._asked = 0
        self._statuses = Counter[int]()
        self._took_ms: list[float] = []
        self._bytes = 0

    async def run(self) -> None:
        """Ask until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        asking = [asyncio.create_task(self._ask(number)) for number in range(CONNECTIONS)]
        print("asking", flush=True)
        await stop.wait()
        for one in asking:
            one.cancel()
        print(
            json.dumps(
                {
                    "asked": self._asked,
                    "statuses": self._statuses,
                    "kb": self._bytes / max(1, len(self._took_ms)) / 1000,
                    "p50_ms": percentile(self._took_ms, 0.5),
                    "p99_ms": percentile(self._took_ms, 0.99),
                }
            )
        )

    async def _ask(self, number: int) -> None:
        """One after another, at times that do not depend on when they are answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._pause_s * number / CONNECTIONS
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._asked += 1
            began = loop.time()
            writer.write(REQUEST + b"\r\n")
            status, length = _head(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(length)
            self._statuses[status] += 1
            self._took_ms.append((loop.time() - began) * 1000)
            self._bytes += length
            due += self._pause_s


def _head(text: bytes) -> tuple[int, int]:
    """Status and length of an answer."""
    first, *lines = text.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if line)
    return int(first.split()[1]), int(fields["content-length"])


if __name__ == "__main__":
    asyncio.run(Scraper(int(sys.argv[1]), float(sys.argv[2])).run())
