"""Which changes are made in one pass: from the most loaded node down, until nothing pays or the budget is used up."""

from __future__ import annotations

from collections.abc import Sequence

from incus_numa.cpuset import NodeSet
from incus_numa.model.rebalance import Move
from incus_numa.policy.rebalance import changes
from incus_numa.policy.rebalance.board import Board, Change
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rebalance.staying import told_way


def choose(board: Board) -> list[Move]:
    """The moves in the order in which they were chosen; the board counts them as made.

    A node from which nothing pays does not end it: the next one may have something that does.
    """
    moves: list[Move] = []
    while board.left_moves:
        change = next((found for node in board.hot() if (found := changes.best(board, node)) is not None), None)
        if change is None:
            break
        moves.extend(_moves(board, change))
        board.make(change)
    return moves


def _moves(board: Board, change: Change) -> list[Move]:
    """A move for each instance. What they gain together is shared so that each gains as much more than it costs."""
    found = []
    for mover, after in change.goes:
        price = board.price(mover, after)
        partner = _partner(change, mover, after)
        found.append(
            Move(
                key=mover.key,
                before=NodeSet.from_mask(mover.nodes),
                after=NodeSet.from_mask(after),
                gain=price.value + change.surplus,
                price=price.value,
                load_cpus=mover.load_cpus,
                size_bytes=price.size_bytes,
                distance=price.distance,
                with_key=None if partner is None else partner.key,
                reason=_reason(board, change, mover, after),
            )
        )
    return found


def _partner(change: Change, mover: Mover, after: int) -> Mover | None:
    """The instance that this one changes places with."""
    return next((other for other, goes in change.goes if other.nodes == after and goes == mover.nodes), None)


def _reason(board: Board, change: Change, mover: Mover, after: int) -> str:
    """A sentence with the numbers as they are before the change."""
    partner, price = _partner(change, mover, after), board.price(mover, after)
    told = f"{_loads(board, mover.nodes & ~after)}, of {_loads(board, after & ~mover.nodes)}"
    text = f"load of {told}; it keeps {mover.load_cpus:.2f} CPUs busy"
    if partner is not None:
        text += f" and changes places with {partner.key}, which keeps {partner.load_cpus:.2f}"
    elif len(change.goes) > 1:
        text += f" and moves with its group {mover.instance.group}"
    together = " together" if len(change.goes) > 1 else ""
    return f"{text}: gains {change.gain:.3f}{together}, costs {change.price:.3f}{told_way(price)}"


def _loads(board: Board, mask: int) -> str:
    """One node or more with their load before any change is made."""
    nodes: Sequence[int] = list(NodeSet.from_mask(mask))
    return " and ".join(f"node {node} is {board.measured.load.get(node, 0.0):.2f}" for node in nodes)
