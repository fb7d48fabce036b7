"""Moves by measured load, as values: what was decided, what was not and why, and what is remembered between passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """An instance that goes to other nodes because that pays.

    `gain` is by how much the potential falls, `price` what the move costs in the same unit (see policy.rebalance).
    `load_cpus` is its measured load, `size_bytes` the memory that follows it, over `distance` in kernel units (None
    when unknown). `with_key` is the instance that it changes places with.
    """

    key: InstanceKey
    before: NodeSet
    after: NodeSet
    gain: float
    price: float
    load_cpus: float
    size_bytes: int = 0
    distance: float | None = None
    with_key: InstanceKey | None = None
    reason: str = ""


class Hold(Enum):
    """Why an instance on a node that is too loaded stays there."""

    NOT_MOVABLE = "not-movable"
    PINNED = "pinned"
    EXCLUSIVE = "exclusive"
    POLICY = "policy"
    NOT_PLACED = "not-placed"
    UNKNOWN_LOAD = "unknown-load"
    COOL_DOWN = "cool-down"
    DOES_NOT_FIT = "does-not-fit"
    TIES = "ties"
    NO_GAIN = "no-gain"
    PRICE = "price"
    BUDGET = "budget"


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An instance that stays, and why, as a sentence with the numbers."""

    key: InstanceKey
    hold: Hold
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What is remembered from pass to pass: since when each node has been too loaded, and who was moved when.

    Times are seconds of one clock that never goes back, or of the wall clock; the caller decides and stays with it.
    """

    hot_since_s: Mapping[int, float] = field(default_factory=dict)
    moved_at_s: Mapping[InstanceKey, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a pass by load decided.

    `plan` has a placement for each of the `moves` and nothing else. `held` has those on nodes that are too loaded which
    stay. `imbalance` is the highest measured load of a node over the mean, None when nothing is known or nothing runs;
    `expected` the same once the moves are done. `node_load` is measured load by node. `why` is a sentence.
    """

    plan: Plan = field(default_factory=Plan)
    moves: tuple[Move, ...] = ()
    held: tuple[Held, ...] = ()
    history: History = field(default_factory=History)
    imbalance: float | None = None
    expected: float | None = None
    node_load: Mapping[int, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveRecord:
    """A line of the journal: a move that was made. `at_s` is seconds since 1970, `took_s` how long it took.

    `moved_bytes` is the memory that followed; `result` is a word: moved, cancelled, failed or gone.
    """

    at_s: float
    move: Move
    result: str
    moved_bytes: int = 0
    took_s: float = 0.0
