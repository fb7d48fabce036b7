"""Which key of the server the nodes of each instance are recorded in, and where they cannot be. Used by settling.

A project that is restricted, or has any limit, forbids `volatile.cpu.nodes`. Where the settings say so, the nodes then
go to `limits.cpu.nodes`, which every project allows; as that takes the place of `balanced`, only what has opted in by
`user.limits.cpu.nodes` can have it: anything else would no longer be ours after the first write.
"""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.observe import World
from incus_numa.daemon.seen import Seen
from incus_numa.host.virtual import Process
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.demand import BALANCED, LIMIT_NODES, OPT_IN_NODES, VOLATILE_NODES


class Recording:
    """What was refused so far. Not thread-safe: one event loop uses it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._forbidden: set[tuple[InstanceKey, str]] = set()
        self._written: dict[InstanceKey, tuple[Process, NodeSet]] = {}

    def key_of(self, seen: Seen) -> str | None:
        """The key for the nodes of an instance; None where they cannot be recorded."""
        key, own = seen.record, seen.instance.key
        if key is None or (own, key) not in self._forbidden:
            return key
        return LIMIT_NODES if self._may_use_limits(seen) and (own, LIMIT_NODES) not in self._forbidden else None

    def may_write(self, seen: Seen, nodes: NodeSet) -> bool:
        """Whether these nodes can be recorded now: of a running virtual machine once, whatever others make of it.

        Every write to one makes the server stop and start its QEMU at the guest's next reboot.
        """
        return self.key_of(seen) is not None and self._written.get(seen.instance.key) != (seen.process, nodes)

    def note_written(self, seen: Seen, nodes: NodeSet) -> None:
        """Note what was recorded."""
        if seen.process is not None:
            self._written[seen.instance.key] = seen.process, nodes

    def is_followed(self, seen: Seen) -> bool:
        """Whether what is recorded keeps the instance on these nodes, whoever wrote it."""
        return self.key_of(seen) == LIMIT_NODES

    def refuse(self, seen: Seen, detail: str) -> str:
        """Note that the server forbids the key for this instance: what to say about that."""
        refused = self.key_of(seen)
        if refused is not None:
            self._forbidden.add((seen.instance.key, refused))
        now = self.key_of(seen)
        if now is not None:
            return f"its project forbids {refused}, so its nodes are recorded in {now}"
        told = f"its project forbids the server's record, only the cgroup is set: {detail}"
        wished = self._world.placement.restricted_record == "limits"
        if wished and refused == VOLATILE_NODES and _follows_lists(seen) and not seen.opted_in:
            told += f"; to have its nodes in {LIMIT_NODES}, set {OPT_IN_NODES}={BALANCED} as well"
        return told

    def forget(self) -> None:
        """Try again what was refused."""
        self._forbidden.clear()

    def keep(self, keys: set[InstanceKey]) -> None:
        """Forget all other instances."""
        self._forbidden = {(key, name) for key, name in self._forbidden if key in keys}
        self._written = {key: one for key, one in self._written.items() if key in keys}

    def _may_use_limits(self, seen: Seen) -> bool:
        limits = self._world.placement.restricted_record == "limits"
        return limits and seen.opted_in and seen.record == VOLATILE_NODES and _follows_lists(seen)


def _follows_lists(seen: Seen) -> bool:
    """Whether the server takes a list of nodes over while the instance runs: of a virtual machine at its next start."""
    return seen.instance.type is InstanceType.CONTAINER
