"""What ties an instance to nodes or drives it away from them: devices, memory, its group, and those that it avoids.

All of it is what each node adds to the cost of a set that has it (see scoring):

device_weight * the mean distance to the nodes of its devices;
device_weight * the mean distance to the nodes that its memory is bound to, of a virtual machine that is new;
group_weight  * the mean distance to the members of its group that have a place, every member counting the same,
              but for members that it is to be kept apart from, as replicas are: these do not pull;
avoid_weight  where an instance runs that one of the two wants to avoid.

A distance is 0 for the node itself, else the kernel's over the local one (12 is 1.2), both directions' mean. So leaving
the node costs more than any load up to a full node, and then the near ones come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.rooms import bits
from incus_numa.settings import PlacementSettings


class Ties:
    """Who is in which group, and who avoids which group. Kept up to date with the ledger."""

    def __init__(self, instances: Iterable[Instance] = ()) -> None:
        self._groups: dict[str, set[InstanceKey]] = {}
        self._avoiders: dict[str, set[InstanceKey]] = {}
        self._known: dict[InstanceKey, Instance] = {}
        for instance in instances:
            self.see(instance)

    def see(self, instance: Instance) -> None:
        """Know an instance's group and whom it avoids, and no longer what they were before."""
        if instance.key in self._known:
            self.drop(instance.key)
        if instance.group is None and not instance.avoid:
            return
        self._known[instance.key] = instance
        if instance.group is not None:
            self._groups.setdefault(instance.group, set()).add(instance.key)
        for group in instance.avoid:
            self._avoiders.setdefault(group, set()).add(instance.key)

    def drop(self, key: InstanceKey) -> None:
        """Know an instance no longer; nothing happens if it was not known."""
        instance = self._known.pop(key, None)
        if instance is None:
            return
        if instance.group is not None:
            self._groups[instance.group].discard(key)
        for group in instance.avoid:
            self._avoiders[group].discard(key)

    def is_tied(self, instance: Instance) -> bool:
        """Whether anything ties the instance to nodes or drives it away: it is not exchangeable with others then."""
        return bool(instance.device_nodes or instance.bound_nodes or instance.group is not None or instance.avoid)

    def pull(self, instance: Instance, ledger: Ledger, settings: PlacementSettings) -> Mapping[int, float]:
        """What each node adds to the cost; empty where no node adds anything. Counts those that are in the ledger."""
        if not self.is_tied(instance):
            return {}
        far = ledger.machine.remoteness
        added = dict.fromkeys(ledger.nodes, 0.0)
        for drawn in (instance.device_nodes, instance.bound_nodes):
            targets = list(drawn & ledger.nodes)
            if targets:
                _add_distance(added, far, targets, settings.device_weight)
        avoided = self._avoided(instance)
        mates = [mask for mask in self._masks(self._mates(instance) - avoided, instance.key, ledger) if mask]
        for mask in mates:
            _add_distance(added, far, list(bits(mask)), settings.group_weight / len(mates))
        taken = 0
        for mask in self._masks(avoided, instance.key, ledger):
            taken |= mask
        for node in bits(taken):
            added[node] += settings.avoid_weight
        return {node: round(value, 9) for node, value in added.items()} if any(added.values()) else {}

    def _mates(self, instance: Instance) -> set[InstanceKey]:
        return self._groups.get(instance.group, set()) if instance.group is not None else set()

    def _avoided(self, instance: Instance) -> set[InstanceKey]:
        found = set[InstanceKey]()
        for group in instance.avoid:
            found |= self._groups.get(group, set())
        if instance.group is not None:
            found |= self._avoiders.get(instance.group, set())
        return found

    def _masks(self, keys: Iterable[InstanceKey], own: InstanceKey, ledger: Ledger) -> list[int]:
        """The nodes of those that have a place. One that may be anywhere says nothing."""
        entries = [ledger.entries.get(key) for key in sorted(keys) if key != own]
        return [entry.nodes & ledger.nodes.mask for entry in entries if entry is not None and not entry.anywhere]


def _add_distance(
    added: dict[int, float], far: Mapping[int, Mapping[int, float]], targets: list[int], weight: float
) -> None:
    """Add the mean distance of each node to the targets; `far` has both directions', each less one local distance."""
    for node in added:
        row = far[node]
        total = sum(row[target] / 2 + 1 for target in targets if target != node)
        added[node] += weight * total / len(targets)
