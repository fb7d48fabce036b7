"""From a plan to the steps that bring each instance there. A value that is already right yields no step.

Every prefix of an instance's steps is legal: the record first (it may also be written beside the others), then memory
is widened to the union of old and new nodes, then CPUs change, then memory is narrowed.
"""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.plan import PatchNodes, Placement, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import Observed


def diff_one(placement: Placement, observed: Observed, memory_nodes: NodeSet) -> tuple[Step, ...]:
    """Steps for one placement. Without a cgroup (`cpus` and `mems` None) only the record is written.

    Memory that is bound to all of the machine's `memory_nodes` is not bound: the kernel does not take an empty set
    for a group that has had one.
    """
    key = placement.key
    steps: list[Step] = []
    if observed.nodes != placement.nodes:
        steps.append(PatchNodes(key=key, nodes=placement.nodes, before=observed.nodes))
    bound, wanted = _bound(observed.mems or NodeSet(), memory_nodes), _bound(placement.mems or NodeSet(), memory_nodes)
    wide = _widened(bound, wanted)
    if observed.mems is not None and wide != bound:
        steps.append(WriteMems(key=key, mems=wide, before=observed.mems))
    if observed.cpus is not None and observed.cpus != placement.cpus:
        steps.append(WriteCpus(key=key, cpus=placement.cpus, before=observed.cpus))
    if observed.mems is not None and wide != wanted:
        steps.append(WriteMems(key=key, mems=wanted, before=observed.mems if wide == bound else wide))
    return tuple(steps)


def _bound(mems: NodeSet, memory_nodes: NodeSet) -> NodeSet:
    """The nodes that memory is really bound to; empty when it may be anywhere."""
    return NodeSet() if memory_nodes <= mems else mems


def _widened(bound: NodeSet, wanted: NodeSet) -> NodeSet:
    """What a binding must be while CPUs change: the union of old and new nodes; empty when either is not bound."""
    return bound | wanted if bound and wanted else NodeSet()
