"""`restricted`: only sets as narrow as an empty machine would allow, with the nodes of all devices; else a refusal."""

from __future__ import annotations

from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.plan import Reason, Rejection
from incus_numa.policy import candidates, refusals
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.policy.policies import aligned


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The cheapest of the narrowest sets with the devices' nodes, if none on an empty machine is narrower."""
    found = aligned.find(desk, instance, need)
    if isinstance(found, Rejection):
        return found
    refused = forbids(desk, instance, found.nodes)
    if refused is not None and found.least_width < len(found.nodes):
        # Refused all the same: nothing says that what was not looked at would do.
        refused = replace(refused, detail=f"{refused.detail}; the search was cut: {found.least_width} nodes may do now")
    return refused or found


def forbids(desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
    """What is wider than on an empty machine, or lacks a device's node."""
    if not instance.device_nodes <= nodes:
        return refusals.not_aligned(instance, nodes)
    need = replace(desk.firm_need(instance), must=instance.device_nodes.mask)
    if len(nodes) <= candidates.minimum_width(desk.empty, need):
        return None
    possible = candidates.best(desk.empty, need, desk.settings)
    if possible is None or len(nodes) <= len(possible.nodes):
        return None
    detail = (
        f"policy restricted, but only {len(nodes)} nodes have room for it now; "
        f"{len(possible.nodes)} would do on an empty machine"
    )
    return Rejection(key=instance.key, reason=Reason.NOT_NARROWEST, detail=detail)
