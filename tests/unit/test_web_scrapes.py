"""Metrics are made once for all who ask at about the same time, in the form that each of them asks for."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from incus_numa.model.notice import SettingsChanged
from incus_numa.web import scrapes
from incus_numa.web.metrics import Metrics
from incus_numa.web.protocol import Gauges
from incus_numa.web.scrapes import Form, Scrapes

PLAIN, PACKED = Form(openmetrics=False, packed=False), Form(openmetrics=False, packed=True)


class Moments:
    """A host whose gauges last until there are `next` ones, and which bound is set."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.next()
        self.most = 10
        self.scrapes = Scrapes(lambda: self.gauges, self.metrics, lambda: self.most)

    def next(self) -> None:
        self.gauges = Gauges(connected=True)

    async def changes(self) -> int:
        """How many changes of settings a client is told, after one more."""
        self.metrics.take(SettingsChanged())
        return _changes((await self.scrapes.get(PLAIN)).body)


def _changes(text: bytes) -> int:
    (line,) = (one for one in text.decode().splitlines() if one.startswith("incus_numa_settings_changes_total "))
    return int(float(line.split()[1]))


async def test_all_who_ask_before_gauges_are_taken_anew_are_told_the_same() -> None:
    host = Moments()
    found = [await host.changes(), await host.changes()]
    host.next()
    found.append(await host.changes())
    host.most = 11
    found.append(await host.changes())
    assert found == [1, 1, 3, 4]


async def test_those_who_ask_at_once_are_given_one_text() -> None:
    host = Moments()
    found = await asyncio.gather(*(host.scrapes.get(PACKED) for _ in range(5)))
    assert all(one is found[0] for one in found)


async def test_a_text_that_was_overtaken_by_newer_gauges_is_not_shown_again() -> None:
    host = Moments()
    making = asyncio.create_task(host.scrapes.get(PLAIN))
    await asyncio.sleep(0)
    host.next()
    # Somebody sees the newer gauges while the text of the older ones is being made.
    other = asyncio.create_task(host.scrapes.get(PACKED))
    await asyncio.gather(making, other)
    assert await host.changes() == 1


async def test_packed_it_is_the_same_text() -> None:
    host = Moments()
    plain, packed = [await host.scrapes.get(form) for form in (PLAIN, PACKED)]
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers == {**plain.headers, "Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip; q=1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("br", False),
        ("x-gzipped", False),
        ("", False),
        ("identity", False),
    ],
)
def test_only_those_who_ask_for_gzip_get_it(header: str, expected: bool) -> None:
    assert scrapes.accepts_gzip(header) is expected
