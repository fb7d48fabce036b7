"""`incus-numa config show|check`: effective settings, and their validation with every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from incus_numa.cli import output
from incus_numa.cli.fitting import load_fitting, read_host, warn_of_unused
from incus_numa.cli.options import DEFAULT_CONFIG, common, formatted, load_settings, start_logging
from incus_numa.cli.topology_command import read_snapshot
from incus_numa.settings import render_settings, settings_as_dict


@click.group()
def command() -> None:
    """Show or validate the configuration."""


@command.command(short_help="Print the effective settings.")
@formatted
@common
def show(config_file: Path | None, log_level: str, output_format: str) -> None:
    """Print the effective settings; as a table this is a complete, commented configuration file.

    Example: incus-numa config show > /etc/incus-numa/config.toml
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    tables = settings_as_dict(settings)
    rows: list[output.Row] = []
    for table, keys in tables.items():
        for key, value in keys.items():
            rows += _rows(f"{table}.{key}", value)
    output.emit(output_format, tables, rows, lambda: output.write(render_settings(settings).rstrip("\n")))


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

    Reservations of memory are checked against the machine, too.

    Example: incus-numa config check --config new.toml
    """
    start_logging(log_level)
    machine = None if snapshot is None else read_snapshot(snapshot)
    settings = load_fitting(config_file, lambda found: machine or read_host(found))
    warn_of_unused(settings)
    path = config_file or Path(DEFAULT_CONFIG)
    if config_file is None and not path.exists():
        click.echo(f"{path} does not exist: the defaults are used", err=True)
    else:
        click.echo(f"{path}: no problem found", err=True)
