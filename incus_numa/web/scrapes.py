"""What is answered to those who ask for metrics: made once for all who ask within a second. The API calls it.

A second is how long the host's gauges last. Who asks less often, as Prometheus does, gets what is made at that moment.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from incus_numa.web.protocol import Exposition, Gauges
from incus_numa.web.workers import Workers

LEVEL = 1
"""How hard to pack: the first level leaves a twentieth; others take several times as long for little more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a client wants its text: as OpenMetrics or not, packed by gzip or as it is."""

    openmetrics: bool
    packed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text in one form, and the headers that it is sent with."""

    body: bytes
    headers: Mapping[str, str]


class Scrapes:
    """The texts of this moment in each form that somebody asked for. One event loop uses it."""

    def __init__(self, gauges: Callable[[], Gauges], exposition: Exposition, max_instances: Callable[[], int]) -> None:
        self._gauges = gauges
        self._exposition = exposition
        self._max_instances = max_instances
        self._shown: tuple[Gauges, int] | None = None
        self._kept: dict[Form, Text] = {}
        self._making = asyncio.Lock()
        self._workers = Workers("scrapes", 1)

    async def get(self, form: Form) -> Text:
        """Everything, in one form."""
        self._look()
        text = self._kept.get(form)
        if text is not None:
            return text
        async with self._making:
            shown = self._look()
            # Whoever was waited for may have made it.
            text = self._kept.get(form)
            if text is None:
                # A thousand instances take long enough to hold up a start.
                text = await self._workers.run(partial(self._write, form, *shown))
                if shown is self._shown:
                    self._kept[form] = text
        return text

    def _look(self) -> tuple[Gauges, int]:
        """What is to be shown now; texts of anything else are forgotten."""
        gauges, most = self._gauges(), self._max_instances()
        if self._shown is None or self._shown[0] is not gauges or self._shown[1] != most:
            self._shown = gauges, most
            self._kept.clear()
        return self._shown

    def _write(self, form: Form, gauges: Gauges, most: int) -> Text:
        body, kind = self._exposition.render(gauges, most, openmetrics=form.openmetrics)
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding"}
        if not form.packed:
            return Text(body=body, headers=headers)
        return Text(body=gzip.compress(body, LEVEL), headers=headers | {"Content-Encoding": "gzip"})


def wanted_form(request: web.Request) -> Form:
    """The form that a client asks for."""
    return Form(
        openmetrics="application/openmetrics-text" in request.headers.get("Accept", ""),
        packed=accepts_gzip(request.headers.get("Accept-Encoding", "")),
    )


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header asks for gzip by its name."""
    for one in header.split(","):
        name, _, weight = one.partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
