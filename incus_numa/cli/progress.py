"""How far a command is: a bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from incus_numa.facts.words import count, show_nodes
from incus_numa.model.plan import MovePages
from incus_numa.quantities import render_bytes


@contextmanager
def sampling(instances: int, seconds: float, *, plain: bool) -> Iterator[Callable[[float], None]]:
    """A function to be told the part of the window that is over; without a terminal one line, and only if `plain`."""
    text = f"sampling {count(instances, 'instance')} for {seconds:g} s"
    if not sys.stderr.isatty():
        if plain:
            click.echo(text, err=True)
        yield lambda _: None
        return
    with _bar(text, 1.0) as tell:
        yield tell


@contextmanager
def following(step: MovePages) -> Iterator[Callable[[int], None]]:
    """A function to be told how many bytes have followed. What became of it is for the caller to say, see `ended`."""
    text = (
        f"{step.key}: {render_bytes(step.size_bytes)} of memory follow from {show_nodes(step.sources)} "
        f"to {show_nodes(step.targets)}"
    )
    if not sys.stderr.isatty():
        click.echo(f"{text} ... ", err=True, nl=False)
        yield lambda _: None
        return
    with _bar(text, float(step.size_bytes)) as tell:
        yield tell


def ended(word: str) -> None:
    """Say what became of what was last shown; a bar has gone by then, and the word is in the output."""
    if not sys.stderr.isatty():
        click.echo(word, err=True)


@contextmanager
def _bar(text: str, total: float) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns: tuple[Any, ...] = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)
