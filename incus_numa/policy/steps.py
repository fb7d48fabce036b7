"""From a plan to the steps that bring each instance there. A value that is already right yields no step.

Every prefix of an instance's steps is legal: the record first (so that the server's own rewriting goes the right way),
then memory is widened to the union of old and new nodes, then CPUs change, then memory is narrowed.
"""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.plan import PatchNodes, Placement, Plan, Step, WriteCpus, WriteMems
from incus_numa.model.snapshot import NOTHING, Observed, Snapshot


def diff(plan: Plan, snapshot: Snapshot) -> tuple[Step, ...]:
    """Steps for all placements, in the order of the plan; those of one instance stand together and in order."""
    steps: list[Step] = []
    for placement in plan.placements:
        steps.extend(diff_one(placement, snapshot.observed.get(placement.key, NOTHING)))
    return tuple(steps)


def diff_one(placement: Placement, observed: Observed) -> tuple[Step, ...]:
    """Steps for one placement. Without a cgroup (`cpus` and `mems` None) only the record is written."""
    steps: list[Step] = []
    if observed.nodes != placement.nodes:
        steps.append(PatchNodes(key=placement.key, nodes=placement.nodes, before=observed.nodes))
    steps.extend(
        WriteMems(key=placement.key, mems=mems, before=before) for mems, before in _widening(placement, observed)
    )
    if observed.cpus is not None and observed.cpus != placement.cpus:
        steps.append(WriteCpus(key=placement.key, cpus=placement.cpus, before=observed.cpus))
    wide = next((step.mems for step in steps if isinstance(step, WriteMems)), observed.mems)
    wanted = placement.mems or NodeSet()
    if wide is not None and wide != wanted:
        steps.append(WriteMems(key=placement.key, mems=wanted, before=wide))
    return tuple(steps)


def _widening(placement: Placement, observed: Observed) -> list[tuple[NodeSet, NodeSet]]:
    """A binding that must grow first, to the union of old and new nodes or to no binding, and what it was before."""
    if not observed.mems or (placement.mems and placement.mems <= observed.mems):
        return []
    return [(observed.mems | placement.mems if placement.mems else NodeSet(), observed.mems)]
