"""`best-effort`: aligned with the instance's devices where that costs no more nodes, else like `balanced`.

The kubelet calls a set preferred when it is as narrow as any and holds what every provider gave; it admits the
instance either way.
"""

from __future__ import annotations

from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.plan import Rejection
from incus_numa.policy import candidates
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.policy.policies import balanced


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The preferred set with the devices' nodes if there is one, else what `balanced` finds."""
    found = balanced.find(desk, instance, need)
    devices = instance.device_nodes & desk.ledger.nodes
    if isinstance(found, Rejection) or devices <= found.nodes:
        return found
    aligned = candidates.best(desk.ledger, replace(need, must=devices.mask), desk.settings)
    return aligned if aligned is not None and len(aligned.nodes) <= len(found.nodes) else found


def forbids(desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
    """Never."""
    return None
