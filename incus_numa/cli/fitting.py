"""Settings that fit a machine: loaded and checked together, so that every problem is told at once.

Called by the commands that refuse to work with reservations that their machine cannot keep.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from incus_numa.cli.options import DEFAULT_CONFIG, load_settings, named, read_input
from incus_numa.errors import ConfigError
from incus_numa.model.machine import Machine
from incus_numa.policy.reservations import check_reservations
from incus_numa.settings import Settings, list_unused, salvage_settings
from incus_numa.topology import sysfs

Reader = Callable[[Settings], Machine | None]
"""Gives the machine, or None where another one tells why it cannot be read."""


def load_fitting(config_file: Path | None, read: Reader) -> Settings:
    """Settings whose reservations fit the machine, which is read only if there are any.

    Raises ConfigError with every problem of the file, and of the file on that machine.
    """
    path = config_file or Path(DEFAULT_CONFIG)
    try:
        settings = load_settings(config_file)
    except ConfigError as error:
        raise ConfigError((*error.problems, *_misfits_of_bad(path, read))) from error
    if misfits := _misfits(settings, read):
        raise named(path, ConfigError(misfits))
    return settings


def load_for_host(config_file: Path | None) -> Settings:
    """Settings that fit this host. Raises ConfigError with every problem."""
    return load_fitting(config_file, read_host)


def read_host(settings: Settings) -> Machine:
    """The machine below the trees that the settings name."""
    return sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs))


def warn_of_unused(settings: Settings) -> None:
    """Say on standard error what is set and has no effect."""
    for unused in list_unused(settings):
        click.echo(f"Warning: {unused}", err=True)


def _misfits_of_bad(path: Path, read: Reader) -> tuple[str, ...]:
    """What the machine says to those reservations of a bad file that can be read."""
    with suppress(ConfigError, UnicodeDecodeError):
        settings, problems = salvage_settings(read_input(path).decode())
        # With a wrong place of the kernel's trees it would be the wrong machine.
        if not any(one.startswith("host") for one in problems):
            return named(path, ConfigError(_misfits(settings, read))).problems
    return ()


def _misfits(settings: Settings, read: Reader) -> tuple[str, ...]:
    machine = None if settings.memory.policy == "none" else read(settings)
    return () if machine is None else check_reservations(settings.memory, machine)
