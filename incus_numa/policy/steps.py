"""From a plan to the steps that bring each instance there. A value that is already right yields no step.

Every prefix of an instance's steps is legal: the record first (it may also be written beside the others), then memory
is widened to the union of old and new nodes, then CPUs change, then memory follows in slices, then it is narrowed. What
a crash leaves undone is a step again when the instance is looked at next.
"""

from __future__ import annotations

from collections.abc import Sequence

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine
from incus_numa.model.plan import MovePages, PatchNodes, PinThreads, Placement, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import Observed

PACED_BYTES = 64 << 20
"""Less memory than this is not moved in slices: narrowing the binding moves it at once, in tens of milliseconds."""


def diff_one(placement: Placement, observed: Observed, memory_nodes: NodeSet) -> tuple[Step, ...]:
    """Steps for one placement. Without a cgroup (`cpus` and `mems` None) only the record is written.

    Memory that is bound to all of the machine's `memory_nodes` is not bound, and is unbound by that: the kernel does
    not take an empty set for a group that has had one.
    """
    key = placement.key
    steps: list[Step] = []
    if observed.nodes != placement.nodes:
        steps.append(PatchNodes(key=key, nodes=placement.nodes, before=observed.nodes))
    bound, wanted = really_bound(observed.mems, memory_nodes), really_bound(placement.mems, memory_nodes)
    wide = _widened(bound, wanted)
    if observed.mems is not None and wide != bound:
        steps.append(WriteMems(key=key, mems=wide or memory_nodes, before=observed.mems))
    if observed.cpus is not None and observed.cpus != placement.cpus:
        steps.append(WriteCpus(key=key, cpus=placement.cpus, before=observed.cpus))
    narrows = observed.mems is not None and wide != wanted
    follows = _follows(placement, observed, wanted if narrows else NodeSet(), memory_nodes)
    if follows is not None:
        steps.append(follows)
    if narrows:
        before = observed.mems if wide == bound else wide or memory_nodes
        steps.append(WriteMems(key=key, mems=wanted or memory_nodes, before=before))
    return tuple(steps)


def diff_vm(
    placement: Placement, observed: Observed, machine: Machine, *, usable: CpuSet, migrates: bool
) -> tuple[Step, ...]:
    """Steps for the placement of a virtual machine. Where its threads were not found only the record is written.

    Threads that are no vCPUs go to `usable` CPUs of its nodes. Its memory stays where it is, unless it `migrates`.
    """
    key = placement.key
    steps: list[Step] = []
    if observed.nodes != placement.nodes:
        steps.append(PatchNodes(key=key, nodes=placement.nodes, before=observed.nodes))
    around = cpus_around(placement, machine, usable)
    # vCPUs that were not told from other threads are among those.
    has = (placement.cpus if observed.cpus is None else observed.cpus, observed.around)
    if observed.around is not None and (has != (placement.cpus, around) or not observed.even):
        steps.append(PinThreads(key=key, cpus=placement.cpus, around=around, before=observed.cpus))
    targets = placement.nodes & machine.memory_nodes
    memory = observed.memory or {}
    sources = NodeSet(node for node, size in memory.items() if size) - placement.nodes
    size = sum(memory[node] for node in sources)
    if migrates and targets and size >= PACED_BYTES:
        steps.append(MovePages(key=key, sources=sources, targets=targets, size_bytes=size))
    return tuple(steps)


def cpus_around(placement: Placement, machine: Machine, usable: CpuSet) -> CpuSet:
    """Where the threads of a virtual machine belong that are no vCPUs: all `usable` CPUs of its nodes.

    Where its nodes have none, these threads are beside the vCPUs.
    """
    return machine.cpus_of(placement.nodes) & usable or placement.cpus


def at_once(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that need not wait for memory to follow: all before that, or all if none has to."""
    for place, step in enumerate(steps):
        if isinstance(step, MovePages):
            return tuple(steps[:place])
    return tuple(steps)


def _follows(placement: Placement, observed: Observed, wanted: NodeSet, memory_nodes: NodeSet) -> MovePages | None:
    """Memory that is to follow in slices: all that is outside a narrower binding, or on nodes that were left."""
    if observed.mems is None or observed.memory is None:
        return None
    targets = wanted or ((placement.nodes & memory_nodes) - (placement.leaves or NodeSet()))
    left = NodeSet(observed.memory) - wanted if wanted else (placement.leaves or NodeSet()) - placement.nodes
    sources = NodeSet(node for node in left if observed.memory.get(node))
    size = sum(observed.memory.get(node, 0) for node in sources)
    if size < PACED_BYTES or not targets:
        return None
    return MovePages(key=placement.key, sources=sources, targets=targets, size_bytes=size)


def really_bound(mems: NodeSet | None, memory_nodes: NodeSet) -> NodeSet:
    """The nodes that memory is bound to; empty when it may be anywhere, as on all of the machine's, or is not known."""
    return NodeSet() if mems is None or memory_nodes <= mems else mems


def _widened(bound: NodeSet, wanted: NodeSet) -> NodeSet:
    """What a binding must be while CPUs change: the union of old and new nodes; empty when either is not bound."""
    return bound | wanted if bound and wanted else NodeSet()
