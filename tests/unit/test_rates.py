"""Rates from pairs of samples: what follows from them, what does not, and what is left of older ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import exp
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.sample import InstanceRates, InstanceSample, NodeRates, NodeSample, Rates, Sample
from incus_numa.model.snapshot import NOTHING, Decided, Observed, Snapshot
from incus_numa.policy import rates
from tests import builders

HOST = builders.machine(nodes=2, cpus_per_node=8)
KEY, OTHER = InstanceKey("default", "x"), InstanceKey("default", "y")
CONSTANT_S = 30.0
ON_0 = builders.decided("0", "0-3")


def _snapshot(observed: Mapping[InstanceKey, Observed] | None = None, *instances: Instance) -> Snapshot:
    there = instances or (builders.instance("x", vcpus=4),)
    return builders.snapshot(HOST, *there, observed={KEY: ON_0} if observed is None else observed)


def _one(at_s: float, **counters: Any) -> Sample:
    return Sample(at_s=at_s, instances={KEY: InstanceSample(at_s=at_s, **counters)})


def _smooth(*samples: Sample, snapshot: Snapshot | None = None, constant_s: float = CONSTANT_S) -> Rates:
    found = None
    for sample in samples:
        found = rates.smooth(found, sample, snapshot or _snapshot(), constant_s)
    assert found is not None
    return found


def test_first_sample_has_no_rates() -> None:
    first = replace(_one(5.0, cpu_s=100.0, memory_by_node={0: 7}), nodes={0: NodeSample(busy_s=9.0, free_bytes=3)})
    found = _smooth(first)
    assert found == Rates(
        sample=first,
        instances={KEY: InstanceRates(memory_by_node={0: 7})},
        nodes={0: NodeRates(free_bytes=3)},
        cpus_by_instance={KEY: CpuSet(range(4))},
        cpus_by_node={0: CpuSet(range(8))},
    )
    assert rates.load_of(found) == Load()


def test_nothing_sampled_is_no_load() -> None:
    assert rates.load_of(None) == Load()


def test_second_sample_gives_the_rates_as_they_are() -> None:
    found = _smooth(
        _one(5.0, cpu_s=100.0, waiting_s=7.0, stalled_s=1.0, throttled_s=0.0, memory_by_node={0: 7}),
        _one(15.0, cpu_s=110.0, waiting_s=12.0, stalled_s=2.0, throttled_s=1.0, memory_by_node={1: 8}),
    )
    assert found.instances[KEY] == InstanceRates(
        used_cpus=1.0, wanted_cpus=2.0, waiting=0.5, stalled=0.1, throttled=0.1, memory_by_node={1: 8}
    )
    assert rates.load_of(found) == Load(cpus_by_instance={KEY: 2.0})


def test_older_rates_count_less_by_the_time_constant() -> None:
    found = _smooth(_one(0.0, cpu_s=0.0), _one(10.0, cpu_s=0.0), _one(30.0, cpu_s=40.0))
    assert found.instances[KEY].used_cpus == pytest.approx(2 * (1 - exp(-20 / 30)))


def test_one_long_interval_counts_as_much_as_the_short_ones_in_it() -> None:
    start = (_one(0.0, cpu_s=0.0), _one(10.0, cpu_s=0.0))
    long = _smooth(*start, _one(30.0, cpu_s=40.0))
    short = _smooth(*start, *(_one(10.0 + step, cpu_s=2.0 * step) for step in range(1, 21)))
    assert short.instances[KEY].used_cpus == pytest.approx(long.instances[KEY].used_cpus)


GOOD = {"cpu_s": 100.0, "waiting_s": 7.0, "stalled_s": 1.0, "throttled_s": 2.0}
LATER = {name: value + 1.0 for name, value in GOOD.items()}
NO_RATES = InstanceRates()


@pytest.mark.parametrize("name", list(GOOD))
def test_counter_that_went_back_makes_all_rates_of_the_instance_unknown(name: str) -> None:
    last = _one(30.0, **{key: value + 2.0 for key, value in GOOD.items()} | {name: 0.5})
    assert _smooth(_one(10.0, **GOOD), _one(20.0, **LATER), last).instances[KEY] == NO_RATES


@pytest.mark.parametrize("at_s", [20.0, 19.9, 0.0, 140.1, 1e9])
def test_clock_that_stood_went_back_or_jumped_makes_rates_unknown(at_s: float) -> None:
    last = replace(_one(at_s, **LATER), nodes={0: NodeSample(busy_s=2.0, hits=2)})
    middle = replace(_one(20.0, **LATER), nodes={0: NodeSample(busy_s=1.0, hits=1)})
    start = replace(_one(10.0, **GOOD), nodes={0: NodeSample(busy_s=0.0, hits=0)})
    found = _smooth(start, middle, last)
    assert found.instances[KEY] == NO_RATES
    assert found.nodes[0] == NodeRates()


def test_longest_gap_is_four_time_constants_and_at_least_a_minute() -> None:
    def known(gap_s: float, constant_s: float) -> bool:
        found = _smooth(_one(0.0, cpu_s=0.0), _one(gap_s, cpu_s=1.0), constant_s=constant_s)
        return found.instances[KEY].used_cpus is not None

    assert [known(60.0, 1.0), known(60.1, 1.0), known(120.0, 30.0), known(120.1, 30.0)] == [True, False, True, False]


@pytest.mark.parametrize("missing", list(GOOD))
def test_missing_value_is_unknown_and_no_other(missing: str) -> None:
    last = _one(30.0, **{name: value + 2.0 for name, value in GOOD.items() if name != missing})
    found = _smooth(_one(10.0, **GOOD), _one(20.0, **LATER), last).instances[KEY]
    lost = {"cpu_s": "used_cpus", "waiting_s": "waiting", "stalled_s": "stalled", "throttled_s": "throttled"}[missing]
    names = {"used_cpus", "waiting", "stalled", "throttled"}
    assert {name for name in names if getattr(found, name) is None} == {lost}
    assert (found.wanted_cpus is None) == (missing == "cpu_s")


def test_rate_starts_anew_after_it_was_unknown() -> None:
    samples = [_one(0.0, cpu_s=0.0), _one(10.0, cpu_s=40.0), _one(20.0), _one(30.0, cpu_s=41.0)]
    assert _smooth(*samples).instances[KEY].used_cpus is None
    assert _smooth(*samples, _one(40.0, cpu_s=51.0)).instances[KEY].used_cpus == 1.0


def test_more_than_the_machine_can_do_is_unknown() -> None:
    def used(cpu_s: float) -> float | None:
        return _smooth(_one(0.0, cpu_s=0.0), _one(10.0, cpu_s=cpu_s)).instances[KEY].used_cpus

    assert (used(175.0), used(177.0)) == (17.5, None)


def test_more_waiting_than_time_is_unknown() -> None:
    def waiting(seconds: float) -> float | None:
        return _smooth(_one(0.0, waiting_s=0.0), _one(10.0, waiting_s=seconds)).instances[KEY].waiting

    assert (waiting(10.5), waiting(11.5)) == (1.0, None)


def test_throttling_of_many_cpus_is_at_most_all_of_the_time() -> None:
    found = _smooth(_one(0.0, throttled_s=0.0), _one(10.0, throttled_s=70.0))
    assert found.instances[KEY].throttled == 1.0


def test_instances_and_nodes_that_are_not_sampled_are_dropped() -> None:
    found = _smooth(replace(_one(0.0, cpu_s=0.0), nodes={0: NodeSample(busy_s=0.0)}), Sample(at_s=10.0))
    assert found == Rates(sample=Sample(at_s=10.0))


@pytest.mark.parametrize(
    ("used", "waiting", "throttled", "limit", "wanted"),
    [
        (0.5, 0.5, 0.0, 4, 1.0),
        (2.0, 0.5, 0.0, 4, 4.0),
        (0.25, 0.75, 0.0, 4, 1.0),
        (6.0, 0.25, 0.0, 16, 8.0),
        (1.0, 0.0, 0.0, 4, 1.0),
        (2.0, 1.0, 0.0, 4, 4.0),
        (2.0, 0.75, 0.0, 4, 4.0),
        (5.0, 0.5, 0.0, 4, 5.0),
        (0.01, 1.0, 0.0, 64, 1.01),
        (0.0, 1.0, 0.0, 64, 1.0),
        (0.0, 0.5, 0.0, 64, 0.0),
        (1.0, 1.0, 0.0, 64, 20.0),
        (1.0, None, 0.0, 4, 1.0),
        (1.0, 0.5, None, 4, 1.0),
        (1.0, 0.5, 0.25, 4, 1.0),
        (1.0, 0.5, 0.2, 4, 2.0),
    ],
)
def test_wanted_is_what_is_used_and_what_waiting_kept_from_it(
    used: float, waiting: float | None, throttled: float | None, limit: float, wanted: float
) -> None:
    assert rates.wanted_cpus(used, waiting, throttled, limit) == wanted


@pytest.mark.parametrize(
    ("instance", "observed", "limit"),
    [
        (builders.instance("x", vcpus=4), builders.decided("0", "0-5"), 6),
        (builders.instance("x", vcpus=4), Observed(cpus=CpuSet(range(8))), 4),
        (builders.instance("x", vcpus=400), NOTHING, 16),
        (builders.instance("x", pinned="0-2"), Observed(cpus=CpuSet(range(8))), 3),
        (builders.instance("x"), Observed(cpus=CpuSet(range(5))), 5),
        (builders.instance("x"), Observed(nodes=NodeSet([1])), 8),
        (builders.instance("x"), Observed(decided=Decided(nodes=NodeSet([1]))), 8),
        (builders.instance("x"), Observed(cpus=CpuSet([99])), 16),
        (builders.instance("x"), NOTHING, 16),
        (builders.instance("other"), NOTHING, 16),
    ],
)
def test_wanted_is_limited_to_the_cpus_that_it_may_use(instance: Instance, observed: Observed, limit: int) -> None:
    start = _one(0.0, cpu_s=0.0, waiting_s=0.0, throttled_s=0.0)
    snapshot = _snapshot({KEY: observed}, instance)
    found = _smooth(start, _one(10.0, cpu_s=15.0, waiting_s=10.0, throttled_s=0.0), snapshot=snapshot)
    assert found.instances[KEY].wanted_cpus == limit


def test_kernel_without_quotas_throttles_nobody() -> None:
    found = _smooth(_one(0.0, cpu_s=0.0, waiting_s=0.0), _one(10.0, cpu_s=5.0, waiting_s=5.0)).instances[KEY]
    assert (found.wanted_cpus, found.throttled) == (1.0, None)


def test_throttling_that_was_not_read_once_leaves_what_is_used() -> None:
    start = _one(0.0, cpu_s=0.0, waiting_s=0.0, throttled_s=0.0)
    assert _smooth(start, _one(10.0, cpu_s=5.0, waiting_s=5.0)).instances[KEY].wanted_cpus == 0.5


def _both(at_s: float, use: Mapping[InstanceKey, float | None], busy: Mapping[int, float | None]) -> Sample:
    """Counters of instances and nodes that grew at these rates since 0, except where they are None."""
    return Sample(
        at_s=at_s,
        instances={
            key: InstanceSample(at_s=at_s, cpu_s=None if rate is None else rate * at_s) for key, rate in use.items()
        },
        nodes={node: NodeSample(busy_s=None if rate is None else rate * at_s) for node, rate in busy.items()},
    )


def _others(found: Rates) -> dict[int, float | None]:
    return {node: one.other_cpus for node, one in found.nodes.items()}


BUSY = {0: 5.0, 1: 3.0}
WHERE = {KEY: builders.decided("0-1", "0-2,8"), OTHER: builders.decided("0", "0-3")}
TWO = _snapshot(WHERE, builders.instance("x", vcpus=4), builders.instance("y", vcpus=4))


def test_what_no_instance_uses_is_other_load_of_the_node() -> None:
    use = {KEY: 2.0, OTHER: 1.0}
    found = _smooth(_both(10.0, use, BUSY), _both(20.0, use, BUSY), snapshot=TWO)
    assert _others(found) == {0: 5.0 - 1.5 - 1.0, 1: 3.0 - 0.5}
    assert {node: one.busy_cpus for node, one in found.nodes.items()} == BUSY
    assert rates.load_of(found) == Load(cpus_by_instance={KEY: 2.0, OTHER: 1.0}, other_by_node={0: 2.5, 1: 2.5})


def test_other_load_is_never_negative() -> None:
    use, busy = {KEY: 2.0, OTHER: 1.0}, {0: 1.0, 1: 0.1}
    assert _others(_smooth(_both(10.0, use, busy), _both(20.0, use, busy), snapshot=TWO)) == {0: 0.0, 1: 0.0}


def test_instance_of_unknown_cpus_is_spread_over_its_nodes_or_the_machine() -> None:
    snapshot = replace(TWO, observed={KEY: Observed(nodes=NodeSet([1]))})
    use = {KEY: 2.0, OTHER: 1.0}
    found = _smooth(_both(10.0, use, BUSY), _both(20.0, use, BUSY), snapshot=snapshot)
    assert _others(found) == {0: 4.5, 1: 0.5}


def test_other_load_of_the_nodes_of_a_moved_instance_stays_for_that_interval() -> None:
    use = {KEY: 2.0, OTHER: 1.0}
    before = _smooth(_both(10.0, use, BUSY), _both(20.0, use, BUSY), snapshot=TWO)
    moved = replace(TWO, observed=WHERE | {OTHER: builders.decided("1", "8-11")})
    sample = _both(30.0, use, {0: 4.5, 1: 3.5})
    there = rates.smooth(before, sample, moved, CONSTANT_S)
    assert _others(there) == _others(before)
    after = rates.smooth(there, _both(40.0, use, {0: 4.5, 1: 3.5}), moved, CONSTANT_S)
    assert _others(after)[0] != _others(before)[0]


@pytest.mark.parametrize(
    ("use", "stays"),
    [({OTHER: 1.0}, [0, 1]), ({KEY: 2.0}, [0]), ({KEY: 2.0, OTHER: None}, [0]), ({KEY: 2.0, OTHER: 0.1}, [0])],
)
def test_other_load_stays_where_an_instance_left_or_is_not_known(
    use: Mapping[InstanceKey, float | None], stays: list[int]
) -> None:
    both = {KEY: 2.0, OTHER: 1.0}
    before = _smooth(_both(10.0, both, BUSY), _both(20.0, both, BUSY), snapshot=TWO)
    after = rates.smooth(before, _both(30.0, use, {0: 5.5, 1: 4.0}), TWO, CONSTANT_S)
    assert [node for node in BUSY if _others(after)[node] == _others(before)[node]] == stays


def test_other_load_stays_where_an_instance_came() -> None:
    before = _smooth(_both(10.0, {KEY: 2.0}, BUSY), _both(20.0, {KEY: 2.0}, BUSY), snapshot=TWO)
    after = rates.smooth(before, _both(30.0, {KEY: 2.0, OTHER: 1.0}, {0: 5.5, 1: 4.0}), TWO, CONSTANT_S)
    assert _others(after)[0] == _others(before)[0]
    assert _others(after)[1] != _others(before)[1]


def test_instance_that_is_never_known_counts_as_other_load() -> None:
    use = {KEY: 2.0, OTHER: None}
    assert _others(_smooth(_both(10.0, use, BUSY), _both(20.0, use, BUSY), snapshot=TWO)) == {0: 3.5, 1: 2.5}


def test_node_whose_cpus_changed_has_no_busy_time_for_that_interval() -> None:
    use = {KEY: 0.0}
    before = _smooth(_both(10.0, use, BUSY), _both(20.0, use, BUSY))
    grown = builders.machine(nodes=2, cpus_per_node=8)
    fewer = replace(grown, online=grown.online - CpuSet([7]))
    after = rates.smooth(before, _both(30.0, use, BUSY), replace(_snapshot(), machine=fewer), CONSTANT_S)
    assert {node: one.busy_cpus for node, one in after.nodes.items()} == {0: None, 1: 3.0}
    assert _others(after)[0] is None


def test_node_busier_than_its_cpus_can_be_is_unknown() -> None:
    found = _smooth(_both(10.0, {}, {0: 8.5, 1: 9.0}), _both(20.0, {}, {0: 8.5, 1: 9.0}))
    assert {node: one.busy_cpus for node, one in found.nodes.items()} == {0: 8.5, 1: None}


def test_pages_per_second_are_smoothed_and_free_memory_is_the_newest() -> None:
    samples = [
        Sample(at_s=at_s, nodes={0: NodeSample(hits=hits, misses=misses, free_bytes=free)})
        for at_s, hits, misses, free in ((0.0, 0, 5, 9), (10.0, 100, 5, 8), (20.0, 100, 3, 7))
    ]
    found = _smooth(*samples).nodes[0]
    assert found == NodeRates(free_bytes=7, hits_per_s=found.hits_per_s, misses_per_s=None)
    assert found.hits_per_s == pytest.approx(10 * exp(-10 / 30))
