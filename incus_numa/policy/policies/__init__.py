"""The policies of `user.numa.policy`, one module each, in the kubelet's terms. Used by the planner,
`keeping` and `exclusive`.

A rule finds nodes for an instance that is not counted, or refuses it, and says whether nodes that an instance has are
still allowed. Source: kubernetes.io, "Control Topology Management Policies on a node".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Rejection
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.policy.policies import balanced, best_effort, none, restricted, single_numa_node


class Rule(Protocol):
    """What each of the modules has."""

    def find(self, desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
        """The best set of nodes that the policy allows for the need."""

    def forbids(self, desk: Desk, instance: Instance, nodes: NodeSet) -> Rejection | None:
        """Why the policy does not allow nodes that could hold the instance, None when it does."""


RULES: Mapping[Policy, Rule] = {
    Policy.NONE: none,
    Policy.BALANCED: balanced,
    Policy.BEST_EFFORT: best_effort,
    Policy.RESTRICTED: restricted,
    Policy.SINGLE_NUMA_NODE: single_numa_node,
}
