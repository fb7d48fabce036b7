"""`incus-numa top`: load of nodes and instances as the daemon measures it, and what it does, as it happens."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import top_view
from incus_numa.cli.asking import ask_daemon, watch_events
from incus_numa.cli.options import common, load_settings, start_logging
from incus_numa.cli.top_view import MOST_EVENTS, View
from incus_numa.errors import IncusNumaError
from incus_numa.settings import Settings


def _check_interval(ctx: click.Context, param: click.Parameter, seconds: float) -> float:
    if math.isnan(seconds):
        raise click.BadParameter("expected 0.2 to 3600 seconds, got nan.", ctx, param)
    return seconds


@click.command()
@click.option(
    "--interval",
    callback=_check_interval,
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Show anew this often, 0.2 to 3600.",
)
@click.option("--once", is_flag=True, help="Show it once as plain text; so it is where there is no terminal.")
@common
def command(*, config_file: Path | None, log_level: str, interval: float, once: bool) -> None:
    """Watch the load of nodes and instances, and what the daemon does, until Ctrl-C.

    Example: incus-numa top --interval 5
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    if once or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        top_view.print_snapshot(asyncio.run(_look(settings)))
    else:
        asyncio.run(_watch(settings, interval))


async def _look(settings: Settings) -> View:
    """What the daemon knows now, and its last moves. Raises ReportError without a daemon."""
    moves = await ask_daemon(settings, "GET", f"/v1/moves?limit={MOST_EVENTS}")
    return replace(await _take(settings), events=tuple(top_view.tell_move(one) for one in moves))


async def _take(settings: Settings) -> View:
    status = await ask_daemon(settings, "GET", "/v1/status")
    nodes = await ask_daemon(settings, "GET", "/v1/nodes")
    return View(status=status, nodes=nodes, instances=await ask_daemon(settings, "GET", "/v1/instances"))


async def _watch(settings: Settings, interval_s: float) -> None:
    """Show it again and again. A daemon that ends is waited for once it was there; until then it is an error."""
    view = await _look(settings)
    events: deque[str] = deque(view.events, maxlen=MOST_EVENTS)
    listening = asyncio.create_task(_listen(settings, events, interval_s), name="events")
    try:
        with _screen() as show:
            while True:
                show(replace(view, events=tuple(events)))
                await asyncio.sleep(interval_s)
                try:
                    view = await _take(settings)
                except IncusNumaError as error:
                    view = replace(view, trouble=str(error))
    finally:
        listening.cancel()


async def _listen(settings: Settings, events: deque[str], pause_s: float) -> None:
    """Keep the newest events, the newest first, for ever."""
    while True:
        try:
            async for kind, data in watch_events(settings):
                told = top_view.tell_event(kind, data)
                if told is not None:
                    events.appendleft(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {told}")
        except IncusNumaError:
            # The same trouble shows where nodes are asked for.
            pass
        await asyncio.sleep(pause_s)


@contextmanager
def _screen() -> Iterator[Any]:
    """A function that shows a view on the whole terminal, which is as it was afterwards."""
    from rich.console import Console
    from rich.live import Live

    console = Console(force_terminal=True)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def show(view: View) -> None:
            size = console.size
            live.update(top_view.render_live(view, size.width, size.height), refresh=True)

        yield show
