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

F = TypeVar("F", bound=Callable[..., Any])


def common(function: F) -> F:
    """`--config` and `--log-level`, which every command takes."""
    function = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        default="info",
        show_default=True,
        help="How much to log to standard error.",
    )(function)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        default=None,
        help=f"Configuration file; {DEFAULT_CONFIG} if it exists.",
    )(function)


def formatted(function: F) -> F:
    """`-f, --format`, which every command that prints data takes."""
    return click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(["table", "json", "yaml", "csv"]),
        default="table",
        show_default=True,
        help="Output format.",
    )(function)


def start_logging(level: str) -> None:
    """Log to standard error; under systemd without the time, which the journal adds."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(levelname)s %(message)s" if sys.stderr.isatty() is False else "%(asctime)s %(levelname)s %(message)s",
        force=True,
    )


def load_settings(config_file: Path | None) -> Settings:
    """Settings from the file; defaults if none was named and the usual one does not exist. Raises ConfigError."""
    path = config_file or Path(DEFAULT_CONFIG)
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        if config_file is None:
            return Settings()
        raise ConfigError((f"{path}: no such file",)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError((f"{path}: not readable: {error}",)) from error
    try:
        return parse_settings(text)
    except ConfigError as error:
        raise ConfigError(tuple(f"{path}: {problem}" for problem in error.problems)) from error
