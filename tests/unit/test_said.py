"""What was said of an instance is not said again before the instance was right."""

from __future__ import annotations

import pytest

from incus_numa.daemon.said import MOST_LINES, Said
from incus_numa.model.instance import InstanceKey

C1, C2 = InstanceKey("default", "c1"), InstanceKey("web", "c2")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_problems_that_take_turns_are_said_once_each(caplog: pytest.LogCaptureFixture) -> None:
    said = Said()
    for _ in range(3):
        said.once(C1, "no room")
        said.once(C1, "no disk")
        said.once(C2, "no room")
    assert lines(caplog) == ["instance=c1 no room", "instance=c1 no disk", "instance=web/c2 no room"]


def test_what_was_forgotten_is_news_of_that_instance_alone(caplog: pytest.LogCaptureFixture) -> None:
    said = Said()
    for key in (C1, C2):
        said.once(key, "no room")
    said.forget(frozenset({C1}))
    assert (said.told(), said.knows(C1, "no room"), said.knows(C2, "no room")) == ((C2,), False, True)
    for key in (C1, C2):
        said.once(key, "no room")
    assert lines(caplog) == ["instance=c1 no room", "instance=web/c2 no room", "instance=c1 no room"]


def test_only_so_many_lines_are_remembered_and_those_that_recur_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    said = Said()
    said.once(C1, "again and again")
    for number in range(5 * MOST_LINES):
        said.once(C1, f"number {number}")
        said.once(C1, "again and again")
    assert lines(caplog).count("instance=c1 again and again") == 1
    remembered = [number for number in range(5 * MOST_LINES) if said.knows(C1, f"number {number}")]
    assert remembered == list(range(4 * MOST_LINES + 1, 5 * MOST_LINES))
