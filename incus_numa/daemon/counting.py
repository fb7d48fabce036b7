"""What everything that was seen counts for where instances are planned, summed up as it changes. Used by the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.hardware import Hardware
from incus_numa.daemon.seen import Seen, bound_nodes, moved
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.settings import PlacementSettings


class Counting:
    """Plans for what was seen, and for that keeps the sums of it. Whoever changes `seen` tells it."""

    def __init__(self, seen: Mapping[InstanceKey, Seen], hardware: Hardware, placement: PlacementSettings) -> None:
        self._seen = seen
        self._hardware = hardware
        self._placement = placement
        self._load = Load()
        self._shared: set[InstanceKey] = set()
        self._standing: Standing | None = None

    @property
    def placement(self) -> PlacementSettings:
        """The settings that plans are made with."""
        return self._placement

    def use(self, placement: PlacementSettings) -> None:
        """Plan with other settings from now on."""
        self._placement = placement
        self._standing = None

    def begin_anew(self) -> None:
        """Sum up everything again when it is needed: the machine changed, or sums have gathered rounding errors."""
        self._standing = None

    def snapshot(self, judged: frozenset[InstanceKey] = frozenset()) -> Snapshot:
        """Everything as last seen. What those to be `judged` ask for counts, whatever was decided before."""
        return Snapshot(
            machine=self._hardware.machine,
            instances=tuple(
                self._asking(seen) if key in judged else self._counted(seen) for key, seen in self._seen.items()
            ),
            observed={key: seen.observed for key, seen in self._seen.items()},
            load=self._load,
        )

    def plan(self, keys: frozenset[InstanceKey]) -> tuple[Plan, Snapshot]:
        """A plan for these instances, all others staying as they are, and the snapshot it was made from."""
        seen = [self._seen[key] for key in keys if key in self._seen]
        if len(keys) > 1 or any(one.observed.decided is not None for one in seen):
            snapshot = self.snapshot(keys)
            return planner.plan(snapshot, self._placement, only=keys), snapshot
        # A start: what all others take is summed up already.
        snapshot = Snapshot(
            machine=self._hardware.machine,
            instances=tuple(self._asking(one) for one in seen),
            observed={one.instance.key: one.observed for one in seen},
            load=self._load,
        )
        return planner.place_new(self._stand(), snapshot), snapshot

    def usable_by(self, key: InstanceKey, refused: Iterable[InstanceKey] = ()) -> CpuSet:
        """The CPUs that an instance may have, where nothing is exclusive to those `refused`."""
        return self._stand().usable_by(key, refused)

    def see(self, before: Seen | None, now: Seen) -> None:
        """Count an instance as it is now; `before` is None where it was not counted."""
        if self._standing is not None and (before is None or before.instance != now.instance or moved(before, now)):
            self._standing.see(self._counted(now), now.observed, self._load)

    def drop(self, key: InstanceKey) -> None:
        """Count an instance no longer; nothing happens if it was not counted."""
        self._shared.discard(key)
        if self._standing is not None:
            self._standing.drop(key)

    def share(self, seen: Seen, *, shared: bool) -> None:
        """Note whether others may have the CPUs of an instance that asks for exclusive ones: it was refused."""
        key = seen.instance.key
        if shared == (key in self._shared):
            return
        (self._shared.add if shared else self._shared.discard)(key)
        if self._standing is not None:
            self._standing.see(self._counted(seen), seen.observed, self._load)

    def note_load(self, load: Load) -> None:
        """Count measured load in everything planned from now on."""
        before, self._load = self._load, load
        if self._standing is None:
            return
        for key, seen in self._seen.items():
            weight = seen.instance.demand.weight
            known = (max(weight, one.cpus_by_instance.get(key, 0.0)) for one in (before, load))
            if len(set(known)) > 1:
                self._standing.see(self._counted(seen), seen.observed, load)

    def _asking(self, seen: Seen) -> Instance:
        """The instance as it is planned. Where a virtual machine starts, memory that it is bound to draws it there.

        Once it has a place, that is what moving it by load costs (see rebalance.price), and draws it no more.
        """
        if seen.observed.decided is not None:
            return seen.instance
        bound = bound_nodes(seen, self._hardware.machine)
        return replace(seen.instance, bound_nodes=bound) if bound else seen.instance

    def _counted(self, seen: Seen) -> Instance:
        """The instance as it counts where others are planned: with exclusive CPUs only if it was given some."""
        instance = self._asking(seen)
        if instance.key not in self._shared:
            return instance
        return replace(instance, demand=replace(instance.demand, exclusive=False))

    def _stand(self) -> Standing:
        if self._standing is None:
            self._standing = Standing(self._hardware.machine, self._placement)
            for seen in self._seen.values():
                self._standing.see(self._counted(seen), seen.observed, self._load)
        return self._standing
