"""Files that a command works on offline, one of which may be standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

from incus_numa.cli.options import read_input

STDIN = Path("-")


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What messages call a file, and its content, which may be asked for twice. Reading raises ConfigError."""

    name: Path
    read: Callable[[], bytes]


def open_input(path: Path) -> Input:
    """One of the command's files, or standard input, of which nothing is left after the first reading."""
    if path == STDIN:
        return Input(name=Path(name_of(path)), read=cache(lambda: sys.stdin.buffer.read()))
    return Input(name=path, read=lambda: read_input(path))


def name_of(path: Path) -> str:
    """What a file is called in a title."""
    return "standard input" if path == STDIN else path.name


def check_stdin(files: Mapping[str, Path | None]) -> None:
    """Raise UsageError if more than one option names standard input."""
    taken = [option for option, path in files.items() if path == STDIN]
    if len(taken) > 1:
        raise click.UsageError(f"only one of {' and '.join(taken)} can be standard input")
