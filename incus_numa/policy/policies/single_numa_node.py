"""`single-numa-node`: one node that holds everything, devices included; else a refusal."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.plan import Reason, Rejection
from incus_numa.policy import refusals
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.policy.policies import aligned


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The cheapest single node that has all devices."""
    found = aligned.find(desk, instance, need)
    if isinstance(found, Rejection):
        return found
    return forbids(desk, instance, found.nodes) or found


def forbids(desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
    """More than one node, or a node without the devices."""
    if len(instance.device_nodes) > 1:
        detail = f"policy single-numa-node, but its devices are on nodes {instance.device_nodes}"
        return Rejection(key=instance.key, reason=Reason.NOT_ONE_NODE, detail=detail)
    if len(nodes) > 1:
        detail = refusals.not_one(desk, instance, len(nodes))
        return Rejection(key=instance.key, reason=Reason.NOT_ONE_NODE, detail=detail)
    return None if instance.device_nodes <= nodes else refusals.not_aligned(instance, nodes)
