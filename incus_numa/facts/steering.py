"""The policy that the API shows and sets: the file's, or other values over it while the daemon runs. Used by `live`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Set
from dataclasses import fields
from typing import Any

import msgspec

from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.service import Service
from incus_numa.errors import ChangedError, ConfigError, ReportError
from incus_numa.settings import (
    LIVE_TABLES,
    RESTART_KEYS,
    LeftOut,
    Settings,
    Tables,
    list_unused,
    put_over,
    settings_as_dict,
)
from incus_numa.web.protocol import Document

TAG_LETTERS = 32


class Steering:
    """The policy of a running service. `load` reads the configuration file and may raise ConfigError."""

    def __init__(self, service: Service, overrides: Overrides, *, file: str, load: Callable[[], Settings]) -> None:
        self._service = service
        self._overrides = overrides
        self._file = file
        self._load = load
        self._changing = asyncio.Lock()

    @property
    def source(self) -> str:
        """Where the policy in force comes from: `api` or `file`."""
        return "api" if self._changes() else "file"

    @property
    def problems(self) -> tuple[str, ...]:
        """What was set and is not in force, and why, one sentence each."""
        return self._overrides.list_left_out()

    def show(self, more: tuple[str, ...] = ()) -> Document:
        """What is in force, and where it comes from; `more` are warnings beside those of the settings."""
        settings = self._service.settings
        whole = settings_as_dict(settings)
        state: Document = {
            "source": self.source,
            "file": self._file,
            "changes": self._changes(),
            "left_out": [{"key": one.key, "why": one.why} for one in self._overrides.left_out],
            "effective": {name: whole[name] for name in LIVE_TABLES},
        }
        return state | {
            "meanings": {
                f"{table.name}.{one.name}": one.metadata["meaning"]
                for table in fields(Settings)
                if table.name in LIVE_TABLES
                for one in fields(getattr(settings, table.name))
            },
            "fixed": sorted(f"{name}.{key}" for name, key in RESTART_KEYS),
            "warnings": [*more, *list_unused(settings)],
            "etag": _tag(state),
        }

    async def set(self, tables: Mapping[str, Any], only_if: Set[str] | None) -> Document:
        """Have these tables over those of the file.

        Raises ConfigError, ChangedError where the policy has none of the tags, and ReportError; nothing has changed
        then.
        """
        async with self._changing:
            # A request that makes no sense is that first, whatever it is meant for (RFC 9110, 13.2.1).
            settings, dropped = put_over(self._load(), tables, self._service.find_misfits), self._overrides.left_out
            self._check_tag(only_if)
            try:
                await asyncio.to_thread(self._overrides.write, tables)
            except OSError as error:
                raise ReportError(f"the policy cannot be kept, so it was not set: {error}") from error
            self._use(settings, tables)
            return self.show(tuple(_tell_dropped(one) for one in dropped))

    async def reset(self, only_if: Set[str] | None) -> Document:
        """Go back to the file. Raises as `set` does; nothing has changed then."""
        async with self._changing:
            settings = put_over(self._load(), {}, self._service.find_misfits)
            self._check_tag(only_if)
            try:
                await asyncio.to_thread(self._overrides.clear)
            except OSError as error:
                raise ReportError(f"the policy cannot be removed, so it stays: {error}") from error
            self._use(settings, {})
            return self.show()

    def _use(self, settings: Settings, tables: Tables) -> None:
        """Work by what is kept now, over the file as it is now: it may have changed while that was written."""
        try:
            self._service.use(put_over(self._load(), tables, self._service.find_misfits))
        except ConfigError:
            self._service.use(settings)

    def _check_tag(self, only_if: Set[str] | None) -> None:
        if only_if is not None and self.show()["etag"] not in only_if:
            raise ChangedError("the policy was changed since it was read: read it again, then change it")

    def _changes(self) -> dict[str, dict[str, Any]]:
        return {name: dict(table) for name, table in self._overrides.kept.items() if table}


def _tag(state: Document) -> str:
    """What is another one for another policy, and the same after a restart."""
    return hashlib.sha256(msgspec.json.encode(state, order="deterministic")).hexdigest()[:TAG_LETTERS]


def _tell_dropped(one: LeftOut) -> str:
    return f"no longer kept, as it was not in force: {one.why}"
