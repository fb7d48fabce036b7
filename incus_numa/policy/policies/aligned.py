"""Sets of nodes that have the nodes of all devices of an instance: what the two strict policies choose from."""

from __future__ import annotations

from dataclasses import replace

from incus_numa.model.instance import Instance
from incus_numa.model.plan import Rejection
from incus_numa.policy import candidates, refusals
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The cheapest of the narrowest sets with the devices' nodes."""
    if not instance.device_nodes <= desk.ledger.nodes:
        return refusals.not_aligned(instance, desk.ledger.nodes)
    found = candidates.best(desk.ledger, replace(need, must=instance.device_nodes.mask), desk.settings)
    return found or refusals.too_big(desk, instance)
