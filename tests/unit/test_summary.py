"""The sentence about a decision by measured load, and the line about the load before and after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cli.summary import summarize, tell_evenness
from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import Decision, Held, History, Hold, Move

UNEVEN = Decision(
    history=History(hot_since_s={1: 0.0}), imbalance=3.0, expected=3.0, node_load={0: 0.1, 1: 0.9, 2: 0.9}, why="…"
)
HIGHEST = "node 1 is the most loaded with 0.90, 3.00 times the mean of 0.30"


def held(*holds: Hold) -> tuple[Held, ...]:
    return tuple(
        Held(key=InstanceKey("default", f"c{place}"), hold=hold, detail="") for place, hold in enumerate(holds)
    )


def moving(count: int) -> Decision:
    moves = tuple(
        Move(
            key=InstanceKey("default", f"c{place}"),
            before=NodeSet([1]),
            after=NodeSet([0]),
            gain=0.5,
            price=0.01,
            load_cpus=1.0,
        )
        for place in range(count)
    )
    # What is left after the moves may be even, and then nothing is remembered.
    return replace(UNEVEN, moves=moves, expected=1.05, history=History())


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ((), "no instance that could is on a node that is too loaded"),
        ((Hold.PRICE,), "1 instance stays, by price; see HERE"),
        ((Hold.PRICE, Hold.PRICE), "2 instances stay, by price; see HERE"),
        ((Hold.PRICE, Hold.COOL_DOWN, Hold.COOL_DOWN), "3 instances stay, most by cool-down (2); see HERE"),
        ((Hold.TIES, Hold.BUDGET), "2 instances stay, most by budget (1); see HERE"),
    ],
)
def test_where_nothing_moves_the_commonest_reason_is_named(holds: tuple[Hold, ...], says: str) -> None:
    assert summarize(replace(UNEVEN, held=held(*holds)), "HERE") == f"{HIGHEST}: nothing moves: {says}"
    assert tell_evenness(replace(UNEVEN, held=held(*holds))) is None


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (1, "1 move gains 0.500 for a price of 0.010"),
        (3, "3 moves gain 1.500 for a price of 0.030"),
    ],
)
def test_moves_are_summed_up_with_the_load_after_them(count: int, says: str) -> None:
    found = moving(count)
    assert summarize(found, "HERE") == f"{HIGHEST}: {says}; after that the highest is 1.05 times the mean"
    assert tell_evenness(found) == "highest over mean load: 3.00 before, 1.05 after"


@pytest.mark.parametrize(
    "found",
    [
        Decision(why="node 1 is the most loaded: even enough", imbalance=1.01, expected=1.01, node_load={1: 0.9}),
        Decision(why="no node is known to be busy"),
        Decision(),
    ],
    ids=["even", "unknown", "not decided"],
)
def test_there_is_nothing_to_add_where_nothing_is_uneven(found: Decision) -> None:
    assert (summarize(found, "HERE"), tell_evenness(found)) == (found.why, None)
