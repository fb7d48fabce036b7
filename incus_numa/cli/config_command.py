"""`incus-numa config show|check`: effective settings, and their validation with every problem at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import fitting, output
from incus_numa.cli.fitting import load_fitting, read_host, warn_of_unused
from incus_numa.cli.options import DEFAULT_CONFIG, common, formatted, load_settings, start_logging
from incus_numa.cli.topology_command import read_snapshot
from incus_numa.errors import ConfigError
from incus_numa.settings import render_settings, settings_as_dict


@click.group()
def command() -> None:
    """Show or validate the configuration."""


@command.command(short_help="Print the effective settings.")
@formatted
@common
def show(config_file: Path | None, log_level: str, output_format: str) -> None:
    """Print the effective settings; as a table this is a complete, commented configuration file.

    Example: incus-numa config show > new.toml
    """
    start_logging(log_level)
    _check_target(config_file or Path(DEFAULT_CONFIG))
    settings = load_settings(config_file)
    tables = settings_as_dict(settings)
    rows: list[output.Row] = []
    for table, keys in tables.items():
        for key, value in keys.items():
            rows += _rows(f"{table}.{key}", value)
    output.emit(output_format, tables, rows, lambda: output.write(render_settings(settings).rstrip("\n")))


def _check_target(path: Path) -> None:
    """Raise ConfigError if standard output is the file that is to be shown."""
    try:
        out, file = os.fstat(sys.stdout.fileno()), path.stat()
    except (OSError, ValueError):
        # There is no such file, or standard output is no file at all.
        return
    if (out.st_dev, out.st_ino) == (file.st_dev, file.st_ino):
        raise ConfigError(
            (
                f"{path}: standard output is this very file, which a shell's > has emptied before it could be read: "
                "show the settings in another file, look at it, then move it here",
            )
        )


def _rows(key: str, value: Any) -> list[output.Row]:
    """One row, or one for each key of a table inside a table."""
    if isinstance(value, dict):
        return [{"key": f"{key}.{inner}", "value": one} for inner, one in value.items()] or [{"key": key, "value": ""}]
    return [{"key": key, "value": value}]


@command.command(short_help="Validate the configuration file.")
@click.option(
    "--sysfs",
    "snapshot",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Check for the machine whose sys/ and proc/ DIR holds, instead of this host.",
)
@common
def check(config_file: Path | None, log_level: str, snapshot: Path | None) -> None:
    """Validate the configuration: exit 2 with every problem at once, or 0.

    Memory and CPUs that are kept for the host are checked against the machine,
    too, and whether the kernel's trees are where [host] says.

    Example: incus-numa config check --config new.toml
    """
    start_logging(log_level)
    if snapshot is None:
        settings = load_fitting(config_file, read_host, fitting.check_on_host)
    else:
        machine = read_snapshot(snapshot)
        settings = load_fitting(config_file, lambda _: machine, fitting.check_on_snapshot(snapshot))
    warn_of_unused(settings)
    path = config_file or Path(DEFAULT_CONFIG)
    if config_file is None and not path.exists():
        click.echo(f"{path} does not exist: the defaults are used", err=True)
    else:
        click.echo(f"{path}: no problem found", err=True)
