"""Notices as events: their names, their documents, and what is kept for one who watches."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import (
    CpusetCorrected,
    MemoryFollowed,
    MoveHeld,
    MoveMade,
    Notice,
    PassEnded,
    Refused,
    Scope,
    ServerCalled,
    SettingsChanged,
    StartPlaced,
    StepTaken,
    StreamOpened,
)
from incus_numa.model.plan import (
    MovePages,
    Outcome,
    PatchNodes,
    PinThreads,
    Reason,
    Rejection,
    StepResult,
    WriteCpus,
    WriteMems,
)
from incus_numa.model.rebalance import Hold, Move, MoveRecord
from incus_numa.web.stream import Listener
from incus_numa.web.telling import KINDS, render_notice

KEY = InstanceKey("web", "db")
NAMED = {"project": "web", "name": "db"}
ONE, TWO = NodeSet((1,)), NodeSet((2, 3))
CPUS = CpuSet((4, 5))
MOVE = Move(key=KEY, before=ONE, after=TWO, gain=0.5, price=0.1, load_cpus=2.0, reason="it pays")


def step(one: Any, outcome: Outcome = Outcome.DONE, detail: str = "") -> StepTaken:
    return StepTaken(result=StepResult(step=one, outcome=outcome, detail=detail))


def test_every_kind_of_notice_has_a_name_of_its_own() -> None:
    assert set(KINDS) == set(get_args(Notice))
    assert len(set(KINDS.values())) == len(KINDS)


@pytest.mark.parametrize(
    ("notice", "document"),
    [
        (PassEnded(scope=Scope.LOAD, took_s=0.25), {"scope": "load", "took_s": 0.25, "error": None}),
        (
            StartPlaced(key=KEY, nodes=TWO, cpus=CPUS, took_s=0.1),
            NAMED | {"nodes": "2-3", "cpus": "4-5", "took_s": 0.1},
        ),
        (
            Refused(rejection=Rejection(key=KEY, reason=Reason.NO_MEMORY, detail="too large")),
            NAMED | {"reason": "no-memory", "detail": "too large"},
        ),
        (CpusetCorrected(key=KEY), NAMED),
        (
            MoveMade(record=MoveRecord(at_s=1.0, move=MOVE, result="moved", moved_bytes=7, took_s=2.0)),
            NAMED
            | {"from": "1", "to": "2-3", "result": "moved", "gain": 0.5, "price": 0.1}
            | {"moved_bytes": 7, "took_s": 2.0, "reason": "it pays"},
        ),
        (MoveHeld(key=KEY, hold=Hold.NO_GAIN, detail="no"), NAMED | {"reason": "no-gain", "detail": "no"}),
        (MemoryFollowed(key=KEY, moved_bytes=9, took_s=1.5), NAMED | {"moved_bytes": 9, "took_s": 1.5}),
        (StreamOpened(again=True), {"again": True}),
        (
            ServerCalled(call="get_instance", took_s=0.01, error="busy"),
            {"call": "get_instance", "took_s": 0.01, "error": "busy"},
        ),
        (SettingsChanged(), {}),
        (
            step(PatchNodes(key=KEY, nodes=TWO, before=None), Outcome.FORBIDDEN, "restricted"),
            NAMED | {"step": "patch-nodes", "to": "2-3", "result": "forbidden", "detail": "restricted"},
        ),
        (
            step(WriteCpus(key=KEY, cpus=CPUS, before=None)),
            NAMED | {"step": "write-cpus", "to": "4-5", "result": "done", "detail": None},
        ),
        (
            step(WriteMems(key=KEY, mems=TWO, before=None)),
            NAMED | {"step": "write-mems", "to": "2-3", "result": "done", "detail": None},
        ),
        (
            step(MovePages(key=KEY, sources=ONE, targets=TWO, size_bytes=1)),
            NAMED | {"step": "move-pages", "to": "2-3", "result": "done", "detail": None},
        ),
        (
            step(PinThreads(key=KEY, cpus=CPUS, around=CPUS, before=None)),
            NAMED | {"step": "pin-threads", "to": "4-5", "result": "done", "detail": None},
        ),
    ],
)
def test_a_notice_is_told_as_plain_values(notice: Notice, document: dict[str, Any]) -> None:
    assert render_notice(notice) == document


async def test_events_that_came_together_are_sent_together_and_in_order() -> None:
    listener = Listener(10)
    for text in (b"a", b"b", b"c"):
        listener.put(text)
    assert await listener.take(0.01) == b"abc"


async def test_who_reads_too_slowly_is_told_how_much_they_missed_and_nothing_after_it() -> None:
    listener = Listener(3)
    for _ in range(5):
        listener.put(b"x")
    assert (await listener.take(0.01), listener.is_over) == (b'event: overflow\ndata: {"missed":5}\n\n', True)


async def test_nothing_is_a_comment() -> None:
    assert (await Listener(10).take(0.01)).startswith(b": ")


async def test_the_end_comes_at_once() -> None:
    listener = Listener(10)
    listener.end()
    assert (await listener.take(60.0), listener.is_over) == (b"", True)
