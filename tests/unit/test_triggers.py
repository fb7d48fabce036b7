"""Hints that come together are one, and every rewrite of the server is waited for long enough."""

from __future__ import annotations

import asyncio

import pytest

from incus_numa.daemon.triggers import GATHER_S, HOLD_S, MANY, QUIET_S, Edits, Triggers, Verification, Work
from incus_numa.model.instance import InstanceKey

C1, C2 = InstanceKey("default", "c1"), InstanceKey("default", "c2")


async def test_hints_about_one_instance_are_one() -> None:
    triggers = Triggers()
    triggers.look_at(C1, starting=False)
    triggers.look_at(C2, starting=False)
    triggers.look_at(C1, starting=False)
    assert await triggers.next() == Work(instances=((C1, False), (C2, False)))


async def test_start_is_not_forgotten_for_a_later_hint() -> None:
    triggers = Triggers()
    triggers.look_at(C1, starting=True)
    triggers.look_at(C1, starting=False)
    assert await triggers.next() == Work(instances=((C1, True),))


async def test_taken_hints_are_not_given_again() -> None:
    triggers = Triggers()
    triggers.look_at_everything()
    triggers.look_at(C1, starting=True)
    triggers.look_at_cgroup(C2)
    assert await triggers.next() == Work(everything=True, instances=((C1, True),), drifted=((C2, True),))
    triggers.look_at_cgroups([C1, C2, C1])
    assert await triggers.next() == Work(drifted=((C1, True), (C2, True)))


async def test_nobody_is_woken_without_a_hint() -> None:
    triggers = Triggers()
    waiting = asyncio.create_task(triggers.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    triggers.look_at_cgroup(C1)
    assert await waiting == Work(drifted=((C1, True),))


async def test_many_changed_instances_are_one_look_at_everything() -> None:
    triggers = Triggers()
    for number in range(MANY + 1):
        triggers.look_at(InstanceKey("default", f"c{number}"), starting=False)
    assert await triggers.next() == Work(everything=True)


async def test_many_starts_are_looked_at_one_by_one() -> None:
    triggers = Triggers()
    keys = [InstanceKey("default", f"c{number}") for number in range(MANY + 1)]
    for key in keys:
        triggers.look_at(key, starting=True)
    assert await triggers.next() == Work(instances=tuple((key, True) for key in keys))


async def test_starts_among_many_changes_are_still_looked_at_one_by_one() -> None:
    triggers = Triggers()
    triggers.look_at(C1, starting=True)
    for number in range(10, MANY + 11):
        triggers.look_at(InstanceKey("default", f"c{number}"), starting=False)
    assert await triggers.next() == Work(everything=True, instances=((C1, True),))


def test_nothing_is_due_without_an_event() -> None:
    verification = Verification((0.5, 2.0))
    assert verification.next_due() is None
    assert not verification.take(100.0)


def test_every_delay_after_an_event_is_due_once() -> None:
    verification = Verification((2.0, 0.5))
    verification.happened(10.0)
    assert verification.next_due() == 10.5
    assert verification.take(10.5)
    assert verification.next_due() == 12.0
    assert not verification.take(11.0)
    assert verification.take(12.0)
    assert verification.next_due() is None


def test_last_of_many_events_gets_its_full_delay() -> None:
    verification = Verification((2.0,))
    verification.happened(10.0)
    verification.happened(11.5)
    assert verification.take(12.0)
    assert verification.next_due() == 13.5
    assert verification.take(13.5)
    assert verification.next_due() is None


def test_steady_events_do_not_put_off_a_verification() -> None:
    verification = Verification((2.0,))
    due = 0
    for tick in range(100):
        verification.happened(tick / 10)
        due += verification.take(tick / 10)
    assert due >= 4


def held(count: int, *, every_s: float, began: float = 100.0) -> Edits:
    """As many different instances, edited one after the other."""
    edits = Edits()
    for number in range(count):
        edits.add(InstanceKey("default", f"c{number}"), began + number * every_s)
    return edits


def test_single_edit_waits_a_moment_for_others() -> None:
    edits = held(1, every_s=0.0)
    assert edits.due() == 100.0 + GATHER_S
    assert edits.take(100.0) == ()
    assert edits.take(100.0 + GATHER_S) == (InstanceKey("default", "c0"),)
    assert edits.due() is None


def test_edits_that_keep_coming_are_taken_together_when_they_end() -> None:
    edits = held(50, every_s=0.01)
    last = 100.0 + 49 * 0.01
    assert edits.due() == pytest.approx(last + QUIET_S)
    assert len(edits.take(last + QUIET_S + 0.001)) == 50
    assert edits.due() is None


def test_edits_that_never_end_are_not_put_off_for_ever() -> None:
    assert held(500, every_s=0.01).due() == 100.0 + HOLD_S


def test_edits_now_and_then_do_not_wait_for_one_another() -> None:
    edits = Edits()
    for number in range(50):
        now = 100.0 + number
        edits.add(C1, now)
        assert edits.due() == now + GATHER_S
        assert edits.take(now + GATHER_S) == (C1,)


def test_one_edited_many_times_is_looked_at_once() -> None:
    edits = Edits()
    for number in range(30):
        edits.add(C1, 100.0 + number / 1000)
    assert edits.take(101.0) == (C1,)


async def test_many_edits_are_one_look_at_everything_and_a_start_does_not_wait_for_them() -> None:
    triggers = Triggers()
    for number in range(10, MANY + 11):
        triggers.look_at_edited(InstanceKey("default", f"c{number}"))
    triggers.look_at(C1, starting=True)
    assert await triggers.next() == Work(instances=((C1, True),))
    assert await triggers.next() == Work(everything=True)
