"""Settings that fit a machine: loaded and checked together, so that every problem is told at once.

Called by the commands that refuse to work with reservations that their machine cannot keep, and by the two that check
all that the settings say about the host.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from incus_numa.cli.options import DEFAULT_CONFIG, load_settings, named, read_input
from incus_numa.errors import ConfigError
from incus_numa.model.machine import Machine
from incus_numa.policy.reservations import check_reservations, check_reserved_cpus
from incus_numa.settings import HostSettings, Settings, list_unused, salvage_settings
from incus_numa.topology import sysfs

Reader = Callable[[Settings], Machine | None]
"""Gives the machine, or None where another one tells why it cannot be read."""

Check = Callable[[Settings, Reader], tuple[str, ...]]
"""What does not fit a machine, one sentence each."""

_TREES = {"sysfs": "sysfs", "procfs": "procfs", "cgroup": "the cgroup hierarchy"}


def check_memory(settings: Settings, read: Reader) -> tuple[str, ...]:
    """Reservations of memory that do not fit the machine, which is read only if there are any."""
    machine = None if settings.memory.policy == "none" else read(settings)
    return () if machine is None else check_reservations(settings.memory, machine)


def check_on_machine(settings: Settings, read: Reader) -> tuple[str, ...]:
    """CPUs and memory that cannot be kept for the host. CPUs of this host may be offline."""
    return _check_machine(settings, read, Path(settings.host.sysfs))


def check_on_host(settings: Settings, read: Reader) -> tuple[str, ...]:
    """All that cannot work on this host. Without a sysfs nothing is known about its CPUs and memory."""
    missing = list_missing_trees(settings.host)
    if "sysfs" in missing:
        return tuple(missing.values())
    return (*missing.values(), *check_on_machine(settings, read))


def check_on_snapshot(folder: Path) -> Check:
    """All that cannot work on the machine whose sys/ a folder holds."""
    return lambda settings, read: _check_machine(settings, read, folder / "sys")


def list_missing_trees(host: HostSettings) -> dict[str, str]:
    """Keys of [host] that name no directory, each with a sentence."""
    return {
        name: f"host.{name} = {path!r}: no such directory; expected the mount point of {what}"
        for name, what in _TREES.items()
        if not Path(path := getattr(host, name)).is_dir()
    }


def load_fitting(config_file: Path | None, read: Reader, check: Check = check_memory) -> Settings:
    """Settings that fit the machine.

    Raises ConfigError with every problem of the file, and of the file on that machine.
    """
    path = config_file or Path(DEFAULT_CONFIG)
    try:
        settings = load_settings(config_file)
    except ConfigError as error:
        raise ConfigError((*error.problems, *_misfits_of_bad(path, read, check))) from error
    if misfits := check(settings, read):
        raise named(path, ConfigError(misfits))
    return settings


def load_for_host(config_file: Path | None) -> Settings:
    """Settings that fit this host. Raises ConfigError with every problem."""
    return load_fitting(config_file, read_host, check_on_machine)


def read_host(settings: Settings) -> Machine:
    """The machine below the trees that the settings name."""
    return sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs))


def warn_of_unused(settings: Settings) -> None:
    """Say on standard error what is set and has no effect."""
    for unused in list_unused(settings):
        click.echo(f"Warning: {unused}", err=True)


def _check_machine(settings: Settings, read: Reader, sys: Path) -> tuple[str, ...]:
    machine = read(settings) if settings.placement.reserved_cpus else None
    present = None if machine is None else sysfs.read_present(sys)
    reserved = () if machine is None else check_reserved_cpus(settings.placement, machine, present)
    return (*reserved, *check_memory(settings, read))


def _misfits_of_bad(path: Path, read: Reader, check: Check) -> tuple[str, ...]:
    """What the machine says to those settings of a bad file that can be read."""
    with suppress(ConfigError, UnicodeDecodeError):
        settings, problems = salvage_settings(read_input(path).decode())
        # With a wrong place of the kernel's trees it would be the wrong machine.
        if not any(one.startswith("host") for one in problems):
            return named(path, ConfigError(check(settings, read))).problems
    return ()
