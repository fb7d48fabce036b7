"""What people do to an instance beyond starting and stopping it: names, projects, copies, snapshots, pauses.

Order of events and what becomes of volatile keys are those of Incus' cmd/incusd/instance_post.go and
internal/server/instance/drivers/driver_lxc.go. Used by the simulator's driver and by `server`.
"""

from __future__ import annotations

from incus_numa.model.instance import InstanceKey
from incus_numa.simulator import refusals
from incus_numa.simulator.incus import NOT_FOUND, Incus
from incus_numa.simulator.records import Record, Snapshot
from incus_numa.simulator.refusals import ApiError

_COPIED = ("volatile.base_image", "volatile.last_state.idmap")
"""Volatile keys that a copy has, too."""


class Lifecycle:
    """The rest of an instance's life on one server. Errors are ApiError."""

    def __init__(self, incus: Incus) -> None:
        self._incus = incus

    def rename(self, key: InstanceKey, name: str) -> InstanceKey:
        """Give a stopped instance another name: one event, with the new name."""
        record = self._incus.free(key, "rename")
        if record.pid:
            raise ApiError(500, "Renaming of running instance not allowed")
        renamed = InstanceKey(key.project, name)
        self._check_unused(renamed)
        self._rekey(record, renamed)
        self._incus.send("instance-renamed", renamed, old_name=key.name)
        return renamed

    def move(self, key: InstanceKey, project: str) -> InstanceKey:
        """Move a stopped instance to another project: a new one with all its keys is created, the old one deleted.

        A project that forbids volatile keys does not get them.
        """
        record = self._incus.free(key, "migrate")
        if record.pid:
            raise ApiError(400, "Instance must be stopped to be moved across projects")
        moved = InstanceKey(project, key.name)
        strips = refusals.is_restricted(self._incus.projects.get(project, {}), record.type)
        config = {name: value for name, value in record.config.items() if not (strips and name.startswith("volatile."))}
        self._incus.create(moved, record.type, config, record.profiles)
        self._incus.get(moved).snapshots = record.snapshots
        self._incus.delete(key)
        return moved

    def copy(self, key: InstanceKey, name: str, project: str | None = None) -> InstanceKey:
        """A new, stopped instance with the keys of another one, running or not, but without its volatile ones."""
        record = self._incus.get(key)
        config = {
            name: value for name, value in record.config.items() if not name.startswith("volatile.") or name in _COPIED
        }
        copied = InstanceKey(project or key.project, name)
        self._incus.create(copied, record.type, config, record.profiles)
        return copied

    def snapshot(self, key: InstanceKey, name: str) -> None:
        """Keep what the instance is configured like now."""
        record = self._incus.get(key)
        record.snapshots[name] = Snapshot(config=dict(record.config), profiles=record.profiles)
        self._incus.send("instance-snapshot-created", key)

    async def restore(self, key: InstanceKey, name: str) -> None:
        """Go back to a snapshot. A running instance is stopped before and started after, each with its event.

        Nothing is sent about the configuration that changed meanwhile.
        """
        record = self._incus.free(key, "restore")
        snapshot = record.snapshots.get(name)
        if snapshot is None:
            raise ApiError(404, NOT_FOUND)
        was_running = record.pid != 0
        if was_running:
            await self._incus.stop(key)
        record.config = dict(snapshot.config)
        record.profiles = snapshot.profiles
        self._incus.expand(record)
        if was_running:
            await self._incus.start(key)
        self._incus.send("instance-restored", key)

    def pause(self, key: InstanceKey) -> None:
        """Freeze a running instance: it keeps its processes, and its cgroup can be written all the same."""
        self._freeze(key, frozen=True)

    def resume(self, key: InstanceKey) -> None:
        """Let a frozen instance go on."""
        self._freeze(key, frozen=False)

    async def stop_stateful(self, key: InstanceKey) -> None:
        """Stop an instance and keep its memory on disk. For events it is a stop."""
        record = self._incus.free(key, "stop")
        if record.expanded.get("migration.stateful") != "true":
            raise ApiError(400, "Stateful stop requires that the instance has migration.stateful be set to true")
        await self._incus.stop(key)
        record.stateful = True
        record.changed()

    async def start_stateful(self, key: InstanceKey) -> None:
        """Start an instance with the memory that was kept: nodes are chosen anew, as by any start."""
        record = self._incus.free(key, "start")
        if not record.stateful:
            raise ApiError(400, "The instance has no state to restore")
        await self._incus.start(key)
        record.stateful = False
        record.changed()

    def _freeze(self, key: InstanceKey, *, frozen: bool) -> None:
        record = self._incus.free(key, "freeze" if frozen else "unfreeze")
        if not record.pid:
            raise ApiError(400, "The instance isn't running")
        if record.frozen is frozen:
            raise ApiError(400, f"The container is already {'frozen' if frozen else 'running'}")
        record.frozen = frozen
        record.changed()
        self._incus.send("instance-paused" if frozen else "instance-resumed", key)

    def _rekey(self, record: Record, key: InstanceKey) -> None:
        self._incus.forget(record.key)
        record.key = key
        self._incus.adopt(record)

    def _check_unused(self, key: InstanceKey) -> None:
        if key in self._incus.records:
            raise ApiError(409, f'Name "{key.name}" already in use')
