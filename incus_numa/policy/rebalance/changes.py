"""The changes that pay and that bring a node's load down, best first. See potential for gain and price."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from math import sqrt
from typing import NamedTuple

from incus_numa.policy.rebalance import potential
from incus_numa.policy.rebalance.board import Board, Change
from incus_numa.policy.rebalance.measured import EQUAL
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rebalance.potential import LEAST_SURPLUS
from incus_numa.policy.rooms import bits

TRIED = 200
"""So many changes that pay are asked for room in one search at most."""

LEAST_GRAIN = 0.001
"""A smaller difference between what two changes bring is none, whatever a move costs."""

LOOKED, LOOKED_AT_ONE = 500, 100
"""So many exchanges are looked at in one search at most, and with one other node: those that could gain most. A node
with 250 instances has tens of thousands with each other node, and whoever decides holds up everything else."""

Goes = tuple[tuple[Mover, int], ...]


class Target(NamedTuple):
    """Nodes to go to, as a mask, and by how much the potential would fall: at most `most` there and at later ones."""

    nodes: int
    gain: float
    most: float


class Proposal(NamedTuple):
    """Movers and where they would go, what that gains, and the most that it could gain more than it costs, each."""

    bound: float
    gain: float
    goes: Goes


def best(board: Board, node: int) -> Change | None:
    """The best change that brings the node's load down, pays, is allowed and within the budget; None if there is none.

    Instances that change places are only looked at where nobody can leave.
    """
    return _best_of(board, leaving(board, node)) or _best_exchange(board, node)


def _best_of(board: Board, proposals: Iterable[Proposal]) -> Change | None:
    """The change that gains most for each move, of proposals in order of their bounds.

    What memory costs and whether there is room is only asked where that can matter.
    """
    found: Change | None = None
    tried = 0
    for proposal in proposals:
        if tried == TRIED or (found is not None and proposal.bound < _step(board, found) * _grain(board) - EQUAL):
            break
        change = priced(board, proposal.goes, proposal.gain) if board.admission.may_fit(proposal.goes) else None
        if change is None or not board.fits_budget(change):
            continue
        if found is None or _rank(board, change) < _rank(board, found):
            tried += 1
            found = change if board.admission.refuse(change.goes) is None else found
    return found


def _by_bound(proposal: Proposal) -> float:
    return -proposal.bound


def _rank(board: Board, change: Change) -> tuple[object, ...]:
    """The most for each move first, differences below a grain aside; then the least committed of the nodes that get
    load, as what is idle there now may wake up; then the most after all, and the lowest keys and nodes.
    """
    committed = board.desk.ledger.node_load
    reached = [node for mover, after in change.goes for node in bits(after & ~mover.nodes)]
    return (
        -_step(board, change),
        round(max(committed.get(node, 0.0) for node in reached), 9),
        -round(change.surplus, 9),
        [(mover.key, nodes) for mover, nodes in change.goes],
    )


def _step(board: Board, change: Change) -> int:
    """The surplus for each move in whole grains."""
    return int(change.surplus / _grain(board) + EQUAL)


def _grain(board: Board) -> float:
    """What is a difference between two changes: as much as any move costs."""
    return max(board.limits.move_price, LEAST_GRAIN)


def leaving(board: Board, node: int) -> Iterator[Proposal]:
    """An instance, or a whole group, leaves the node: those that may gain most for each move first."""
    parties = [*((mover,) for mover in board.at[node]), *board.groups(node)]
    return merge(*(_leaving_together(board, party, node) for party in parties), key=_by_bound)


def _leaving_together(board: Board, party: Sequence[Mover], node: int) -> Iterator[Proposal]:
    price, count = board.limits.move_price, len(party)
    for nodes, gain, most in targets(board, party, node, price * count):
        yield Proposal(most / count - price, gain, tuple([(mover, nodes) for mover in party]))


def priced(board: Board, goes: Goes, gain: float) -> Change | None:
    """The change if it pays."""
    prices = [board.price(mover, nodes) for mover, nodes in goes]
    price = sum(one.value for one in prices)
    if gain - price <= LEAST_SURPLUS:
        return None
    return Change(goes=goes, gain=gain, price=price, size_bytes=sum(one.size_bytes for one in prices))


def targets(board: Board, party: Sequence[Mover], node: int, least: float) -> Iterator[Target]:
    """Where instances that are together may go instead of to this node, if that gains more than `least`.

    They are one on any number of nodes, or several on just this one. No node gets nearly as loaded as this one is.
    """
    if party[0].is_wide:
        yield from _targets_of_wide(board, party[0], node, least)
        return
    cpus, loads = board.measured.cpus, board.measured.load
    busy, load, part = sum(mover.load_cpus for mover in party), loads[node], 1 / cpus[node]
    added = busy * busy * (part + 1 / max(cpus.values()))
    ceiling = board.ceiling(node)
    for target in board.measured.rising:
        most = 2 * busy * (load - loads[target])
        if most - added <= least:
            return
        more = 1 / cpus[target]
        gain = most - busy * busy * (part + more)
        if gain > least and loads[target] + busy * more <= ceiling:
            yield Target(1 << target, gain, most - added)


def _targets_of_wide(board: Board, mover: Mover, node: int, least: float) -> list[Target]:
    """It leaves one node of its set for another one; what gains most comes first."""
    measured, mask, load = board.measured, mover.nodes, board.measured.load[node]
    found = []
    for target in measured.cpus:
        if not mask >> target & 1 and measured.load[target] < load - EQUAL:
            after = mask ^ 1 << node | 1 << target
            gain, height = potential.fall(measured, [(mover.load_cpus, mask, after)])
            gain += board.nearer(mover, after)
            if gain > least and height <= board.ceiling(node):
                found.append(Target(after, gain, gain))
    return sorted(found, key=lambda one: (-one.gain, one.nodes))


def _best_exchange(board: Board, node: int) -> Change | None:
    """The best change of places with an instance of another node, the one that could gain most being asked first."""
    measured, price = board.measured, board.limits.move_price
    found: Change | None = None
    left = LOOKED
    peaks = []
    for target, load in measured.load.items():
        apart = measured.load[node] - load
        if apart > EQUAL:
            peaks.append((-apart * apart / _parts(board, node, target), target))
    for peak, target in sorted(peaks):
        if left <= 0 or -peak <= 2 * price or (found is not None and -peak / 2 - price < found.surplus - EQUAL):
            break
        looked_at = list(islice(exchanges(board, node, target), min(left, LOOKED_AT_ONE)))
        left -= len(looked_at)
        change = _best_of(board, looked_at)
        if change is not None and (found is None or _rank(board, change) < _rank(board, found)):
            found = change
    return found


def exchanges(board: Board, node: int, target: int) -> Iterator[Proposal]:
    """Two instances that are on one node each change places, the busier one being on the first and more loaded node.

    Those that may gain most come first.
    """
    measured, price = board.measured, board.limits.move_price
    apart, parts = measured.load[node] - measured.load[target], _parts(board, node, target)
    # The gain of a difference d is 2 * d * apart - d^2 * parts: this is where it is more than the two prices.
    width = sqrt(max(0.0, apart * apart - parts * 2 * price))
    room = (board.ceiling(node) - measured.load[target]) * measured.cpus[target]
    low, high = (apart - width) / parts, min((apart + width) / parts, room)
    theirs = sorted((other for other in board.at[target] if not other.is_wide), key=_by_load)
    loads = [other.load_cpus for other in theirs]

    def with_each(mover: Mover, others: Iterable[Mover]) -> Iterator[Proposal]:
        for other in others:
            more = mover.load_cpus - other.load_cpus
            gain = 2 * more * apart - more * more * parts
            yield Proposal(gain / 2 - price, gain, ((mover, 1 << target), (other, 1 << node)))

    found = []
    for mover in board.at[node]:
        if mover.is_wide:
            continue
        first, last = bisect_right(loads, mover.load_cpus - high), bisect_left(loads, mover.load_cpus - low)
        # The gain is highest at the middle and falls to both sides.
        middle = max(first, min(last, bisect_left(loads, mover.load_cpus - apart / parts)))
        found += [with_each(mover, reversed(theirs[first:middle])), with_each(mover, theirs[middle:last])]
    return merge(*found, key=_by_bound)


def _parts(board: Board, node: int, target: int) -> float:
    """By how much a busy CPU more on the one and less on the other brings their loads together."""
    return 1 / board.measured.cpus[node] + 1 / board.measured.cpus[target]


def _by_load(mover: Mover) -> tuple[float, object]:
    return mover.load_cpus, mover.key
