"""A policy that was set while the daemon runs: tables over those of the configuration file, kept across restarts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from incus_numa.errors import ConfigError
from incus_numa.settings import LIVE_TABLES, RESTART_KEYS, Settings, read_tables, settings_as_dict

MODE = 0o640

Tables = Mapping[str, Mapping[str, Any]]


class Overrides:
    """The file that keeps them. Whoever reads it sees the old or the new ones, never a part.

    `kept` are those as last put over settings or written, none at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.kept: Tables = {}

    def put_over(self, settings: Settings, find_misfits: Callable[[Settings], tuple[str, ...]]) -> Settings:
        """Settings with what the file keeps over them.

        Raises ConfigError if it is not ours, or if what it leads to is not valid or does not fit; nothing has changed
        then.
        """
        tables = self._read()
        if not tables:
            self.kept = tables
            return settings
        try:
            found = apply(settings, tables)
            if misfits := find_misfits(found):
                raise ConfigError(misfits)
        except ConfigError as error:
            raise ConfigError(tuple(f"{self._path}: {problem}" for problem in error.problems)) from error
        self.kept = tables
        return found

    def write(self, tables: Tables) -> None:
        """Keep these from now on; none are kept as no file. Raises OSError; the old ones are kept then."""
        if not any(tables.values()):
            self.clear()
            return
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(tables), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        self.kept = tables
        self._sync_folder()

    def clear(self) -> None:
        """Keep none any more. Raises OSError; they are kept then."""
        self._path.unlink(missing_ok=True)
        self.kept = {}
        self._sync_folder()

    def _read(self) -> Tables:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError((f"{self._path}: cannot be read: {(error.strerror or str(error)).lower()}",)) from error
        try:
            return msgspec.json.decode(text, type=dict[str, dict[str, Any]])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            told = f"{self._path}: not what the API has written: {error}; delete it to go back to the file"
            raise ConfigError((told,)) from error

    def _sync_folder(self) -> None:
        """What was renamed or removed is so after a power cut, too, where the file system can do that."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def apply(settings: Settings, tables: Tables) -> Settings:
    """Settings with these tables over them, key by key. Raises ConfigError with every problem."""
    strange = sorted(tables.keys() - set(LIVE_TABLES))
    problems = [f"[{name}]: cannot be set here; expected one of {', '.join(LIVE_TABLES)}" for name in strange]
    problems += [f"{name}: expected a table" for name, table in tables.items() if not isinstance(table, Mapping)]
    if problems:
        raise ConfigError(tuple(problems))
    problems = [
        f"{name}.{key}: can only be changed in the file, followed by a restart"
        for name, key in sorted(RESTART_KEYS)
        if key in tables.get(name, {})
    ]
    whole = settings_as_dict(settings)
    found, wrong = read_tables(whole | {name: whole[name] | dict(table) for name, table in tables.items()})
    if problems or wrong:
        raise ConfigError((*problems, *wrong))
    return found
