"""Why one instance is not moved by its measured load, and what would have to change. `incus-numa explain` calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.rebalance import Held, History, Hold
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy.desk import Desk, open_desk
from incus_numa.policy.rebalance import movers, staying
from incus_numa.policy.rebalance.board import Board
from incus_numa.policy.rebalance.measured import EQUAL, Measured, is_even, measure, target_load
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rebalance.staying import Option, apart
from incus_numa.settings import PlacementSettings, RebalanceSettings

_CONSIDERED = 4
"""So many targets are told."""

_STEPS = 40
"""Amounts that are tried before the least one is found by halving."""

_HALVINGS = 12

Would = Callable[[float], Option | None]
"""Where the instance would go with an amount of load, None if it would stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What measured load says about where one instance is.

    `load_cpus` are the CPUs that it keeps busy, None when unknown. `node_load` is the measured load of its nodes,
    `mean` that of all nodes, `target` what a node is brought down to when the load is not even. `options` are the
    targets that bring most, best first, whether or not they pay or gain anything. `held` says what keeps it where it is
    whatever would be gained. `would` is a sentence that says what would have to change for a move of it to pay, or how
    long its cool-down lasts; None when it pays now, and when nothing would do.
    """

    key: InstanceKey
    nodes: NodeSet
    load_cpus: float | None
    node_load: Mapping[int, float] = field(default_factory=dict)
    mean: float = 0.0
    target: float = 0.0
    imbalance: float | None = None
    is_even: bool = True
    options: tuple[Option, ...] = ()
    held: Held | None = None
    would: str | None = None


def explain(
    snapshot: Snapshot,
    history: History,
    now_s: float,
    placement: PlacementSettings,
    limits: RebalanceSettings,
    key: InstanceKey,
) -> Verdict:
    """The verdict about a running instance. Raises KeyError if the snapshot does not have it.

    It looks at this instance alone: a pass may choose another one of the same node.
    """
    instances = sorted(snapshot.instances, key=lambda one: one.key)
    instance = {one.key: one for one in instances}[key]
    desk = open_desk(snapshot, placement, instances)
    measured = measure(desk)
    nodes = NodeSet.from_mask(desk.ledger.entries[key].nodes)
    found = Verdict(
        key=key,
        nodes=nodes,
        load_cpus=snapshot.load.cpus_by_instance.get(key),
        node_load={node: measured.load[node] for node in nodes if node in measured.load},
        mean=measured.mean,
        target=target_load(measured, limits),
        imbalance=measured.imbalance,
        is_even=is_even(measured, limits),
    )
    fixed = movers.bound_to_stay(desk, instance) if instance.managed else None
    if not instance.managed or fixed is not None or not found.node_load:
        return replace(found, held=fixed)
    held = movers.bound_for_now(desk, instance, history, now_s, limits)
    if found.load_cpus is None:
        return replace(found, held=held)
    judged = _judge(found, desk, measured, instance, held, limits)
    if held is not None and held.hold is Hold.COOL_DOWN:
        left_s = limits.cooldown_s - (now_s - history.moved_at_s[key])
        return replace(judged, would=f"it may move again in {left_s:.0f} s, when its cool-down ends")
    return judged


def _judge(
    found: Verdict,
    desk: Desk,
    measured: Measured,
    instance: Instance,
    held: Held | None,
    limits: RebalanceSettings,
) -> Verdict:
    """What was considered, and what would make a move pay, for one that may be moved."""
    mover = movers.mover_of(desk, instance)
    board = Board(desk, measured, [mover], limits, target_load(measured, limits))
    node = max(found.node_load, key=lambda one: (round(found.node_load[one], 9), -one))
    considered = chain(staying.consider(board, mover, node), staying.consider_gainless(board, mover, node))
    options = tuple(islice(considered, _CONSIDERED))
    if _goes(board, mover, measured, limits) is not None:
        return replace(found, options=options, held=held)
    told = [_by_own_load(board, mover, measured, limits), _by_node_load(board, mover, measured, limits, node)]
    sentences = [one for one in told if one is not None]
    would = f"it would pay to move it {', or '.join(sentences)}" if sentences else None
    return replace(found, options=options, held=held, would=would)


def _goes(board: Board, mover: Mover, measured: Measured, limits: RebalanceSettings) -> Option | None:
    """Where the instance would go under these loads, None if it would stay."""
    if is_even(measured, limits):
        return None
    most = target_load(measured, limits)
    then = board.what_if(measured)
    for node in measured.above(most):
        if mover.nodes >> node & 1:
            option = next((one for one in staying.consider(then, mover, node) if one.hold is None), None)
            if option is not None:
                return option
    return None


def _by_own_load(board: Board, mover: Mover, measured: Measured, limits: RebalanceSettings) -> str | None:
    """How many CPUs it would have to keep busy; the amount that is nearest to what it does."""
    has, most = mover.load_cpus, float(measured.count(mover.nodes))

    def would(cpus: float) -> Option | None:
        then = measured.with_more(mover.nodes, cpus - has)
        other = replace(mover, load_cpus=cpus)
        return _goes(board, other, then, limits)

    more = _first(would, has, max(most, has))
    less = _first(would, has, 0.0)
    amounts = [one for one in (more, less) if one is not None]
    if not amounts:
        return None
    cpus = min(amounts, key=lambda one: (abs(one - has), one))
    option = would(cpus)
    where = _where(option)
    then, now = apart(cpus, has)
    return f"{where} if it kept {then} CPUs busy instead of {now}"


def _by_node_load(board: Board, mover: Mover, measured: Measured, limits: RebalanceSettings, node: int) -> str | None:
    """How loaded its most loaded node would have to be, by others."""
    load, cpus = measured.load[node], measured.cpus[node]

    def would(height: float) -> Option | None:
        return _goes(board, mover, measured.with_more(1 << node, (height - load) * cpus), limits)

    # A node can be wanted by more than its CPUs can do.
    height = _first(would, load, max(2.0, 2 * load))
    if height is None:
        return None
    then, now = apart(height, load)
    return f"{_where(would(height))} if node {node} were loaded {then}, not {now}"


def _where(option: Option | None) -> str:
    nodes = NodeSet() if option is None else option.nodes
    return f"to node{'s' if len(nodes) > 1 else ''} {nodes}"


def _first(would: Would, start: float, end: float) -> float | None:
    """The amount nearest to the start at which it would go, found by trying steps towards the end and then halving."""
    before = start
    for amount in _steps(start, end):
        if would(amount) is None:
            before = amount
            continue
        after = amount
        for _ in range(_HALVINGS):
            middle = (before + after) / 2
            before, after = (before, middle) if would(middle) is not None else (middle, after)
        return after
    return None


def _steps(start: float, end: float) -> Iterable[float]:
    if abs(end - start) > EQUAL:
        # Small steps first: what is found should be near to what is there.
        yield from (start + (end - start) * (step / _STEPS) ** 2 for step in range(1, _STEPS + 1))
