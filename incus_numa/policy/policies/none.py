"""`none`: no topology. The instance gets all usable CPUs of the machine."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.plan import Rejection
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need


def find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """All nodes with usable CPUs, whoever has these for itself. Nothing is compared, so the cost is 0."""
    nodes = desk.empty.cpu_nodes
    return Candidate(nodes=nodes, cost=0.0, bound=0.0, least_width=len(nodes))


def forbids(desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
    """Never."""
    return None
