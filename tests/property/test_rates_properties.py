"""Rates stay between the true ones, come to them, and are never made of counters that say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.sample import InstanceRates, InstanceSample, NodeRates, NodeSample, Rates, Sample
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import rates
from tests import builders

HOST = builders.machine(nodes=2, cpus_per_node=8)
KEY = InstanceKey("default", "x")
ALONE = builders.snapshot(HOST, builders.instance("x", vcpus=4), observed={KEY: builders.decided("0", "0-3")})
GAP_S = 60.0
NEARLY = 1 + 1e-6

# Times are added up, which makes a gap of almost the longest one a little longer.
gaps = st.floats(0.1, GAP_S - 1)
constants = st.floats(0.1, 15.0)
parts = st.floats(0.0, 1.0)
uses = st.floats(0.0, 16.0)


def _run(samples: Sequence[Sample], constant_s: float = 15.0, snapshot: Snapshot = ALONE) -> list[Rates]:
    found: list[Rates] = []
    for sample in samples:
        found.append(rates.smooth(found[-1] if found else None, sample, snapshot, constant_s))
    return found


def _busy(pairs: Sequence[tuple[float, float]]) -> list[Sample]:
    """Samples at the ends of intervals, each of which has a length and a use in CPUs, of the instance and a node."""
    at_s, used_s = 1000.0, 50.0
    samples = [_sample(at_s, used_s)]
    for gap, use in pairs:
        at_s, used_s = at_s + gap, used_s + gap * use
        samples.append(_sample(at_s, used_s))
    return samples


def _sample(at_s: float, used_s: float) -> Sample:
    return Sample(
        at_s=at_s,
        instances={KEY: InstanceSample(at_s=at_s, cpu_s=used_s)},
        nodes={0: NodeSample(busy_s=used_s / 2)},
    )


@given(st.lists(st.tuples(gaps, uses), min_size=1, max_size=12), constants)
def test_smoothed_rates_never_leave_the_true_ones(pairs: list[tuple[float, float]], constant_s: float) -> None:
    least, most = min(use for _, use in pairs), max(use for _, use in pairs)
    for found in _run(_busy(pairs), constant_s)[1:]:
        used, busy = found.instances[KEY].used_cpus, found.nodes[0].busy_cpus
        assert used is not None
        assert busy is not None
        assert least / NEARLY - 1e-6 <= used <= most * NEARLY + 1e-6
        assert least / NEARLY - 1e-6 <= busy * 2 <= most * NEARLY + 1e-6


@given(st.lists(st.tuples(gaps, uses), max_size=4), st.lists(gaps, min_size=1, max_size=30), uses, constants)
def test_smoothed_rates_come_to_a_constant_use_at_any_sampling_times(
    before: list[tuple[float, float]], times: list[float], use: float, constant_s: float
) -> None:
    steady = [(gap, use) for gap in times]
    last, found = _run(_busy(before), constant_s)[-1], _run(_busy([*before, *steady]), constant_s)[-1]
    first = last.instances[KEY].used_cpus
    off = 0.0 if first is None else abs(first - use)
    left = off * exp(-sum(times) / constant_s)
    assert found.instances[KEY].used_cpus == pytest.approx(use, abs=left * NEARLY + 1e-6)


FIELDS = ("cpu_s", "waiting_s", "stalled_s", "throttled_s")
counts = st.one_of(st.none(), st.floats(0, 1e6))
readings = st.builds(
    InstanceSample,
    at_s=st.floats(0, 1e4),
    cpu_s=counts,
    waiting_s=counts,
    stalled_s=counts,
    throttled_s=counts,
)
node_readings = st.builds(
    NodeSample, busy_s=counts, hits=st.none() | st.integers(0, 100), misses=st.none() | st.integers(0, 100)
)


@given(st.lists(st.tuples(readings, node_readings), min_size=2, max_size=8))
def test_no_number_is_made_of_an_interval_that_says_nothing(pairs: list[tuple[InstanceSample, NodeSample]]) -> None:
    samples = [Sample(at_s=one.at_s, instances={KEY: one}, nodes={0: node}) for one, node in pairs]
    found = _run(samples)
    for (last, last_node), (now, now_node), after in zip(pairs, pairs[1:], found[1:], strict=False):
        known, busy = after.instances[KEY], after.nodes[0]
        time_known = 0 < now.at_s - last.at_s <= GAP_S
        back = any(_grown(getattr(last, name), getattr(now, name)) is False for name in FIELDS)
        for name, rate in (
            ("cpu_s", known.used_cpus),
            ("cpu_s", known.wanted_cpus),
            ("waiting_s", known.waiting),
            ("stalled_s", known.stalled),
            ("throttled_s", known.throttled),
        ):
            if not time_known or back or not _grown(getattr(last, name), getattr(now, name)):
                assert rate is None
            assert rate is None or 0 <= rate <= len(HOST.online) * 1.1
        for name, rate in (("busy_s", busy.busy_cpus), ("hits", busy.hits_per_s), ("misses", busy.misses_per_s)):
            if not time_known or not _grown(getattr(last_node, name), getattr(now_node, name)):
                assert rate is None
        assert busy.other_cpus is None or (busy.busy_cpus is not None and 0 <= busy.other_cpus <= 8 * 1.1)


def _grown(before: float | None, now: float | None) -> bool | None:
    """None when it is not known."""
    return None if before is None or now is None else now >= before


@given(uses, parts, parts, st.none() | parts, st.floats(0, 64))
def test_wanted_is_between_use_and_limit_and_grows_with_waiting(
    used: float, one: float, other: float, throttled: float | None, limit: float
) -> None:
    less, more = sorted((one, other))
    wanted = [rates.wanted_cpus(used, waiting, throttled, limit) for waiting in (less, more)]
    assert used <= wanted[0] <= wanted[1] <= max(used, limit)


@given(uses, parts, st.floats(0, 64))
def test_little_use_never_becomes_much_more(used: float, waiting: float, limit: float) -> None:
    assert rates.wanted_cpus(used, waiting, 0.0, limit) <= max(20 * used, used + waiting)


@given(st.integers(1, 16), st.floats(0.06, 1.0))
def test_wanted_of_tasks_that_compute_all_the_time_is_their_number_wherever_they_are(tasks: int, share: float) -> None:
    """Each of them has a CPU for a part of the time, and waits for it in the rest."""
    assert rates.wanted_cpus(tasks * share, 1 - share, 0.0, 16) == pytest.approx(tasks)


@st.composite
def _crowds(draw: st.DrawFn) -> tuple[Snapshot, list[Sample]]:
    """Instances of any place that come, go, move nowhere and are sampled three times."""
    names = [f"i{index}" for index in range(draw(st.integers(1, 6)))]
    places = st.sampled_from(
        [builders.decided("0", "0-3"), builders.decided("0-1", "2-9"), Observed(nodes=NodeSet([1])), Observed()]
    )
    instances = [builders.instance(name, vcpus=2) for name in names]
    observed = {one.key: draw(places) for one in instances}
    samples = []
    for turn in range(3):
        at_s = 10.0 * turn
        there = [one.key for one in instances if draw(st.integers(0, 4))]
        samples.append(
            Sample(
                at_s=at_s,
                instances={
                    key: InstanceSample(at_s=at_s, cpu_s=draw(st.none() | st.floats(0, 3)) if turn else 0.0)
                    for key in there
                },
                nodes={0: NodeSample(busy_s=at_s * 7), 1: NodeSample(busy_s=at_s * 2)},
            )
        )
    return builders.snapshot(HOST, *instances, observed=observed), samples


@given(_crowds(), st.randoms())
def test_order_of_instances_does_not_matter(crowd: tuple[Snapshot, list[Sample]], chance: Random) -> None:
    snapshot, samples = crowd
    mixed = list(snapshot.instances)
    chance.shuffle(mixed)
    others = []
    for sample in samples:
        items = list(sample.instances.items())
        chance.shuffle(items)
        others.append(replace(sample, instances=dict(items)))
    assert _run(samples, snapshot=snapshot) == _run(others, snapshot=replace(snapshot, instances=tuple(mixed)))


@given(_crowds())
def test_only_what_was_sampled_last_has_rates(crowd: tuple[Snapshot, list[Sample]]) -> None:
    snapshot, samples = crowd
    for sample, found in zip(samples, _run(samples, snapshot=snapshot), strict=True):
        assert found.sample is sample
        assert found.instances.keys() == sample.instances.keys() == found.cpus_by_instance.keys()
        assert found.nodes.keys() == sample.nodes.keys() == found.cpus_by_node.keys()
        load = rates.load_of(found)
        assert load.cpus_by_instance.keys() == {k for k, v in found.instances.items() if v.wanted_cpus is not None}


def test_nothing_is_left_of_an_instance_after_one_sample_without_it() -> None:
    first, last = _busy([(10.0, 1.0)]), _busy([(10.0, 1.0), (10.0, 1.0), (10.0, 1.0)])[-1]
    found = _run([*first, Sample(at_s=1020.0), last])[-1]
    assert (found.instances, found.nodes) == ({KEY: InstanceRates()}, {0: NodeRates()})
