"""`incus-numa config show|check`: effective settings, and their validation with every problem at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import fitting, in_force, output
from incus_numa.cli.fitting import Check, Reader, load_fitting, read_host, warn_of_unused
from incus_numa.cli.main import SuggestingGroup
from incus_numa.cli.options import DEFAULT_CONFIG, common, formatted, load_settings, start_logging
from incus_numa.cli.topology_command import read_snapshot
from incus_numa.errors import ConfigError
from incus_numa.settings import render_settings, settings_as_dict


@click.group(cls=SuggestingGroup)
def command() -> None:
    """Show or validate the configuration.

    It is /etc/incus-numa/config.toml, and need not be there. Every key is in
    docs/settings.md; `incus-numa policy` changes some while the daemon runs.
    Exit codes: 0 done; 2 with every mistake in the configuration.

    Example: incus-numa config check
    """


@command.command(short_help="Print the effective settings.")
@formatted
@common
def show(config_file: Path | None, log_level: str, output_format: str) -> None:
    """Print the effective settings; as a table this is a complete, commented configuration file.

    What `policy set` has set beside the file is not in it: see policy get.

    Example: incus-numa config show > new.toml
    """
    start_logging(log_level)
    _check_target(config_file or Path(DEFAULT_CONFIG))
    settings = load_settings(config_file)
    if config_file is None:
        in_force.tell_kept(in_force.list_kept(settings))
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


def _host() -> tuple[Reader, Check]:
    return read_host, fitting.check_on_host


def _snapshot(folder: Path) -> tuple[Reader, Check]:
    machine = read_snapshot(folder)
    return lambda _: machine, fitting.check_on_snapshot(folder)


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
    too, and whether the kernel's trees are where [host] says; and without
    --config what `policy set` has set beside the file.

    Example: incus-numa config check --config new.toml
    """
    start_logging(log_level)
    read, fits = _host() if snapshot is None else _snapshot(snapshot)
    settings = load_fitting(config_file, read, fits)
    if config_file is None:
        in_force.check_policy(settings, read, fits)
    warn_of_unused(settings)
    path = config_file or Path(DEFAULT_CONFIG)
    if config_file is None and not path.exists():
        click.echo(f"{path} does not exist: the defaults are used", err=True)
    else:
        click.echo(f"{path}: no problem found", err=True)
