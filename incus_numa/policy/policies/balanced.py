"""`balanced`: the narrowest set of nodes that can hold the instance, and of those the cheapest (see scoring).

Devices and groups are part of the cost: they are traded against load. Nothing is forbidden that fits.
"""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.plan import Rejection
from incus_numa.policy import candidates, refusals
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The cheapest of the narrowest sets; a refusal only when memory or huge pages fit nowhere."""
    return candidates.best(desk.ledger, need, desk.settings) or refusals.too_big(desk, instance)


def forbids(desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
    """Never."""
    return None
