"""What a pass by measured load decides. The daemon and the commands call `decide`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.plan import Plan
from incus_numa.model.rebalance import Decision, Held, History, Hold, Move
from incus_numa.model.snapshot import Decided, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Desk, open_desk
from incus_numa.policy.rebalance import choosing, movers, staying
from incus_numa.policy.rebalance.board import Board
from incus_numa.policy.rebalance.measured import Measured, is_even, measure, target_load, too_loaded
from incus_numa.settings import PlacementSettings, RebalanceSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """What is asked in one pass; `instances` are in order of their keys, `ripe` are the nodes to relieve."""

    snapshot: Snapshot
    history: History
    now_s: float
    placement: PlacementSettings
    limits: RebalanceSettings
    only: frozenset[InstanceKey] | None
    instances: list[Instance]
    ripe: frozenset[int]

    @property
    def asked(self) -> list[Instance]:
        """Managed instances that may be touched."""
        only = self.only
        return [one for one in self.instances if one.managed and (only is None or one.key in only)]


def decide(
    snapshot: Snapshot,
    history: History,
    now_s: float,
    placement: PlacementSettings,
    limits: RebalanceSettings,
    *,
    only: frozenset[InstanceKey] | None = None,
    forced: bool = False,
) -> Decision:
    """Who moves now, where to and why, and what to remember until the next pass.

    A node is relieved when its load is above the mean by more than the margin and has been for the hold time (`forced`
    does not wait for that), until it is above by half the margin at most, nothing pays or the budget is used up. Only
    instances in `only` move, if given. Finding out who is `held`, and why, costs as much as the rest. Pure: the order
    of instances never matters.
    """
    instances = sorted(snapshot.instances, key=lambda one: one.key)
    desk = open_desk(snapshot, placement, instances)
    measured = measure(desk)
    found = Decision(
        history=_remembered(history, instances, now_s, limits),
        imbalance=measured.imbalance,
        expected=measured.imbalance,
        node_load=dict(measured.load),
    )
    if measured.imbalance is None:
        return replace(found, why="no node is known to be busy")
    told = _told(measured)
    if is_even(measured, limits):
        return replace(found, why=f"{told}: even enough")
    since_s = {node: min(now_s, history.hot_since_s.get(node, now_s)) for node in too_loaded(measured, limits)}
    uneven = replace(found, history=replace(found.history, hot_since_s=since_s))
    ripe = frozenset(node for node, at_s in since_s.items() if forced or now_s - at_s >= limits.hold_s)
    if not ripe:
        longest_s = now_s - min(since_s.values())
        why = f"{told}: uneven for {longest_s:.0f} s, waiting until it is for {limits.hold_s:.0f} s"
        return replace(uneven, why=why)
    question = _Question(
        snapshot=snapshot,
        history=history,
        now_s=now_s,
        placement=placement,
        limits=limits,
        only=only,
        instances=instances,
        ripe=ripe,
    )
    return _act(question, desk, uneven, told)


def _remembered(history: History, instances: Iterable[Instance], now_s: float, limits: RebalanceSettings) -> History:
    """Moves that still matter."""
    moved = history.moved_at_s
    running = {one.key for one in instances}
    return History(
        moved_at_s={key: at for key, at in moved.items() if key in running and now_s - at < limits.cooldown_s}
    )


def _act(question: _Question, desk: Desk, uneven: Decision, told: str) -> Decision:
    """Choose changes and find CPUs for them. What the planner would not keep is not moved, and all is chosen anew."""
    banned: set[InstanceKey] = set()
    while True:
        board, held = _open_board(question, desk, banned)
        moves = choosing.choose(board)
        plan, refused = _place(question, moves)
        if not refused:
            break
        banned |= refused
        desk = open_desk(question.snapshot, question.placement, question.instances)
    if not moves:
        why = f"{told}: nothing pays"
        return replace(uneven, held=_held(question, board, held), why=why)
    now_s, past = question.now_s, uneven.history
    moved_at_s = {**past.moved_at_s, **{move.key: now_s for move in moves}}
    gain, price = sum(move.gain for move in moves), sum(move.price for move in moves)
    return replace(
        uneven,
        plan=plan,
        moves=tuple(moves),
        held=_held(question, board, held),
        # What is left of the unevenness must hold anew, under the loads that the moves lead to.
        history=History(
            hot_since_s=dict.fromkeys(too_loaded(board.measured, question.limits), now_s), moved_at_s=moved_at_s
        ),
        expected=board.measured.imbalance,
        why=f"{told}: {_count(moves)} {gain:.3f} for {price:.3f}",
    )


def _open_board(question: _Question, desk: Desk, banned: set[InstanceKey]) -> tuple[Board, list[Held]]:
    """A board with those that may move, and why others may not. The desk is used up."""
    able, held = movers.sort_out(desk, question.asked, question.history, question.now_s, question.limits)
    for mover in able:
        if mover.key in banned:
            held.append(Held(key=mover.key, hold=Hold.DOES_NOT_FIT, detail="the planner would give it other nodes"))
    able = [mover for mover in able if mover.key not in banned]
    measured = measure(desk)
    return Board(desk, measured, able, question.limits, target_load(measured, question.limits), question.ripe), held


def _place(question: _Question, moves: Sequence[Move]) -> tuple[Plan, set[InstanceKey]]:
    """The planner's placements on the new nodes, and who would not get these nodes."""
    if not moves:
        return Plan(), set()
    snapshot = question.snapshot
    observed = dict(snapshot.observed)
    for move in moves:
        # The CPUs that it has are on nodes that it leaves, and must not count where others look for theirs.
        observed[move.key] = replace(observed[move.key], cpus=None, decided=Decided(nodes=move.after))
    by_key = {move.key: move for move in moves}
    plan = planner.plan(replace(snapshot, observed=observed), question.placement, only=frozenset(by_key))
    right = {one.key for one in plan.placements if one.nodes == by_key[one.key].after}
    placements = tuple(
        replace(one, moved=True, leaves=by_key[one.key].before - one.nodes, reason=by_key[one.key].reason)
        for one in plan.placements
    )
    return replace(plan, placements=placements), set(by_key) - right


def _held(question: _Question, board: Board, bound: Iterable[Held]) -> tuple[Held, ...]:
    """Why those stay that are on nodes that are still too loaded, in order of their keys."""
    found: dict[InstanceKey, Held] = {}
    hot = board.hot()
    for node in hot:
        for mover in board.at[node]:
            if mover.key not in found:
                found[mover.key] = staying.stays(board, mover, node)
    nodes = NodeSet(hot).mask
    entries = board.desk.ledger.entries
    for one in bound:
        if entries[one.key].nodes & nodes:
            found[one.key] = one
    return tuple(found[key] for key in sorted(found))


def _told(measured: Measured) -> str:
    """The highest load and the mean, as the beginning of a sentence."""
    node = measured.above(-1.0)[0]
    load, mean = measured.load[node], measured.mean
    return f"node {node} is the most loaded with {load:.2f}, {load / mean:.2f} times the mean of {mean:.2f}"


def _count(moves: Sequence[Move]) -> str:
    return "1 move gains" if len(moves) == 1 else f"{len(moves)} moves gain"
