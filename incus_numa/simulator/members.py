"""The other members of the cluster, as far as this one sees them: their instances, their events, what moves between.

A live migration sends `instance-migrated` from the source alone, and the server knows the new location only after
that; nothing is sent about the start on the target. See Incus' cmd/incusd/instance_post.go (migrateInstance) and
cmd/incusd/api_cluster_evacuation.go. Used by the simulator's driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.incus import Incus
from incus_numa.simulator.options import Span
from incus_numa.simulator.records import Record
from incus_numa.simulator.refusals import ApiError

OTHER = "other"
"""A member that is not simulated any further."""

_ORIGIN = "volatile.evacuate.origin"
_POWER = "volatile.last_state.power"


class Members:
    """What happens between this member and others. Errors are ApiError."""

    def __init__(self, incus: Incus) -> None:
        self._incus = incus
        self.relocation_s: Span = (0.0, 0.05)
        """How long after `instance-migrated` the server still names the old location."""

    def create(
        self,
        name: str,
        config: Mapping[str, str],
        *,
        project: str = "default",
        kind: InstanceType = InstanceType.CONTAINER,
        location: str = OTHER,
    ) -> InstanceKey:
        """A new, stopped instance on another member. What is done to it afterwards is done there."""
        key = InstanceKey(project, name)
        self._incus.create(key, kind, config, ("default",), location=location)
        return key

    async def migrate(self, key: InstanceKey, location: str, *, live: bool = False) -> None:
        """Move an instance to another member, this one or away from it; without `live` it has to be stopped."""
        record = self._incus.free(key, "migrate")
        if record.location == location:
            raise ApiError(400, "Requested target server is the same as current server")
        if record.pid and not live:
            raise ApiError(400, "Instance must be stopped to be moved statelessly")
        self._incus.lock(record, "migrate")
        was_running = record.pid != 0
        if was_running and self._incus.is_here(record):
            # The processes go on elsewhere.
            self._incus.end(record)
            record.config[_POWER] = "RUNNING"
        self._incus.send("instance-migrated", key)
        if was_running and location == self._incus.location:
            self._arrive(record, location)
        await self._incus.wait(self.relocation_s)
        record.location = location
        if was_running and not record.pid:
            self._incus.arrive(record)
        self._incus.update(record)
        self._incus.release(record)

    def enable(self, name: str) -> None:
        """This server becomes the member of a cluster, and so do its instances."""
        here = [record for record in self._incus.records.values() if self._incus.is_here(record)]
        self._incus.options = replace(self._incus.options, member=name)
        self._incus.location = self._incus.hub.location = name
        for record in here:
            record.location = name
            self._incus.update(record)
        self._incus.hub.send_about_member("cluster-enabled", name)

    async def evacuate(self, *, live: bool = False, moves: bool = True) -> None:
        """Empty this member: its instances are stopped, and unless they stay here moved, or they are moved live."""
        here = [record for record in self._incus.records.values() if self._incus.is_here(record)]
        for record in here:
            was_running = record.pid != 0
            if was_running and not live:
                self._shut_down(record)
            if moves or live:
                record.config.setdefault(_ORIGIN, self._incus.location)
                await self.migrate(record.key, OTHER, live=live)
                if was_running and not live:
                    await self._incus.start(record.key)
        self._incus.hub.send_about_member("cluster-member-evacuated", self._incus.location)

    async def restore(self, *, live: bool = False) -> None:
        """Bring back what was here before the evacuation, and start what was stopped for it."""
        for record in tuple(self._incus.records.values()):
            if self._incus.is_here(record):
                if record.config.get(_POWER) == "RUNNING" and not record.pid:
                    await self._incus.start(record.key)
            elif record.config.get(_ORIGIN) == self._incus.location:
                await self._bring_back(record, live=live)
        self._incus.hub.send_about_member("cluster-member-restored", self._incus.location)

    async def _bring_back(self, record: Record, *, live: bool) -> None:
        was_running = record.pid != 0
        if was_running and not live:
            await self._incus.stop(record.key)
        await self.migrate(record.key, self._incus.location, live=live)
        del record.config[_ORIGIN]
        record.changed()
        if was_running and not live:
            await self._incus.start(record.key)

    def _shut_down(self, record: Record) -> None:
        """Stopped for an evacuation: the server remembers that it ran."""
        self._incus.crash(record.key)
        record.config[_POWER] = "RUNNING"
        record.changed()

    def _arrive(self, record: Record, location: str) -> None:
        """The processes run on the target already, while the server still names the source."""
        source, record.location = record.location, location
        self._incus.arrive(record)
        record.location = source
        record.changed()
        if record.type is InstanceType.CONTAINER:
            self._incus.balancer.trigger()
