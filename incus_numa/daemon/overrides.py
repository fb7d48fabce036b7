"""A policy that was set while the daemon runs: tables over those of the configuration file, kept across restarts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from incus_numa.errors import ConfigError
from incus_numa.settings import Settings, read_tables, settings_as_dict

log = logging.getLogger(__name__)

TABLES = ("placement", "memory", "rebalance")
"""What can be set so; the other tables are about the daemon itself."""

FIXED = frozenset({("rebalance", "bytes_per_second"), ("rebalance", "journal")})
"""Keys of these tables that need a restart."""

Tables = Mapping[str, Mapping[str, Any]]


class Overrides:
    """The file that keeps them. Whoever reads it sees the old or the new ones, never a part.

    `kept` are those as last read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.kept: Tables = {}

    def read(self) -> Tables:
        """The tables, none when there is no file. Raises ConfigError if it is not ours."""
        self.kept = {}
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return self.kept
        except OSError as error:
            raise ConfigError((f"{self._path}: cannot be read: {error.strerror}",)) from error
        try:
            self.kept = msgspec.json.decode(text, type=dict[str, dict[str, Any]])
        except msgspec.MsgspecError as error:
            told = f"{self._path}: not what the API has written: {error}; delete it to go back to the file"
            raise ConfigError((told,)) from error
        return self.kept

    def write(self, tables: Tables) -> None:
        """Keep these from now on. Raises OSError; the old ones are kept then."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(tables), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
            self.kept = tables
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise

    def clear(self) -> None:
        """Keep none any more. Raises OSError."""
        self._path.unlink(missing_ok=True)
        self.kept = {}


def apply(settings: Settings, tables: Tables) -> Settings:
    """Settings with these tables over them, key by key. Raises ConfigError with every problem."""
    problems = [f"[{name}]: cannot be set here; expected one of {', '.join(TABLES)}" for name in tables.keys() - TABLES]
    problems += [f"{name}: expected a table" for name, table in tables.items() if not isinstance(table, Mapping)]
    if problems:
        raise ConfigError(tuple(sorted(problems)))
    problems = [
        f"{name}.{key}: can only be changed in the file, followed by a restart"
        for name, key in sorted(FIXED)
        if key in tables.get(name, {})
    ]
    whole = settings_as_dict(settings)
    found, wrong = read_tables(whole | {name: whole[name] | dict(table) for name, table in tables.items()})
    if problems or wrong:
        raise ConfigError((*problems, *wrong))
    return found
