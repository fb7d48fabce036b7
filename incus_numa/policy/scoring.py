"""The one cost that node sets are compared by.

cost(S) = load_weight * L(S) + distance_weight * D(S)

L(S)  the highest load of the nodes in S after the instance is added: max(load of n in S) + weight / usable CPUs of S.
D(S)  the mean distance over ordered pairs of different nodes in S, divided by the local distance 10, minus 1; 0 for
      one node. A pair of unknown distance counts as remote as the machine's farthest known pair, and as local when
      nothing is known. Asymmetric distances are taken as given, both directions counted.

With the default weights (1 and 0.1) nodes at distance 32 instead of 12 are accepted when that lowers the highest
load by more than 0.2, a fifth of a node's CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable

from incus_numa.model.machine import Machine


def mean_distance(machine: Machine, nodes: Iterable[int]) -> float | None:
    """Mean distance over ordered pairs of different nodes in kernel units, None for one node or where unknown."""
    members = tuple(nodes)
    found = [machine.distance(a, b) for a in members for b in members if a != b]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
