"""What the service has done, and what is known now, as Prometheus reads it. The API calls it; pure.

Counters and histograms grow with the notices that are taken. Gauges are made anew from a value each time, so nothing
stays of a node or an instance that is gone. docs/metrics.md says what each of them means.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import product
from typing import assert_never

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from incus_numa import __version__
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
from incus_numa.model.plan import Outcome, Reason
from incus_numa.model.rebalance import Hold
from incus_numa.server import decode
from incus_numa.web.protocol import Gauges, InstanceGauges, NodeGauges
from incus_numa.web.telling import STEP_KINDS

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the text that every Prometheus reads."""

_COUNTER_HEAD = re.compile(rb"(?m)^(# (?:HELP|TYPE) \w+)_total ")

START_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Starts are placed in tens of milliseconds; those that wait for the server's lock take longer."""

PASS_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Cpusets are put right in milliseconds, a look at 1000 instances takes seconds, moves wait for memory to follow."""

CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Single instances are told in about a millisecond, listings take longer; by default 30 s is the limit."""

OK, FAILED, CANCELLED = "ok", "failed", "cancelled"
BUSY, UNREACHABLE = "busy", "unreachable"
CALLS = (
    decode.INFO_REQUEST,
    decode.LIST_REQUEST,
    decode.INSTANCE_REQUEST,
    decode.STATE_REQUEST,
    decode.PROJECTS_REQUEST,
    decode.RESOURCES_REQUEST,
    decode.PATCH_REQUEST,
)
CALL_RESULTS = (OK, BUSY, "gone", "forbidden", UNREACHABLE, CANCELLED, FAILED)
MOVE_RESULTS = ("moved", CANCELLED, FAILED, "gone")
STATES = ("placed", "differs", "refused", "unmanaged")


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self) -> None:
        # When a counter was made is when the service was started: a series more for each would tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._count_passes(registry)
        self._count_moves(registry)
        self._count_server_calls(registry)
        self._settings_changes = _counter(
            registry, "settings_changes_total", "Times that other settings came in force."
        )
        build = Info("incus_numa_build", "Version of incus-numa, and of the Python that runs it.", registry=registry)
        build.info({"version": __version__, "python": ".".join(map(str, sys.version_info[:3]))})

    def _count_passes(self, registry: CollectorRegistry) -> None:
        scopes = _values(Scope)
        self._passes = _counter(registry, "passes_total", "Passes that ended.", scope=scopes, result=(OK, FAILED))
        self._pass_duration = _histogram(
            registry, "pass_duration_seconds", "How long passes took.", PASS_BUCKETS_S, scope=scopes
        )
        self._start_placed = _histogram(
            registry,
            "start_placed_seconds",
            "Time from hearing of an instance's start until it was where it belongs.",
            START_BUCKETS_S,
        )
        # The service only ever carries out: nothing is a dry run.
        outcomes = tuple(one.value for one in Outcome if one is not Outcome.WOULD_DO)
        self._steps = _counter(
            registry, "steps_total", "Steps that were tried.", kind=tuple(STEP_KINDS.values()), result=outcomes
        )
        self._rejections = _counter(
            registry,
            "rejections_total",
            "Refusals of instances, once until the reason changes.",
            reason=_values(Reason),
        )
        self._corrections = _counter(
            registry, "cpuset_corrections_total", "Times that what others wrote to an instance's cpusets was undone."
        )

    def _count_moves(self, registry: CollectorRegistry) -> None:
        self._moves = _counter(
            registry, "moves_total", "Moves of instances because of their measured load.", result=MOVE_RESULTS
        )
        self._held = _counter(
            registry,
            "moves_held_total",
            "Instances that were left on a node that is too loaded, once until the reason changes.",
            reason=_values(Hold),
        )
        self._moved_bytes = _counter(
            registry, "memory_moved_bytes_total", "Memory that was moved to the nodes of its instance."
        )

    def _count_server_calls(self, registry: CollectorRegistry) -> None:
        self._connections = _counter(
            registry, "event_stream_connections_total", "Times that listening to the server's events began."
        )
        self._gaps = _counter(registry, "event_gaps_total", "Times that events of the server may have been missed.")
        self._calls = _counter(
            registry, "server_calls_total", "Requests to the server.", call=CALLS, result=CALL_RESULTS
        )
        self._call_duration = _histogram(
            registry,
            "server_call_duration_seconds",
            "How long requests to the server took.",
            CALL_BUCKETS_S,
            call=CALLS,
        )
        self._retries = _counter(
            registry, "server_retries_total", "Requests that the server could not answer yet, to be made again."
        )

    def take(self, notice: Notice) -> None:
        """Count what the service tells."""
        match notice:
            case PassEnded():
                self._passes.labels(notice.scope.value, OK if notice.error is None else FAILED).inc()
                self._pass_duration.labels(notice.scope.value).observe(notice.took_s)
            case StepTaken():
                self._steps.labels(STEP_KINDS[type(notice.result.step)], notice.result.outcome.value).inc()
            case StartPlaced():
                self._start_placed.observe(notice.took_s)
            case Refused():
                self._rejections.labels(notice.rejection.reason.value).inc()
            case CpusetCorrected():
                self._corrections.inc()
            case MoveMade():
                self._moves.labels(notice.record.result).inc()
            case MoveHeld():
                self._held.labels(notice.hold.value).inc()
            case MemoryFollowed():
                self._moved_bytes.inc(notice.moved_bytes)
            case StreamOpened():
                self._connections.inc()
                self._gaps.inc(notice.again)
            case ServerCalled():
                self._take_call(notice)
            case SettingsChanged():
                self._settings_changes.inc()
            case _:
                assert_never(notice)

    def _take_call(self, notice: ServerCalled) -> None:
        self._calls.labels(notice.call, notice.error or OK).inc()
        self._call_duration.labels(notice.call).observe(notice.took_s)
        self._retries.inc(notice.error == BUSY)

    def render(self, gauges: Gauges, max_instances: int, *, openmetrics: bool) -> tuple[bytes, str]:
        """Everything as text, and its content type; at most so many instances have metrics of their own, the first.

        It may run in another thread than `take`.
        """
        counted = generate_latest(self._registry)
        registry = CollectorRegistry()
        registry.register(_Present(gauges, max_instances))
        present = generate_latest(registry) + _render_instances(gauges.instances[:max_instances])
        if not openmetrics:
            return counted + present, TEXT
        # That is how the formats differ: a counter is called without its ending, and the last line says that it is one.
        return b"%b%b# EOF\n" % (_COUNTER_HEAD.sub(rb"\1 ", counted), present), CONTENT_TYPE_LATEST


class _Present(Collector):
    """The gauges of one moment, but for those of single instances."""

    def __init__(self, gauges: Gauges, max_instances: int) -> None:
        self._gauges = gauges
        self._max_instances = max_instances

    def collect(self) -> Iterator[Metric]:
        """All gauges. One without a value that is known has no sample."""
        gauges = self._gauges
        yield _single("server_connected", "Whether the server's events are heard.", gauges.connected)
        for name, text, node_value in _NODE_GAUGES:
            yield _family(
                name, text, ["node"], (((str(node),), node_value(one)) for node, one in sorted(gauges.nodes.items()))
            )
        yield _single("imbalance_ratio", "The highest measured load of a node over the mean of all.", gauges.imbalance)
        yield _counted("instances", "Running instances.", "state", STATES, gauges.states)
        yield _counted(
            "instances_refused", "Running instances that are refused.", "reason", _values(Reason), gauges.refused
        )
        yield _single(
            "instances_not_shown",
            "Managed instances without metrics of their own, as there are more than metrics.max_instances.",
            max(0, len(gauges.instances) - self._max_instances),
        )


_NODE_GAUGES: tuple[tuple[str, str, Callable[[NodeGauges], float | None]], ...] = (
    ("node_cpus", "Online CPUs of the node.", lambda one: one.cpus),
    ("node_usable_cpus", "CPUs that instances can have: neither isolated nor reserved.", lambda one: one.usable_cpus),
    ("node_committed_vcpus", "vCPUs of the instances on the node, by their weight.", lambda one: one.committed_vcpus),
    ("node_load_ratio", "Measured load: the part of the node's usable CPUs that is busy.", lambda one: one.load),
    ("node_memory_total_bytes", "Memory of the node.", lambda one: one.memory_bytes),
    ("node_memory_free_bytes", "Free memory of the node.", lambda one: one.free_bytes),
    ("node_memory_committed_bytes", "Memory that the instances on the node may take.", lambda one: one.committed_bytes),
    ("node_memory_reserved_bytes", "Memory of the node that is kept for the host.", lambda one: one.reserved_bytes),
)
_INSTANCE_GAUGES: tuple[tuple[str, str, Callable[[InstanceGauges], float | None]], ...] = (
    ("instance_nodes", "How many nodes the instance has.", lambda one: one.nodes),
    ("instance_load_cpus", "CPUs that the instance keeps busy.", lambda one: one.load_cpus),
    ("instance_locality_ratio", "The part of the instance's memory that is on its nodes.", lambda one: one.locality),
)


def _render_instances(shown: Sequence[InstanceGauges]) -> bytes:
    """The gauges of single instances as text, which is the same in both formats.

    It is written here, in a fifth of the time that it takes by way of samples: all of it keeps starts waiting.
    """
    labels = [f'{{instance_name="{_escape(one.key.name)}",project="{_escape(one.key.project)}"}}' for one in shown]
    lines = []
    for name, text, value in _INSTANCE_GAUGES:
        lines.append(f"# HELP incus_numa_{name} {text}\n# TYPE incus_numa_{name} gauge\n")
        values = zip(labels, map(value, shown), strict=True)
        lines += [f"incus_numa_{name}{label} {float(found)!r}\n" for label, found in values if found is not None]
    return "".join(lines).encode()


def _escape(text: str) -> str:
    """As a value of a label."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _single(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    return _family(name, text, [], [((), value)])


def _counted(name: str, text: str, label: str, known: Iterable[str], counts: Mapping[str, int]) -> GaugeMetricFamily:
    """A gauge by one label; each known value is there, be it with 0."""
    return _family(
        name, text, [label], (((value,), count) for value, count in (dict.fromkeys(known, 0) | dict(counts)).items())
    )


def _family(
    name: str, text: str, labels: list[str], samples: Iterable[tuple[tuple[str, ...], float | None]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"incus_numa_{name}", text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _counter(registry: CollectorRegistry, name: str, text: str, **labels: tuple[str, ...]) -> Counter:
    """A counter with a 0 for all values of its labels: a rate of what was not there before would miss the first one."""
    counter = Counter(f"incus_numa_{name}", text, tuple(labels), registry=registry)
    for values in product(*labels.values()) if labels else ():
        counter.labels(*values)
    return counter


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]
) -> Histogram:
    """A histogram that is there, empty, for all values of its labels."""
    histogram = Histogram(f"incus_numa_{name}", text, tuple(labels), registry=registry, buckets=buckets)
    for values in product(*labels.values()) if labels else ():
        histogram.labels(*values)
    return histogram


def _values(kind: type[Enum]) -> tuple[str, ...]:
    return tuple(one.value for one in kind)
