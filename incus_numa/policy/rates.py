"""Rates from counters: what two samples say happened between them, smoothed. Called by `daemon.measuring`.

A rate is unknown, never a number, where one of its two readings is missing, a counter went back or grew faster than it
can, or the clock stood still, went back or jumped. A smoothed rate becomes unknown with it and starts anew with the
next interval that is known: what it was before says nothing about an instance that was started again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import expm1, fsum
from typing import NamedTuple

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.sample import InstanceRates, InstanceSample, NodeRates, NodeSample, Rates, Sample
from incus_numa.model.snapshot import NOTHING, Snapshot
from incus_numa.policy.ledger import usable_cpus

GAP_S = 60.0
"""Two samples farther apart than this, and than GAP_CONSTANTS time constants, say nothing about the time between."""

GAP_CONSTANTS = 4

SLACK = 1.1
"""A rate may be so many times what is possible: files are not all read in the same instant. A higher one is garbage."""

MOST_TIMES = 20
"""Waiting makes a use at most so many times as much, or one CPU more: see `wanted_cpus`."""


def smooth(before: Rates | None, sample: Sample, snapshot: Snapshot, time_constant_s: float) -> Rates:
    """The rates once a sample is known, too. What is older than the time constant (seconds) counts less than 1/e.

    Instances and nodes that are not in the sample are dropped. The snapshot says which CPUs each instance may use.
    """
    before = before or Rates(sample=Sample(at_s=sample.at_s))
    ground = _Ground(snapshot)
    raw: dict[InstanceKey, InstanceRates] = {}
    instances: dict[InstanceKey, InstanceRates] = {}
    for key, now in sample.instances.items():
        last = before.sample.instances.get(key)
        interval = None if last is None else _interval(last.at_s, now.at_s, time_constant_s)
        if last is None or interval is None:
            raw[key] = instances[key] = InstanceRates(memory_by_node=now.memory_by_node)
        else:
            raw[key] = _instance_rates(last, now, interval, ground, key)
            instances[key] = _blend_instance(before.instances.get(key), raw[key], interval)
    interval = _interval(before.sample.at_s, sample.at_s, time_constant_s)
    return Rates(
        sample=sample,
        instances=instances,
        nodes=_node_rates(before, sample, raw, interval, ground),
        cpus_by_instance={key: ground.cpus_of(key) for key in sample.instances},
        cpus_by_node={node: ground.cpus_by_node.get(node, CpuSet()) for node in sample.nodes},
    )


def load_of(rates: Rates | None) -> Load:
    """The load that plans are decided from: what is known of it. Empty before the second sample."""
    if rates is None:
        return Load()
    return Load(
        cpus_by_instance={key: one.wanted_cpus for key, one in rates.instances.items() if one.wanted_cpus is not None},
        other_by_node={node: one.other_cpus for node, one in rates.nodes.items() if one.other_cpus is not None},
    )


def wanted_cpus(used: float, waiting: float | None, throttled: float | None, limit: float) -> float:
    """CPUs that an instance would use if nobody competed with it: at least those it uses, at most `limit` or those.

    `waiting` is the part of the time in which at least one of its tasks waited for a CPU ("some" in
    Documentation/accounting/psi.rst), averaged over the CPUs that it keeps busy or waits for. While one task per CPU
    computes or waits all the time, waiting is what it lacks of each, so `used / (1 - waiting)` is exactly their number,
    however many others there are and whatever their weight. So the estimate does not change when the instance is moved
    to where it gets all that it wants, and moves decided from it stay right. More tasks than CPUs always wait, and
    give the limit.

    As waiting comes near to 1 the quotient multiplies the error of both rates, and a few busy moments of an idle
    instance would make it want the machine. From 95 % on it counts as MOST_TIMES the use, or one waiting task more,
    which is all that is certain.

    When the instance is throttled for half of that time or more, its own quota makes it wait and no place would help:
    then, and when either is unknown, it wants what it uses.
    """
    if not waiting or throttled is None or throttled >= waiting / 2:
        return used
    bound = max(MOST_TIMES * used, used + waiting)
    estimate = min(bound, used / (1 - waiting)) if waiting < 1 else bound
    return max(used, min(limit, estimate))


class _Interval(NamedTuple):
    """Between two samples: how long it was, and how much a rate of it counts against older ones."""

    seconds: float
    weight: float


class _Ground:
    """What of the snapshot rates need to know."""

    def __init__(self, snapshot: Snapshot) -> None:
        machine = snapshot.machine
        self._observed = snapshot.observed
        self._demands = {instance.key: instance.demand for instance in snapshot.instances}
        self._usable = usable_cpus(machine, CpuSet())
        self._all = CpuSet.from_mask(sum(cpus.mask for cpus in self._usable.values()))
        self.online = machine.online
        self.cpus_by_node = {node.id: node.cpus & machine.online for node in machine.nodes}
        self._node_of = {cpu: node for node, cpus in reversed(self.cpus_by_node.items()) for cpu in cpus}
        self._cpus: dict[InstanceKey, CpuSet] = {}
        self._shares: dict[int, Mapping[int, float]] = {}

    def cpus_of(self, key: InstanceKey) -> CpuSet:
        """The CPUs that an instance runs on: those it has, else all of its nodes, else the whole machine."""
        found = self._cpus.get(key)
        if found is None:
            found = self._cpus[key] = self._find_cpus(key)
        return found

    def limit(self, key: InstanceKey) -> int:
        """How many CPUs an instance may use at a time."""
        demand = self._demands.get(key)
        decided = self._observed.get(key, NOTHING).decided
        if decided is not None and decided.cpus:
            return len(self.cpus_of(key))
        if demand is None or demand.vcpus is None or demand.pinned_cpus is not None:
            return len(self.cpus_of(key))
        return min(demand.vcpus, len(self._all))

    def shares(self, cpus: CpuSet) -> Mapping[int, float]:
        """The parts of the CPUs that are on each node; nodes without any are left out."""
        found = self._shares.get(cpus.mask)
        if found is None:
            found = self._shares[cpus.mask] = self._spread(cpus)
        return found

    def _spread(self, cpus: CpuSet) -> Mapping[int, float]:
        found: dict[int, float] = {}
        rest, whole = cpus.mask, len(cpus)
        # Going from node to node of the set, and not over all nodes for each instance, takes a fifth of the time.
        while rest:
            cpu = (rest & -rest).bit_length() - 1
            node = self._node_of.get(cpu)
            own = 1 << cpu if node is None else self.cpus_by_node[node].mask & rest
            if node is not None:
                found[node] = own.bit_count() / whole
            rest &= ~own
        return found

    def _find_cpus(self, key: InstanceKey) -> CpuSet:
        observed, demand = self._observed.get(key, NOTHING), self._demands.get(key)
        decided = observed.decided
        for cpus in (demand and demand.pinned_cpus, decided and decided.cpus, observed.cpus):
            here = cpus & self.online if cpus else None
            if here:
                return here
        nodes = observed.home or ()
        here = CpuSet.from_mask(sum(self._usable[node].mask for node in nodes if node in self._usable))
        return here or self._all


def _interval(before_s: float, now_s: float, time_constant_s: float) -> _Interval | None:
    seconds = now_s - before_s
    if not 0 < seconds <= max(GAP_S, GAP_CONSTANTS * time_constant_s):
        return None
    return _Interval(seconds, -expm1(-seconds / time_constant_s))


def _instance_rates(
    last: InstanceSample, now: InstanceSample, interval: _Interval, ground: _Ground, key: InstanceKey
) -> InstanceRates:
    """Rates of one interval."""
    if _started_again(last, now):
        return InstanceRates(memory_by_node=now.memory_by_node)
    seconds, most = interval.seconds, len(ground.online)
    used = _rate(last.cpu_s, now.cpu_s, seconds, most)
    waiting = _part(last.waiting_s, now.waiting_s, seconds, 1)
    # The kernel adds up the throttled time of all CPUs.
    throttled = _part(last.throttled_s, now.throttled_s, seconds, most)
    wanted = used
    if used is not None and waiting:
        # The counter is in the file that CPU use is read from: where it never is, there are no quotas.
        free = last.throttled_s is None and now.throttled_s is None
        wanted = wanted_cpus(used, waiting, 0.0 if free else throttled, ground.limit(key))
    return InstanceRates(
        used_cpus=used,
        wanted_cpus=wanted,
        waiting=waiting,
        stalled=_part(last.stalled_s, now.stalled_s, seconds, 1),
        throttled=throttled,
        memory_by_node=now.memory_by_node,
    )


def _started_again(last: InstanceSample, now: InstanceSample) -> bool:
    """Whether a counter went back: then the others are of another run, too, even if they are higher by chance."""
    return (
        _went_back(last.cpu_s, now.cpu_s)
        or _went_back(last.waiting_s, now.waiting_s)
        or _went_back(last.stalled_s, now.stalled_s)
        or _went_back(last.throttled_s, now.throttled_s)
    )


def _blend_instance(before: InstanceRates | None, raw: InstanceRates, interval: _Interval) -> InstanceRates:
    if before is None:
        return raw
    return InstanceRates(
        used_cpus=_blend(before.used_cpus, raw.used_cpus, interval),
        wanted_cpus=_blend(before.wanted_cpus, raw.wanted_cpus, interval),
        waiting=_blend(before.waiting, raw.waiting, interval),
        stalled=_blend(before.stalled, raw.stalled, interval),
        throttled=_blend(before.throttled, raw.throttled, interval),
        memory_by_node=raw.memory_by_node,
    )


def _node_rates(
    before: Rates,
    sample: Sample,
    raw: Mapping[InstanceKey, InstanceRates],
    interval: _Interval | None,
    ground: _Ground,
) -> Mapping[int, NodeRates]:
    """Smoothed rates of all nodes. `raw` has the rates of this interval."""
    by_instances, unclear = _used_on_nodes(before, sample, raw, ground)
    nodes: dict[int, NodeRates] = {}
    for node, now in sample.nodes.items():
        last, old = before.sample.nodes.get(node), before.nodes.get(node, NodeRates())
        if last is None or interval is None:
            nodes[node] = NodeRates(free_bytes=now.free_bytes)
            continue
        busy = _busy_cpus(last, now, interval, before.cpus_by_node.get(node), ground.cpus_by_node.get(node))
        other = None if busy is None else max(0.0, busy - fsum(by_instances.get(node, ())))
        kept = busy is not None and node in unclear
        nodes[node] = NodeRates(
            busy_cpus=_blend(old.busy_cpus, busy, interval),
            other_cpus=old.other_cpus if kept else _blend(old.other_cpus, other, interval),
            free_bytes=now.free_bytes,
            hits_per_s=_blend(old.hits_per_s, _rate(last.hits, now.hits, interval.seconds), interval),
            misses_per_s=_blend(old.misses_per_s, _rate(last.misses, now.misses, interval.seconds), interval),
        )
    return nodes


def _used_on_nodes(
    before: Rates, sample: Sample, raw: Mapping[InstanceKey, InstanceRates], ground: _Ground
) -> tuple[Mapping[int, list[float]], set[int]]:
    """CPUs that instances kept busy on each node, one by one, and the nodes of which that cannot be told.

    These are the nodes of an instance that came, left, moved, or is not known in this interval. One that is never known
    counts as what else keeps the nodes busy.
    """
    found: defaultdict[int, list[float]] = defaultdict(list)
    unclear: set[int] = set()
    for key, last_cpus in before.cpus_by_instance.items():
        cpus = ground.cpus_of(key) if key in raw else None
        used = raw[key].used_cpus if key in raw else None
        if cpus is None or cpus != last_cpus:
            unclear.update(ground.shares(last_cpus), ground.shares(cpus) if cpus else ())
        elif used is not None:
            for node, part in ground.shares(cpus).items():
                found[node].append(used * part)
        elif before.sample.instances[key].cpu_s is not None or sample.instances[key].cpu_s is not None:
            unclear.update(ground.shares(cpus))
    for key in raw.keys() - before.cpus_by_instance.keys():
        unclear.update(ground.shares(ground.cpus_of(key)))
    return found, unclear


def _busy_cpus(
    last: NodeSample, now: NodeSample, interval: _Interval, last_cpus: CpuSet | None, cpus: CpuSet | None
) -> float | None:
    # What a CPU did before it came online, or until it went, would count as done in this interval.
    if cpus is None or cpus != last_cpus:
        return None
    return _rate(last.busy_s, now.busy_s, interval.seconds, len(cpus))


def _rate(before: float | None, now: float | None, seconds: float, most: float | None = None) -> float | None:
    """Growth per second; None when it is unknown, negative, or more than `most` with some slack."""
    if before is None or now is None or now < before:
        return None
    rate = (now - before) / seconds
    return None if most is not None and rate > most * SLACK else rate


def _part(before: float | None, now: float | None, seconds: float, most: float) -> float | None:
    """A part of the time, 0 to 1; None as `_rate`."""
    rate = _rate(before, now, seconds, most)
    return None if rate is None else min(1.0, rate)


def _went_back(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now < before


def _blend(before: float | None, now: float | None, interval: _Interval) -> float | None:
    """The smoothed rate; the first known one is taken as it is."""
    if before is None or now is None:
        return now
    return before + (now - before) * interval.weight
