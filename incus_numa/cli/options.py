"""Options that commands share, and the settings they lead to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from incus_numa.errors import ConfigError
from incus_numa.settings import Settings, parse_settings

DEFAULT_CONFIG = "/etc/incus-numa/config.toml"

LOOK_S = 1.0
"""How long load is measured where it is only shown."""

LEAST_WINDOW_S = 0.05
"""In less time the counters of the kernel do not tell load from noise."""

FILE = click.Path(path_type=Path)

F = TypeVar("F", bound=Callable[..., Any])


class Window(click.FloatRange):
    """Seconds to measure load for, or 0 for not at all."""

    def __init__(self) -> None:
        super().__init__(min=0, max=86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds. Raises BadParameter, also for what is no number or too short to measure anything."""
        seconds = float(super().convert(value, param, ctx))
        if seconds == 0 or seconds >= LEAST_WINDOW_S:
            return seconds
        raise click.BadParameter(f"expected 0, or {LEAST_WINDOW_S:g} to 86400 seconds, got {value}.", ctx, param)


CONFIG_MEANING = f"Configuration file; {DEFAULT_CONFIG} if it exists."

IN_FORCE_MEANING = f"Go by this file alone; else by {DEFAULT_CONFIG}, if it exists, and what `policy set` has set."
"""... of a command that decides as the daemon does."""


def common_with(default_level: str, meaning: str = CONFIG_MEANING) -> Callable[[F], F]:
    """`--config` and `--log-level`, which every command takes, with the level it logs at unless told otherwise."""

    def decorate(function: F) -> F:
        function = click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
            default=default_level,
            show_default=True,
            help="How much to log to standard error.",
        )(function)
        return click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=FILE,
            default=None,
            help=meaning,
        )(function)

    return decorate


common = common_with("warning")
"""The shared options of a command that runs once: it says what it did on standard output, so it logs problems only."""

deciding = common_with("warning", IN_FORCE_MEANING)
"""... and decides, or shows what would be decided, by the settings in force."""


on_machine = click.option(
    "--machine", "machine_file", metavar="FILE", type=FILE, required=True, help="Machine, as of topology."
)
"""The machine that a command works on offline."""

with_settings = click.option(
    "--settings", "settings_file", metavar="FILE", type=FILE, help="Like --config, and stronger."
)
"""The settings file of a command that works offline."""


def formatted_with(*more: str) -> Callable[[F], F]:
    """`-f, --format` with further formats than those of every command that prints data."""
    return click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(["table", "json", "yaml", "csv", *more]),
        default="table",
        show_default=True,
        help="Output format.",
    )


formatted = formatted_with()
"""`-f, --format`, which every command that prints data takes."""


def windowed(function: F) -> F:
    """`--window` of the commands that show measured load."""
    return click.option(
        "--window",
        type=Window(),
        metavar="SECONDS",
        default=None,
        help="Measure load for so long, 0.05 or more; 0: do not. Default: 1, or rebalance.window_s where that is less.",
    )(function)


def look_s(settings: Settings, window: float | None) -> float:
    """How long to measure load that is only shown: as `--window` says, else no more than a second."""
    return min(LOOK_S, settings.rebalance.window_s) if window is None else window


def start_logging(level: str) -> None:
    """Log to standard error; without the time where it is not a terminal, as the journal adds it."""
    time = "%(asctime)s " if sys.stderr.isatty() else ""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=f"{time}%(levelname)s %(message)s", force=True)
    logging.getLogger("incus_numa").setLevel(level.upper())


def load_settings(config_file: Path | None) -> Settings:
    """Settings from the file; defaults if none was named and the usual one is not there, or not for us to read.

    Raises ConfigError.
    """
    path = config_file or Path(DEFAULT_CONFIG)
    if config_file is None and not _is_readable(path):
        return Settings()
    try:
        return parse_settings(read_input(path).decode())
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: expected TOML in UTF-8: {error.reason} at byte {error.start}",)) from error
    except ConfigError as error:
        raise named(path, error) from error


def _is_readable(path: Path) -> bool:
    """Whether the usual file is there for us; not being allowed to read it is told, but stops nothing."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return False
    except PermissionError:
        click.echo(f"Warning: {path} may not be read by this user: the defaults are used", err=True)
        return False
    except OSError:
        return True
    return True


def read_input(path: Path) -> bytes:
    """A file that the user named. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError((f"cannot be read: {(error.strerror or str(error)).lower()}",)) from error


def named(path: Path, error: ConfigError) -> ConfigError:
    """The same problems, each with the file that it is in."""
    return ConfigError(tuple(f"{path}: {problem}" for problem in error.problems))
