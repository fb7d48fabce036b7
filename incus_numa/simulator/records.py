"""One simulated instance, and how the API shows it. Called by `incus` and `server`.

What a request needs is kept encoded until the record changes, so that a listing of 1000 instances is a join of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from incus_numa.model.instance import InstanceKey, InstanceType

CREATED_AT = "2026-08-01T10:00:00Z"
_STATUS_CODE = {"Running": 103, "Stopped": 102, "Frozen": 110}


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What of an instance comes back when it is restored: the keys set on it, volatile ones too, and its profiles."""

    config: Mapping[str, str]
    profiles: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Record:
    """One instance. `lock` is the operation that holds it: until it ends the API says it has not happened.

    One on another member (`location`) has the pid that it has there.
    """

    key: InstanceKey
    type: InstanceType
    config: dict[str, str]
    profiles: tuple[str, ...] = ("default",)
    profile_config: Mapping[str, str] = field(default_factory=dict)
    location: str = "none"
    pid: int = 0
    memory_bytes: int = 0
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    lock: str | None = None
    frozen: bool = False
    stateful: bool = False
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    _etag: str | None = None
    _shown: dict[bool, bytes] = field(default_factory=dict)

    @property
    def expanded(self) -> dict[str, str]:
        """Configuration after profiles."""
        return {**self.profile_config, **self.config}

    @property
    def running(self) -> bool:
        """What the API says: a starting instance is Stopped until the start lock is released."""
        return self.pid != 0 and self.lock not in ("start", "restart")

    @property
    def status(self) -> str:
        """The same in the API's words."""
        return "Stopped" if not self.running else "Frozen" if self.frozen else "Running"

    def changed(self) -> None:
        """Forget what was encoded. Call after every change."""
        self._etag = None
        self._shown.clear()

    def etag(self) -> str:
        """Hash of what PATCH can change, without quotes."""
        if self._etag is None:
            value = ["x86_64", sorted(self.config.items()), self.devices, False, self.profiles]
            self._etag = hashlib.sha256(msgspec.json.encode(value)).hexdigest()
        return self._etag

    def encode(self, *, full: bool) -> bytes:
        """JSON of the instance; `full` adds state, snapshots and backups."""
        if full not in self._shown:
            self._shown[full] = msgspec.json.encode(self._full() if full else self._plain())
        return self._shown[full]

    def state(self) -> dict[str, Any]:
        """JSON value of `/state`."""
        running = self.running
        usage = self.memory_bytes if running else 0
        return {
            "status": self.status,
            "status_code": _STATUS_CODE[self.status],
            "disk": {},
            "memory": {"usage": usage, "usage_peak": usage, "total": 0, "swap_usage": 0, "swap_usage_peak": 0},
            "network": None,
            "pid": self.pid if running else 0,
            "started_at": CREATED_AT if running else "0001-01-01T00:00:00Z",
            "processes": 1 if running else 0,
            "cpu": {"usage": 0, "allocated_time": 0},
            "os_info": None,
        }

    def _plain(self) -> dict[str, Any]:
        return {
            "name": self.key.name,
            "description": "",
            "status": self.status,
            "status_code": _STATUS_CODE[self.status],
            "created_at": CREATED_AT,
            "last_used_at": CREATED_AT,
            "location": self.location,
            "type": self.type.value,
            "project": self.key.project,
            "architecture": "x86_64",
            "ephemeral": False,
            "stateful": self.stateful,
            "profiles": list(self.profiles),
            "config": self.config,
            "devices": self.devices,
            "expanded_config": self.expanded,
            "expanded_devices": {"root": {"path": "/", "pool": "default", "type": "disk"}, **self.devices},
        }

    def _full(self) -> dict[str, Any]:
        return {**self._plain(), "backups": None, "state": self.state(), "snapshots": None}
