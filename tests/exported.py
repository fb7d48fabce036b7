"""Metrics with something of everything, for those who compare what is written about them with what is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

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
    Step,
    StepResult,
    WriteCpus,
    WriteMems,
)
from incus_numa.model.rebalance import Hold, Move, MoveRecord
from incus_numa.web.metrics import Metrics
from incus_numa.web.protocol import Gauges, InstanceGauges, NodeGauges

Samples = dict[str, float]
"""Samples as `name{label=value}`, without the prefix that all have."""

KEY = InstanceKey("default", "db")
ZERO, ONE = NodeSet([0]), NodeSet([1])
NODE = NodeGauges(
    cpus=16,
    usable_cpus=14,
    committed_vcpus=20.0,
    load=0.5,
    memory_bytes=64 << 30,
    free_bytes=32 << 30,
    committed_bytes=48 << 30,
    reserved_bytes=2 << 30,
)
PLAIN = InstanceGauges(key=KEY, nodes=1, load_cpus=3.5, locality=0.75)


def samples(metrics: Metrics, gauges: Gauges | None = None, max_instances: int = 1000) -> Samples:
    """Every sample as `name{label=value}`, without the prefix that all have."""
    text, _ = metrics.render(gauges or Gauges(), max_instances, openmetrics=False)
    return {
        _name(one.name, one.labels): one.value
        for family in text_string_to_metric_families(text.decode())
        for one in family.samples
    }


def _name(name: str, labels: Mapping[str, str]) -> str:
    assert name.startswith("incus_numa_")
    told = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return name.removeprefix("incus_numa_") + (f"{{{told}}}" if told else "")


def step(one: Step, outcome: Outcome = Outcome.DONE) -> StepTaken:
    return StepTaken(result=StepResult(step=one, outcome=outcome))


MOVE = Move(key=KEY, before=ZERO, after=ONE, gain=1.0, price=0.1, load_cpus=3.0)

COUNTED: list[tuple[Notice, Samples]] = [
    (
        PassEnded(scope=Scope.EVERYTHING, took_s=0.5),
        {
            "passes_total{result=ok,scope=everything}": 1,
            "pass_duration_seconds_count{scope=everything}": 1,
            "pass_duration_seconds_sum{scope=everything}": 0.5,
        },
    ),
    (
        PassEnded(scope=Scope.LOAD, took_s=2.0, error="the server does not answer"),
        {
            "passes_total{result=failed,scope=load}": 1,
            "pass_duration_seconds_count{scope=load}": 1,
            "pass_duration_seconds_sum{scope=load}": 2.0,
        },
    ),
    (
        step(PatchNodes(key=KEY, nodes=ONE, before=ZERO), Outcome.FORBIDDEN),
        {"steps_total{kind=patch-nodes,result=forbidden}": 1},
    ),
    (
        step(WriteCpus(key=KEY, cpus=CpuSet([1]), before=None)),
        {"steps_total{kind=write-cpus,result=done}": 1},
    ),
    (
        step(WriteMems(key=KEY, mems=ONE, before=None), Outcome.BUSY),
        {"steps_total{kind=write-mems,result=busy}": 1},
    ),
    (
        step(MovePages(key=KEY, sources=ZERO, targets=ONE, size_bytes=9), Outcome.CUT),
        {"steps_total{kind=move-pages,result=cut}": 1},
    ),
    (
        step(PinThreads(key=KEY, cpus=CpuSet([1]), around=CpuSet([1]), before=None), Outcome.GONE),
        {"steps_total{kind=pin-threads,result=gone}": 1},
    ),
    (
        StartPlaced(key=KEY, nodes=ONE, cpus=CpuSet([1]), took_s=0.02),
        {"start_placed_seconds_count": 1, "start_placed_seconds_sum": 0.02},
    ),
    (
        Refused(rejection=Rejection(key=KEY, reason=Reason.NO_MEMORY, detail="")),
        {"rejections_total{reason=no-memory}": 1},
    ),
    (CpusetCorrected(key=KEY), {"cpuset_corrections_total": 1}),
    (
        # The bytes are told while they move, too, and count once.
        MoveMade(record=MoveRecord(at_s=1e9, move=MOVE, result="moved", moved_bytes=5)),
        {"moves_total{result=moved}": 1},
    ),
    (MoveHeld(key=KEY, hold=Hold.COOL_DOWN, detail=""), {"moves_held_total{reason=cool-down}": 1}),
    (MemoryFollowed(key=KEY, moved_bytes=4096, took_s=0.1), {"memory_moved_bytes_total": 4096}),
    (StreamOpened(again=False), {"event_stream_connections_total": 1}),
    (StreamOpened(again=True), {"event_stream_connections_total": 1, "event_gaps_total": 1}),
    (
        ServerCalled(call="GET /1.0/instances", took_s=0.25),
        {
            "server_calls_total{call=GET /1.0/instances,result=ok}": 1,
            "server_call_duration_seconds_count{call=GET /1.0/instances}": 1,
            "server_call_duration_seconds_sum{call=GET /1.0/instances}": 0.25,
        },
    ),
    (
        ServerCalled(call="PATCH /1.0/instances/NAME", took_s=0.25, error="busy"),
        {
            "server_calls_total{call=PATCH /1.0/instances/NAME,result=busy}": 1,
            "server_call_duration_seconds_count{call=PATCH /1.0/instances/NAME}": 1,
            "server_call_duration_seconds_sum{call=PATCH /1.0/instances/NAME}": 0.25,
            "server_retries_total": 1,
        },
    ),
    (
        ServerCalled(call="GET /1.0/instances/NAME", took_s=0.5, error="gone"),
        {
            "server_calls_total{call=GET /1.0/instances/NAME,result=gone}": 1,
            "server_call_duration_seconds_count{call=GET /1.0/instances/NAME}": 1,
            "server_call_duration_seconds_sum{call=GET /1.0/instances/NAME}": 0.5,
        },
    ),
    (SettingsChanged(), {"settings_changes_total": 1}),
]


def busy() -> tuple[Metrics, Gauges]:
    """Something of everything."""
    metrics = Metrics()
    for notice, _ in COUNTED:
        metrics.take(notice)
    return metrics, Gauges(
        nodes={0: NODE, 10: NODE, 2: replace(NODE, load=None)},
        instances=(PLAIN, InstanceGauges(key=InstanceKey("ci", 'a"b'), nodes=2, load_cpus=None, locality=None)),
        states={"placed": 2, "unmanaged": 5},
        refused={"no-cpus": 1},
        imbalance=1.5,
        connected=True,
    )


def families() -> Sequence[Metric]:
    """All metrics that are exported, with samples of each."""
    metrics, gauges = busy()
    text, _ = metrics.render(gauges, 1000, openmetrics=False)
    return list(text_string_to_metric_families(text.decode()))
