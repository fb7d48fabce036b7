"""From a plan to the steps that bring each instance there. A value that is already right yields no step.

Every prefix of an instance's steps is legal: the record first (so that the server's own rewriting goes the right way),
then CPUs, then memory; a binding that is to change is first widened to the union of old and new nodes.
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
    wanted = placement.mems or NodeSet()
    union = (observed.mems or NodeSet()) | wanted
    if observed.mems and wanted and union not in (observed.mems, wanted):
        steps.append(WriteMems(key=placement.key, mems=union, before=observed.mems))
    if observed.cpus is not None and observed.cpus != placement.cpus:
        steps.append(WriteCpus(key=placement.key, cpus=placement.cpus, before=observed.cpus))
    if observed.mems is not None and observed.mems != wanted:
        steps.append(WriteMems(key=placement.key, mems=wanted, before=observed.mems))
    return tuple(steps)
