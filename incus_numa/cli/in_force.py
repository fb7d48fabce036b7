"""The settings that are in force: those of the configuration file, and over them the policy that `policy set` keeps.

For commands that decide, and for those that show what a pass would decide: they go by what the daemon goes by. Whoever
names a file goes by that file alone. What the daemon leaves out of the policy, being bad, is left out here, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from incus_numa.cli import fitting
from incus_numa.cli.fitting import Check, Reader
from incus_numa.cli.options import DEFAULT_CONFIG, load_settings
from incus_numa.daemon.overrides import Overrides
from incus_numa.settings import Settings


def load_deciding(config_file: Path | None, read: Reader) -> Settings:
    """Settings that fit the machine, for a command that decides: what was set beside the file is told.

    Raises ConfigError with every problem of the file.
    """
    settings = fitting.load_fitting(config_file, read)
    if config_file is not None:
        return settings
    found, overrides = _put_over(settings, read)
    _warn(overrides.list_left_out())
    tell_kept(overrides.list_keys())
    return found


def load_shown(config_file: Path | None) -> Settings:
    """Settings for a command that shows what a pass would decide.

    Raises ConfigError with every problem of the file.
    """
    settings = load_settings(config_file)
    if config_file is not None:
        return settings
    found, overrides = _put_over(settings, fitting.read_host)
    _warn(overrides.list_left_out())
    return found


def load_checked(config_file: Path | None) -> tuple[Settings, tuple[str, ...]]:
    """The same for `check`: what was set beside the file is told; what is left out of it is for the caller to tell.

    Raises ConfigError with every problem of the file.
    """
    settings = load_settings(config_file)
    if config_file is not None:
        return settings, ()
    found, overrides = _put_over(settings, fitting.read_host)
    tell_kept(overrides.list_keys())
    return found, overrides.list_left_out()


def check_policy(settings: Settings, read: Reader, check: Check) -> None:
    """Raise ConfigError with every problem of the policy that is kept, as it is over these settings."""
    Overrides(Path(settings.api.policy_file)).check(settings, lambda found: check(found, read))


def list_kept(settings: Settings) -> tuple[str, ...]:
    """Keys in force that `policy set` has set, such as `placement.smt`."""
    return _put_over(settings, lambda _: None)[1].list_keys()


def tell_kept(kept: tuple[str, ...]) -> None:
    """Say on standard error what is not as in the file, if anything is."""
    if kept:
        click.echo(f"Note: set by `policy set`, over {DEFAULT_CONFIG}: {', '.join(kept)}", err=True)


def _warn(left_out: Iterable[str]) -> None:
    for problem in left_out:
        click.echo(f"Warning: {problem}", err=True)


def _put_over(settings: Settings, read: Reader) -> tuple[Settings, Overrides]:
    """Settings with the policy over them, and where that comes from."""
    overrides = Overrides(Path(settings.api.policy_file))
    return overrides.put_over(settings, lambda one: fitting.check_on_machine(one, read)), overrides
