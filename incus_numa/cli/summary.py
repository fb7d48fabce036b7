"""What a decision by measured load comes to, in a sentence and a line of a table. Used by `plan` and `rebalance`."""

from __future__ import annotations

from collections import Counter

from incus_numa.facts.words import count
from incus_numa.model.rebalance import Decision


def summarize(decision: Decision, more: str) -> str:
    """How uneven the load is, and what moves or why nothing does, with where to find `more` about those that stay.

    Empty where nothing was decided.
    """
    is_uneven = decision.moves or decision.history.hot_since_s
    if decision.imbalance is None or not is_uneven:
        # Nothing is known, or the load is even enough: there is nothing to add.
        return decision.why
    return (
        f"{_highest(decision, decision.imbalance)}: {_moving(decision) if decision.moves else _staying(decision, more)}"
    )


def tell_evenness(decision: Decision) -> str | None:
    """The highest load over the mean, before and after the moves; None without any."""
    if not decision.moves or decision.imbalance is None or decision.expected is None:
        return None
    return f"highest over mean load: {decision.imbalance:.2f} before, {decision.expected:.2f} after"


def _highest(decision: Decision, imbalance: float) -> str:
    node, load = min(decision.node_load.items(), key=lambda one: (-round(one[1], 9), one[0]))
    return f"node {node} is the most loaded with {load:.2f}, {imbalance:.2f} times the mean of {load / imbalance:.2f}"


def _moving(decision: Decision) -> str:
    moves = decision.moves
    gain, price = sum(one.gain for one in moves), sum(one.price for one in moves)
    text = f"{count(len(moves), 'move')} gain{'s' if len(moves) == 1 else ''} {gain:.3f} for a price of {price:.3f}"
    after = decision.expected
    return text if after is None else f"{text}; after that the highest is {after:.2f} times the mean"


def _staying(decision: Decision, more: str) -> str:
    """Why nothing moves: the commonest reason, of those as common the one that comes first by name."""
    if not decision.held:
        return "nothing moves: no instance that could is on a node that is too loaded"
    holds = Counter(one.hold.value for one in decision.held)
    hold, number = min(holds.items(), key=lambda one: (-one[1], one[0]))
    stay = f"{count(len(decision.held), 'instance')} {'stays' if len(decision.held) == 1 else 'stay'}"
    most = f"by {hold}" if len(holds) == 1 else f"most by {hold} ({number})"
    return f"nothing moves: {stay}, {most}; see {more}"
