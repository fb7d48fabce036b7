"""`incus-numa top`: load of nodes and instances, and what the daemon does, as it happens."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from incus_numa.cli import output, top_view
from incus_numa.cli.asking import watch_events
from incus_numa.cli.in_force import load_shown
from incus_numa.cli.list_command import COLUMNS
from incus_numa.cli.options import deciding, formatted, start_logging
from incus_numa.cli.top_source import Source
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
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", help="Print so many looks as plain text, and end."
)
@click.option("--once", is_flag=True, help="The same as --count 1; so it is where there is no terminal.")
@formatted
@deciding
def command(
    *, config_file: Path | None, log_level: str, output_format: str, interval: float, count: int | None, once: bool
) -> None:
    """Watch the load of nodes and instances, and what the daemon does, until Ctrl-C.

    Where no daemon tells it looks itself. Formats other than table print one
    look, or as many as --count says.

    Example: incus-numa top --interval 5
    """
    start_logging(log_level)
    if once and count is not None:
        raise click.UsageError("Expected --once or --count, got both.")
    settings = load_shown(config_file)
    is_live = count is None and not once and output_format == "table" and _is_screen()
    asyncio.run(_watch(settings, interval) if is_live else _print(settings, interval, count or 1, output_format))


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


async def _print(settings: Settings, interval_s: float, count: int, output_format: str) -> None:
    """So many looks, one below the other. Raises UnreachableError and ReportError where one fails."""
    said = ""
    async with Source(settings, interval_s) as source:
        for look in range(count):
            if look:
                await asyncio.sleep(interval_s)
            view = await source.take()
            if view.note not in ("", said):
                click.echo(f"Note: {view.note}", err=True)
            said = view.note
            _write(view, output_format, is_first=look == 0)


def _write(view: View, output_format: str, *, is_first: bool) -> None:
    """A look; what comes after the first one is set off as its format does that."""
    if output_format == "csv":
        rows = [{"at": view.at, **row} for row in view.instances]
        text = output.render_csv(rows, ("at", *COLUMNS))
        text = text if is_first else text.partition("\n")[2]
        if text:
            output.write(text.rstrip("\n"))
        return
    if not is_first and output_format != "json":
        output.write("---" if output_format == "yaml" else "")
    output.emit(output_format, top_view.render_view(view), (), lambda: top_view.print_snapshot(view))


async def _watch(settings: Settings, interval_s: float) -> None:
    """Show it again and again. What fails once something was shown is told, and tried again."""
    async with Source(settings, interval_s) as source:
        view = await source.take()
        events: deque[str] = deque(map(top_view.tell_move, view.moves), maxlen=MOST_EVENTS)
        listening = asyncio.create_task(_listen(settings, events, interval_s), name="events")
        try:
            with _screen() as show:
                while True:
                    # Without a daemon nobody tells what happens but the journal.
                    show(view, tuple(map(top_view.tell_move, view.moves)) if view.absent else tuple(events))
                    await asyncio.sleep(interval_s)
                    try:
                        view = await source.take()
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
def _screen() -> Iterator[Callable[[View, tuple[str, ...]], None]]:
    """A function that shows a view and what happened on the whole terminal, which is as it was afterwards."""
    from rich.console import Console
    from rich.live import Live

    console = Console(force_terminal=True)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def show(view: View, happened: tuple[str, ...]) -> None:
            size = console.size
            live.update(top_view.render_live(view, happened, size.width, size.height), refresh=True)

        yield show
