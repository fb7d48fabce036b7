"""`incus-numa config show|check`: effective settings, and their validation with every problem at once."""

from __future__ import annotations

from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.options import DEFAULT_CONFIG, common, formatted, load_settings, start_logging
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
    rows = [{"key": f"{table}.{key}", "value": value} for table, keys in tables.items() for key, value in keys.items()]
    output.emit(output_format, tables, rows, lambda: output.write(render_settings(settings).rstrip("\n")))


@command.command(short_help="Validate the configuration file.")
@common
def check(config_file: Path | None, log_level: str) -> None:
    """Validate the configuration: exit 2 with every problem at once, or 0.

    Example: incus-numa config check --config new.toml
    """
    start_logging(log_level)
    load_settings(config_file)
    path = config_file or Path(DEFAULT_CONFIG)
    if config_file is None and not path.exists():
        click.echo(f"{path} does not exist: the defaults are used", err=True)
    else:
        click.echo(f"{path}: no problem found", err=True)
