"""Which key of the server the nodes of each instance are recorded in, and where they cannot be. Used by settling.

A project that is restricted, or has any limit, forbids `volatile.cpu.nodes`. Where the settings say so, the nodes then
go to `limits.cpu.nodes`, which every project allows; as that takes the place of `balanced`, only what has opted in by
`user.limits.cpu.nodes` can have it: anything else would no longer be ours after the first write.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.observe import World
from incus_numa.daemon.seen import Seen
from incus_numa.host.virtual import Process
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.demand import BALANCED, LIMIT_NODES, OPT_IN_NODES, VOLATILE_NODES

AGAIN_S = 600.0
"""How long after the last refusal in a project one more write is tried: not every server says when a project was
changed, and what was said may be missed."""

_Kind = tuple[str, InstanceType, str]
"""Project, type and key: what a project forbids, it forbids for all of a type."""


class Recording:
    """What was refused so far. Not thread-safe: one event loop uses it. `clock` tells seconds that never go back."""

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._clock = clock
        self._forbidden: set[tuple[InstanceKey, str]] = set()
        self._refused_s: dict[_Kind, float] = {}
        self._written: dict[InstanceKey, tuple[Process, NodeSet]] = {}

    def key_of(self, seen: Seen) -> str | None:
        """The key for the nodes of an instance; None where they cannot be recorded."""
        key = seen.record
        if key is None or not self._is_forbidden(seen, key):
            return key
        return LIMIT_NODES if self._may_use_limits(seen) and not self._is_forbidden(seen, LIMIT_NODES) else None

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
            self._refused_s[_kind(seen, refused)] = self._clock()
        now = self.key_of(seen)
        if now is not None:
            return f"its project forbids {refused}, so its nodes are recorded in {now}"
        told = f"its project forbids the server's record, only the cgroup is set: {detail}"
        wished = self._world.placement.restricted_record == "limits"
        if wished and refused == VOLATILE_NODES and _follows_lists(seen) and not seen.opted_in:
            told += f"; to have its nodes in {LIMIT_NODES}, set {OPT_IN_NODES}={BALANCED} as well"
        return told

    def forget(self, project: str | None = None) -> None:
        """Try again what was refused, in one project or everywhere."""
        self._forbidden = {one for one in self._forbidden if project not in (None, one[0].project)}
        self._refused_s = {kind: at for kind, at in self._refused_s.items() if project not in (None, kind[0])}

    def keep(self, keys: set[InstanceKey]) -> None:
        """Forget all other instances."""
        self._forbidden = {(key, name) for key, name in self._forbidden if key in keys}
        projects = {key.project for key, _ in self._forbidden}
        self._refused_s = {kind: at for kind, at in self._refused_s.items() if kind[0] in projects}
        self._written = {key: one for key, one in self._written.items() if key in keys}

    def _is_forbidden(self, seen: Seen, name: str) -> bool:
        """Whether the key was refused to the instance, in a project that refused it lately to anybody."""
        if (seen.instance.key, name) not in self._forbidden:
            return False
        if self._clock() < self._refused_s.get(_kind(seen, name), float("-inf")) + AGAIN_S:
            return True
        # From here on it is as if it never was, also where others of the project are refused before its own write is.
        self._forbidden.discard((seen.instance.key, name))
        return False

    def _may_use_limits(self, seen: Seen) -> bool:
        limits = self._world.placement.restricted_record == "limits"
        return limits and seen.opted_in and seen.record == VOLATILE_NODES and _follows_lists(seen)


def _kind(seen: Seen, name: str) -> _Kind:
    return seen.instance.key.project, seen.instance.type, name


def _follows_lists(seen: Seen) -> bool:
    """Whether the server takes a list of nodes over while the instance runs: of a virtual machine at its next start."""
    return seen.instance.type is InstanceType.CONTAINER
