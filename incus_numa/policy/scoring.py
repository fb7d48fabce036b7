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

from collections.abc import Iterable, Sequence

from incus_numa.model.machine import Machine

LOCAL_DISTANCE = 10
"""The distance of a node to itself, by the ACPI SLIT definition."""


def distance_matrix(machine: Machine, nodes: Sequence[int]) -> list[list[float]]:
    """Both directions' distances added, per pair of the given nodes, in units where one local distance is 1.

    The diagonal is 0, and an entry is d(a,b)/10 - 1 + d(b,a)/10 - 1.
    """
    known = [value for a in nodes for b, value in machine.node_by_id[a].distances.items() if b != a]
    farthest = max(known, default=LOCAL_DISTANCE)

    def one_way(a: int, b: int) -> float:
        value = machine.distance(a, b)
        return (farthest if value is None else value) / LOCAL_DISTANCE - 1

    return [[0.0 if a == b else one_way(a, b) + one_way(b, a) for b in nodes] for a in nodes]


def mean_distance(machine: Machine, nodes: Iterable[int]) -> float | None:
    """Mean distance over ordered pairs of different nodes in kernel units, None for one node or where unknown."""
    members = tuple(nodes)
    found = [machine.distance(a, b) for a in members for b in members if a != b]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
