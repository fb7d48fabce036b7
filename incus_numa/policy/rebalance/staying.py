"""Why an instance that may be moved stays, with numbers: what was considered for it, and what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from incus_numa.cpuset import NodeSet
from incus_numa.model.rebalance import Held, Hold
from incus_numa.policy.rebalance import changes, potential
from incus_numa.policy.rebalance.board import Board
from incus_numa.policy.rebalance.changes import Target
from incus_numa.policy.rebalance.measured import EQUAL
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rebalance.potential import LEAST_SURPLUS
from incus_numa.policy.rebalance.price import Price
from incus_numa.quantities import render_bytes

_LOOKED_AT = 4
"""So many of the least loaded nodes are looked at to say why an instance stays."""

_DIGITS = 9
"""No more digits than this are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Nodes that an instance could go to, what that gains and costs, and why it does not (`hold` None: it would)."""

    nodes: NodeSet
    gain: float
    price: float
    hold: Hold | None = None
    detail: str = ""


def stays(board: Board, mover: Mover, node: int) -> Held:
    """Why a mover stays on a node that is too loaded, now that no more changes are made."""
    first: Option | None = None
    for target, price in _gaining(board, mover, node, _LOOKED_AT):
        option = _option(board, mover, target, price)
        if option.hold is None:
            # Whatever pays and is allowed was done, but for what the budget leaves.
            return Held(key=mover.key, hold=Hold.BUDGET, detail=_beyond_budget(board, target, price))
        first = first or option
    if first is None or first.hold is None:
        return Held(key=mover.key, hold=Hold.NO_GAIN, detail=_gainless(board, mover, node))
    return Held(key=mover.key, hold=first.hold, detail=f"to {_told(first.nodes)}: {first.detail}")


def consider(board: Board, mover: Mover, node: int) -> Iterator[Option]:
    """All targets that gain something for an instance that would leave the node, the best first."""
    for target, price in _gaining(board, mover, node, None):
        yield _option(board, mover, target, price)


def consider_gainless(board: Board, mover: Mover, node: int) -> list[Option]:
    """All other targets for an instance that would leave the node, the least bad first: they gain nothing, or get
    nearly as loaded as the node is.
    """
    gaining = {target.nodes for target in changes.targets(board, (mover,), node, 0.0)}
    found = []
    for target in board.measured.cpus:
        after = mover.nodes ^ 1 << node | 1 << target
        if not mover.nodes >> target & 1 and after not in gaining:
            found.append(_gainless_option(board, mover, node, after))
    return sorted(found, key=lambda one: (-round(one.gain, 9), one.nodes.mask))


def _gainless_option(board: Board, mover: Mover, node: int, after: int) -> Option:
    gain, height = potential.fall(board.measured, [(mover.load_cpus, mover.nodes, after)])
    gain += board.nearer(mover, after)
    load = board.measured.load[node]
    if mover.load_cpus <= EQUAL:
        detail = "it keeps no CPU busy"
    elif gain <= EQUAL:
        detail = f"load there would rise to {height:.2f}, and node {node} is {load:.2f} now"
    else:
        there, most = apart(height, board.ceiling(node))
        detail = f"load there would rise to {there}, above {most}: too near to node {node}, which is {load:.2f} now"
    price = board.price(mover, after).value
    return Option(nodes=NodeSet.from_mask(after), gain=gain, price=price, hold=Hold.NO_GAIN, detail=detail)


def _gaining(board: Board, mover: Mover, node: int, most: int | None) -> list[tuple[Target, Price]]:
    """Targets that gain something with their prices, best first; no more than `most`, which are the least loaded."""
    found = [
        (target, board.price(mover, target.nodes))
        for target in islice(changes.targets(board, (mover,), node, 0.0), most)
    ]
    return sorted(found, key=lambda one: (-round(one[0].gain - one[1].value, 9), one[0].nodes))


def _option(board: Board, mover: Mover, target: Target, price: Price) -> Option:
    hold: Hold | None = None
    detail = f"gains {target.gain:.3f}, costs {price.value:.3f}{told_way(price)}"
    if target.gain - price.value <= LEAST_SURPLUS:
        hold = Hold.PRICE
    else:
        refusal = board.admission.refuse(((mover, target.nodes),))
        if refusal is not None:
            hold, detail = refusal[0], f"{detail}, but {refusal[1]}"
    nodes = NodeSet.from_mask(target.nodes)
    return Option(nodes=nodes, gain=target.gain, price=price.value, hold=hold, detail=detail)


def _gainless(board: Board, mover: Mover, node: int) -> str:
    load, least = board.measured.load[node], board.measured.rising[0]
    return (
        f"no other node would be less loaded with the {mover.load_cpus:.2f} CPUs that it keeps busy than node {node} "
        f"is now: {load:.2f}; the least loaded is node {least} with {board.measured.load[least]:.2f}"
    )


def _beyond_budget(board: Board, target: Target, price: Price) -> str:
    limits = board.limits
    text = f"to {_told(NodeSet.from_mask(target.nodes))}: would gain {target.gain:.3f} for {price.value:.3f}, but "
    if price.size_bytes > board.left_bytes and board.left_moves:
        size, left = render_bytes(price.size_bytes), render_bytes(max(0, board.left_bytes))
        return f"{text}{size} would follow, and of rebalance.max_bytes {left} are left"
    return f"{text}rebalance.max_moves is {limits.max_moves}"


def _told(nodes: NodeSet) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {nodes}"


def apart(one: float, other: float) -> tuple[str, str]:
    """Two amounts with as many digits, from two on, as tell them apart."""
    pairs = [(f"{one:.{digits}f}", f"{other:.{digits}f}") for digits in range(2, _DIGITS + 1)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def told_way(price: Price) -> str:
    """The memory that follows and how far, in brackets; nothing without any."""
    if not price.size_bytes:
        return ""
    over = "" if price.distance is None else f" over distance {price.distance:.0f}"
    return f" ({render_bytes(price.size_bytes)}{over})"
