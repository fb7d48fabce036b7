"""The CPU use that is made up for the instances of a trace."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.replay import loads
from incus_numa.replay.loads import HOUR, Phase
from incus_numa.replay.stays import Stay

FOREVER = 1e9


def stay(name: str, *, arrival_s: float = 0, departure_s: float | None = None, vcpus: int = 1) -> Stay:
    return Stay(name=name, arrival_s=arrival_s, departure_s=departure_s, vcpus=vcpus, memory_bytes=None)


def phases(one: Stay, end_s: float = FOREVER) -> list[Phase]:
    return list(loads.list_phases(one, end_s))


def test_use_is_the_same_for_ever_on_every_machine() -> None:
    assert [(round(at_s), round(cpus, 4)) for at_s, cpus in phases(stay("web", vcpus=4), 8 * HOUR)] == [
        (0, 0.0865),
        (5350, 3.4847),
        (6938, 0.0825),
    ]


def test_the_name_decides_the_parts_and_the_vcpus_the_amounts() -> None:
    one, four, other = (phases(stay(name, vcpus=vcpus), 1e6) for name, vcpus in (("a", 1), ("a", 4), ("b", 1)))
    assert four == [Phase(at_s, 4 * cpus) for at_s, cpus in one]
    assert other != one


def test_use_goes_by_time_since_the_arrival() -> None:
    early, late = phases(stay("a"), 1e6), phases(stay("a", arrival_s=5000), 1e6 + 5000)
    assert [cpus for _, cpus in late] == [cpus for _, cpus in early]
    assert [at_s for at_s, _ in late] == pytest.approx([at_s + 5000 for at_s, _ in early])


@given(st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable()), st.integers(1, 64))
def test_use_is_idle_and_busy_by_turns_within_its_levels(name: str, vcpus: int) -> None:
    parts = [cpus / vcpus for _, cpus in phases(stay(name, vcpus=vcpus), 30 * 24 * HOUR)]
    idle = [0.02 <= part <= 0.05 for part in parts]
    assert all(is_idle or 0.5 <= part <= 1.0 for part, is_idle in zip(parts, idle, strict=True))
    assert all(before != after for before, after in pairwise(idle))
    assert all(max(pair) >= 10 * min(pair) for pair in pairwise(parts))


def test_use_ends_with_the_departure_or_the_trace() -> None:
    whole = phases(stay("a"), 1e6)
    middle = whole[5].at_s + 1
    assert phases(stay("a"), middle) == phases(stay("a", departure_s=middle), 1e6) == whole[:6]


def test_one_who_leaves_at_once_uses_something() -> None:
    (only,) = phases(stay("a", arrival_s=7, departure_s=7))
    assert (only.at_s, only.cpus > 0) == (7, True)


def test_times_are_some_hours_long_and_a_third_of_all_is_busy() -> None:
    idle_s: list[float] = []
    busy_s: list[float] = []
    begin_busy = 0
    for number in range(300):
        found = phases(stay(f"i{number}"), 20 * 24 * HOUR)
        begin_busy += found[0].cpus > 0.1
        for before, after in pairwise(found):
            (busy_s if before.cpus > 0.1 else idle_s).append(after.at_s - before.at_s)
    assert sum(idle_s) / len(idle_s) == pytest.approx(4 * HOUR, rel=0.03)
    assert sum(busy_s) / len(busy_s) == pytest.approx(2 * HOUR, rel=0.03)
    assert begin_busy == pytest.approx(100, abs=20)


def test_restarts_are_a_day_apart_on_average_and_end_with_the_stay() -> None:
    found = [list(loads.list_restarts(stay(f"i{number}"), 30 * 24 * HOUR)) for number in range(100)]
    assert sum(map(len, found)) == pytest.approx(3000, rel=0.05)
    assert all(0 < at_s < 30 * 24 * HOUR for times in found for at_s in times)
    first = found[0]
    assert list(loads.list_restarts(stay("i0", departure_s=first[3]), 1e9)) == first[:3]
