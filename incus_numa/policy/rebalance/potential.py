"""The potential that every accepted move lowers, and the argument why moves end.

    Phi = sum over nodes of c * l^2  +  sum over instances of load * distance_weight * D(S)

l is the measured load of a node, c its usable CPUs (see measured), S the nodes of an instance, D as in scoring. So
c * l CPUs are busy on a node, and each of them is counted with the load that it meets there: Phi is in busy CPUs times
load. A busy CPU that goes from a node of load 0.9 to one of load 0.4 lowers Phi by about 1. The first sum is convex in
what is busy where, so of all ways to lay the same busy CPUs over the nodes the even one has the least.

The *gain* of a change (an instance that goes elsewhere, two that change places, a group that goes together) is by how
much Phi falls. Its *price* is for every instance `move_price`, and `gib_price` for each GiB that follows it times the
distance over the local one. A change is accepted only if its gain is more than its price by more than LEAST_SURPLUS,
and if every node that gets load stays below the load of the relieved one by half the margin: what is gained by less
is noise.

Why this ends: while the load is constant only accepted changes alter Phi, and each lowers it by more than `move_price`
for every instance that moves (by more than LEAST_SURPLUS where that is 0). Phi is never below 0. So there are fewer
moves than Phi at the start over `move_price`, whatever their order and however they are spread over passes.
Why nothing comes back: Phi depends only on who is on which nodes, and it is less after any number of moves than before
them, so these cannot have led to the same nodes. When no change is accepted, the next pass asks the same question and
gets the same answer: that is a fixed point.

What is assumed: loads do not depend on where an instance is; nobody starts or stops; what a pass decides is carried out
(a move that fails is judged anew, but not before its cool-down ends); and the planner keeps what is legal, as it
promises: it changes nodes of such an instance only to fewer ones, which ends, too. Where load does change, Phi changes
by itself and moves may follow; hold time, cool-down, budget and prices bound how many.
"""

from __future__ import annotations

from collections.abc import Iterable

from incus_numa.model.machine import Machine
from incus_numa.policy.rebalance.measured import EQUAL, Measured
from incus_numa.policy.rooms import bits

LEAST_SURPLUS = 1e-6
"""By how much at least a gain is more than its price."""

Shift = tuple[float, int, int]
"""Busy CPUs, and the nodes that they leave and go to, as masks."""


def spread(machine: Machine, mask: int) -> float:
    """D: the mean distance inside a set of nodes as scoring defines it."""
    nodes = list(bits(mask))
    if len(nodes) < 2:
        return 0.0
    far = machine.remoteness
    pairs = sum(far[a][b] for place, a in enumerate(nodes) for b in nodes[:place])
    return pairs / (len(nodes) * (len(nodes) - 1))


def fall(measured: Measured, shifts: Iterable[Shift]) -> tuple[float, float]:
    """By how much the sum of c * l^2 falls when what is busy goes elsewhere, and the highest load of a node that gets
    some of it.
    """
    cpus, load = measured.cpus, measured.load
    added: dict[int, float] = {}
    for busy, before, after in shifts:
        for mask, part in ((before, -busy), (after, busy)):
            share = part / measured.count(mask)
            for node in bits(mask):
                if node in cpus:
                    added[node] = added.get(node, 0.0) + share
    gain = sum(-cpus[node] * more * (2 * load[node] + more) for node, more in added.items())
    return gain, max((load[node] + more for node, more in added.items() if more > EQUAL), default=0.0)
