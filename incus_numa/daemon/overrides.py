"""A policy that was set while the daemon runs: tables over those of the configuration file, kept across restarts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from incus_numa.errors import ConfigError
from incus_numa.settings import FindMisfits, LeftOut, Settings, Tables, halt, put_over, salvage_over

MODE = 0o640


class Overrides:
    """The file that keeps them. Whoever reads it sees the old or the new ones, never a part.

    `kept` are those in force since they were last put over settings or written, none at first; `left_out` is what else
    the file has.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.kept: Tables = {}
        self.left_out: tuple[LeftOut, ...] = ()

    def put_over(self, settings: Settings, find_misfits: FindMisfits) -> Settings:
        """Settings with what the file keeps over them; what is not valid or does not fit is left out.

        Where the file cannot be read at all, or not whether moves are allowed, nobody is moved by load: an operator
        who forbade that must not find it done because a disk or an upgrade has spoilt the order.
        """
        try:
            found = salvage_over(settings, self._read(), find_misfits)
        except ConfigError as error:
            found = halt(settings, self._named(error.problems[0]))
        self.kept, self.left_out = found.tables, found.left_out
        return found.settings

    def check(self, settings: Settings, find_misfits: FindMisfits) -> None:
        """Raise ConfigError with everything that is wrong with what the file keeps, as it is over these settings."""
        try:
            put_over(settings, self._read(), find_misfits)
        except ConfigError as error:
            raise ConfigError(tuple(self._named(one) for one in error.problems)) from error

    def list_left_out(self) -> tuple[str, ...]:
        """What was set and is not in force, and why, one sentence each."""
        told = (one.why if one.key is None else self._named(one.why) for one in self.left_out)
        return tuple(f"left out of the policy that was set: {one}" for one in told)

    def list_keys(self) -> tuple[str, ...]:
        """Keys in force that were set, such as `placement.smt`."""
        return tuple(f"{name}.{key}" for name, table in self.kept.items() for key in table)

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
        self.kept, self.left_out = tables, ()
        self._sync_folder()

    def clear(self) -> None:
        """Keep none any more. Raises OSError; they are kept then."""
        self._path.unlink(missing_ok=True)
        self.kept, self.left_out = {}, ()
        self._sync_folder()

    def _read(self) -> Tables:
        """What the file has, whatever it says. Raises ConfigError where it cannot be read or is not ours."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError((f"cannot be read: {(error.strerror or str(error)).lower()}",)) from error
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ConfigError((f"not what the API has written: {error}",)) from error

    def _named(self, problem: str) -> str:
        return f"{self._path}: {problem}"

    def _sync_folder(self) -> None:
        """What was renamed or removed is so after a power cut, too, where the file system can do that."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
