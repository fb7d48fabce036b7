"""The one cost that node sets are compared by. Lower is better.

cost(S) = load_weight * P(S) + distance_weight * D(S) + T(S)

P(S)  what the highest load L(S) of the nodes in S is counted as. L(S) is the load after the instance is added: the
      highest load of the nodes in S, plus weight / usable CPUs of S. Up to F, P is L; what is above F counts tenfold.
      F is the larger of 1 (every CPU committed once) and the machine's mean load after the instance is added: a node
      that is fuller than that is one that instances wait on.
D(S)  the mean distance over ordered pairs of different nodes in S, divided by the local distance 10, minus 1; 0 for
      one node. A pair of unknown distance counts as remote as the machine's farthest known pair, and as local when
      nothing is known. Asymmetric distances are taken as given, both directions counted.
T(S)  the mean over the nodes in S of what ties the instance to or drives it from each node (see ties): its devices,
      its bound memory, the members of its group, and those that it avoids.

With the default weights (1 and 0.1) nodes at distance 32 instead of 12 are accepted when that lowers the highest load
by more than 0.2, or by more than 0.02 where the nodes are fuller than F.
"""

from __future__ import annotations

from collections.abc import Iterable

from incus_numa.model.machine import Machine

CROWDED = 10.0
"""How many times load above F counts."""


def price(load: float, full: float) -> float:
    """P: what a highest load counts as, `full` being F. Never falls as the load grows."""
    return load if load <= full else load + (CROWDED - 1) * (load - full)


def mean_distance(machine: Machine, nodes: Iterable[int]) -> float | None:
    """Mean distance over ordered pairs of different nodes in kernel units, None for one node or where unknown."""
    members = tuple(nodes)
    found = [machine.distance(a, b) for a in members for b in members if a != b]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
