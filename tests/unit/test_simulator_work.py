"""CPU time is shared as a fair scheduler shares it, and pressure says who had to wait."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator import sharing
from incus_numa.simulator.sharing import Claim, Shares

TINY = 1e-6
CPUS = 5


def key(name: str) -> InstanceKey:
    return InstanceKey("default", name)


def claim(cpus: str, wanted_cpus: float) -> Claim:
    return Claim(cpus=CpuSet.parse(cpus), wanted_cpus=wanted_cpus)


def share(**claims: Claim) -> Shares:
    return sharing.share_time({key(name): one for name, one in claims.items()})


def got(**claims: Claim) -> dict[str, float]:
    return {one.name: amount for one, amount in share(**claims).by_instance.items()}


claims_of_few = st.lists(
    st.builds(
        Claim,
        cpus=st.sets(st.integers(0, CPUS - 1), max_size=CPUS).map(CpuSet),
        wanted_cpus=st.floats(0, CPUS + 1, allow_subnormal=False),
    ),
    min_size=1,
    max_size=6,
).map(lambda found: {key(f"i{number}"): one for number, one in enumerate(found)})


def test_nobody_wants_anything() -> None:
    assert sharing.share_time({}) == Shares(by_instance={}, by_cpu={})
    assert got(idle=claim("0-3", 0.0)) == {"idle": 0.0}


def test_alone_an_instance_gets_what_it_wants_and_no_more_than_its_cpus() -> None:
    assert got(small=claim("0-3", 1.5)) == {"small": 1.5}
    assert got(large=claim("0-3", 9.0)) == {"large": 4.0}


def test_equals_share_equally_and_the_modest_get_all_they_want() -> None:
    assert got(a=claim("0-1", 2.0), b=claim("0-1", 2.0)) == {"a": 1.0, "b": 1.0}
    assert got(a=claim("0-1", 2.0), b=claim("0-1", 2.0), c=claim("0-1", 0.5)) == {"a": 0.75, "b": 0.75, "c": 0.5}


def test_who_has_other_cpus_makes_room() -> None:
    assert got(tied=claim("0", 1.0), free=claim("0-1", 1.0)) == {"tied": 1.0, "free": 1.0}


def test_bottleneck_of_some_does_not_hold_back_others() -> None:
    assert got(a=claim("0", 1.0), b=claim("0", 1.0), c=claim("0-3", 4.0)) == {"a": 0.5, "b": 0.5, "c": 3.0}


def test_instance_spreads_evenly_over_idle_cpus() -> None:
    assert share(a=claim("0-3", 2.0)).by_cpu == {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}
    assert share(a=claim("0", 1.0), b=claim("0-2", 1.0)).by_cpu == {0: 1.0, 1: 0.5, 2: 0.5}


def test_instance_fills_up_what_others_leave_until_all_cpus_are_equally_busy() -> None:
    assert share(a=claim("0-1", 0.5), b=claim("0-3", 2.0)).by_cpu == dict.fromkeys(range(4), 0.625)


def test_bottleneck_behind_a_bottleneck_has_only_the_cpus_that_are_left() -> None:
    hogs = {f"hog{number}": claim("0", 1.0) for number in range(4)}
    shares = got(**hogs, a=claim("0-1", 1.0), b=claim("0-1", 1.0), c=claim("0-2", 2.0))
    assert shares == dict.fromkeys(hogs, 0.25) | {"a": 0.5, "b": 0.5, "c": 1.0}


def test_without_cpus_there_is_no_time() -> None:
    assert got(a=Claim(cpus=CpuSet(), wanted_cpus=1.0), b=claim("0", 1.0)) == {"a": 0.0, "b": 1.0}


def is_possible(claims: Mapping[InstanceKey, Claim], shares: Mapping[InstanceKey, float]) -> bool:
    """Hall's condition: no set of instances has more than the CPUs that at least one of them may use."""
    for count in range(1, len(claims) + 1):
        for some in combinations(claims, count):
            room = CpuSet(cpu for one in some for cpu in claims[one].cpus)
            if sum(shares[one] for one in some) > len(room) + TINY / 2:
                return False
    return True


@given(claims_of_few)
def test_no_more_than_wanted_and_no_more_than_there_is(claims: Mapping[InstanceKey, Claim]) -> None:
    shares = sharing.share_time(claims)
    assert all(0 <= shares.by_instance[one] <= claims[one].wanted_cpus + TINY for one in claims)
    assert all(0 <= busy <= 1 for busy in shares.by_cpu.values())
    assert sum(shares.by_cpu.values()) == pytest.approx(sum(shares.by_instance.values()), abs=TINY)
    assert is_possible(claims, shares.by_instance)


@given(claims_of_few)
def test_nobody_can_get_more_at_no_cost_or_at_the_cost_of_one_who_has_more(
    claims: Mapping[InstanceKey, Claim],
) -> None:
    shares = sharing.share_time(claims).by_instance
    for one in claims:
        if shares[one] + 4 * TINY > claims[one].wanted_cpus:
            continue
        raised = {**shares, one: shares[one] + 2 * TINY}
        assert not is_possible(claims, raised)
        for other in claims:
            if shares[other] > shares[one] + 4 * TINY:
                assert not is_possible(claims, {**raised, other: shares[other] - 2 * TINY})


@given(claims_of_few)
def test_order_of_the_claims_does_not_matter(claims: Mapping[InstanceKey, Claim]) -> None:
    turned = sharing.share_time({one: claims[one] for one in reversed(tuple(claims))}).by_instance
    assert turned == pytest.approx(sharing.share_time(claims).by_instance, abs=TINY)


@pytest.mark.parametrize(
    ("cpus", "wanted", "got_cpus", "some", "full"),
    [
        ("0", 1.0, 1.0, 0.0, 0.0),
        ("0", 1.0, 0.25, 0.75, 0.75),
        ("0-3", 2.0, 1.5, 0.25, 0.25),
        ("0-3", 0.5, 0.5, 0.0, 0.0),
        # Two tasks on one CPU that they have for themselves: one always waits, and never both.
        ("0", 2.0, 1.0, 1.0, 0.0),
        ("0-1", 3.0, 2.0, 0.5, 0.0),
        ("0-1", 8.0, 1.0, 1.0, 0.5),
    ],
)
def test_pressure_is_the_time_in_which_tasks_wait(
    cpus: str, wanted: float, got_cpus: float, some: float, full: float
) -> None:
    assert sharing.waiting(claim(cpus, wanted), got_cpus) == pytest.approx((some, full))
