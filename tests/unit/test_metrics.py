"""What /metrics shows: counts of notices, and gauges of one moment."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import (
    CpusetCorrected,
    MoveHeld,
    Notice,
    Scope,
    StartPlaced,
)
from incus_numa.model.plan import Outcome, Reason
from incus_numa.model.rebalance import Hold
from incus_numa.server import decode
from incus_numa.web.metrics import CALLS, Metrics
from incus_numa.web.protocol import Gauges
from tests import exported
from tests.exported import COUNTED, KEY, NODE, ONE, PLAIN, Samples, busy, samples


def changed(*notices: Notice) -> Samples:
    """The samples that are no longer what they are of a new service, but those of buckets."""
    metrics = Metrics()
    before = samples(metrics)
    for notice in notices:
        metrics.take(notice)
    after = samples(metrics)
    assert after.keys() == before.keys()
    return {name: value for name, value in after.items() if value != before[name] and "_bucket" not in name}


@pytest.mark.parametrize(("notice", "expected"), COUNTED, ids=lambda one: type(one).__name__)
def test_each_notice_counts_where_it_belongs_and_nowhere_else(notice: Notice, expected: Samples) -> None:
    assert changed(notice) == expected


def test_notices_add_up() -> None:
    held = MoveHeld(key=KEY, hold=Hold.PRICE, detail="")
    assert changed(held, held, CpusetCorrected(key=KEY)) == {
        "moves_held_total{reason=price}": 2,
        "cpuset_corrections_total": 1,
    }


def test_a_start_falls_into_the_buckets_that_are_not_shorter() -> None:
    metrics = Metrics()
    metrics.take(StartPlaced(key=KEY, nodes=ONE, cpus=CpuSet([1]), took_s=0.06))
    buckets = {name: value for name, value in samples(metrics).items() if name.startswith("start_placed_seconds_b")}
    shorter = {"0.005": 0, "0.01": 0, "0.025": 0, "0.05": 0}
    longer = dict.fromkeys(["0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "+Inf"], 1)
    assert buckets == {f"start_placed_seconds_bucket{{le={le}}}": count for le, count in (shorter | longer).items()}


def test_all_values_of_labels_are_there_before_anything_happens() -> None:
    names = samples(Metrics())
    assert {name for name in names if name.startswith("rejections_total")} == {
        f"rejections_total{{reason={one.value}}}" for one in Reason
    }
    assert {name for name in names if name.startswith("instances_refused")} == {
        f"instances_refused{{reason={one.value}}}" for one in Reason
    }
    assert {name for name in names if name.startswith("moves_held")} == {
        f"moves_held_total{{reason={one.value}}}" for one in Hold
    }
    assert {name for name in names if name.startswith("passes_total")} == {
        f"passes_total{{result={result},scope={one.value}}}" for one in Scope for result in ("ok", "failed")
    }
    kinds = ("patch-nodes", "write-cpus", "write-mems", "move-pages", "pin-threads")
    outcomes = [one.value for one in Outcome if one is not Outcome.WOULD_DO]
    assert {name for name in names if name.startswith("steps_total")} == {
        f"steps_total{{kind={kind},result={one}}}" for kind in kinds for one in outcomes
    }
    assert {name for name in names if name.startswith("instances{")} == {
        f"instances{{state={one}}}" for one in ("placed", "differs", "refused", "unmanaged")
    }
    assert {value for name, value in names.items() if not name.startswith("build_info")} == {0.0}


def test_all_requests_to_the_server_are_known() -> None:
    told = {value for name, value in vars(decode).items() if name.endswith("_REQUEST")}
    assert set(CALLS) == told


def test_gauges_of_a_node() -> None:
    before = samples(Metrics())
    after = samples(Metrics(), Gauges(nodes={3: NODE}))
    assert {name: value for name, value in after.items() if name not in before} == {
        "node_cpus{node=3}": 16,
        "node_usable_cpus{node=3}": 14,
        "node_committed_vcpus{node=3}": 20,
        "node_load_ratio{node=3}": 0.5,
        "node_memory_total_bytes{node=3}": 64 << 30,
        "node_memory_free_bytes{node=3}": 32 << 30,
        "node_memory_committed_bytes{node=3}": 48 << 30,
        "node_memory_reserved_bytes{node=3}": 2 << 30,
    }


def test_gauges_of_an_instance() -> None:
    before = samples(Metrics())
    after = samples(Metrics(), Gauges(instances=(PLAIN,)))
    assert {name: value for name, value in after.items() if name not in before} == {
        "instance_nodes{instance_name=db,project=default}": 1,
        "instance_load_cpus{instance_name=db,project=default}": 3.5,
        "instance_locality_ratio{instance_name=db,project=default}": 0.75,
    }


def test_gauges_of_the_host() -> None:
    told = Gauges(states={"placed": 7, "unmanaged": 2}, refused={"no-memory": 1}, imbalance=1.25, connected=True)
    before, after = samples(Metrics()), samples(Metrics(), told)
    assert {name: value for name, value in after.items() if before.get(name) != value} == {
        "instances{state=placed}": 7,
        "instances{state=unmanaged}": 2,
        "instances_refused{reason=no-memory}": 1,
        "imbalance_ratio": 1.25,
        "server_connected": 1,
    }


def test_what_is_unknown_is_not_shown() -> None:
    node = replace(NODE, load=None, memory_bytes=None, free_bytes=None)
    one = replace(PLAIN, load_cpus=None, locality=None)
    shown = samples(Metrics(), Gauges(nodes={0: node}, instances=(one,)))
    assert {name for name in shown if "node=" in name or "instance_name=" in name} == {
        "node_cpus{node=0}",
        "node_usable_cpus{node=0}",
        "node_committed_vcpus{node=0}",
        "node_memory_committed_bytes{node=0}",
        "node_memory_reserved_bytes{node=0}",
        "instance_nodes{instance_name=db,project=default}",
    }
    assert "imbalance_ratio" not in shown


def test_nothing_stays_of_what_is_gone() -> None:
    metrics = Metrics()
    before = samples(metrics)
    after = samples(metrics, Gauges(nodes={0: NODE}, instances=(PLAIN,), refused={"no-memory": 1}, imbalance=2.0))
    assert after.keys() - before.keys() != set()
    assert samples(metrics) == before


@pytest.mark.parametrize(
    ("most", "shown", "left_out"), [(0, [], 3), (2, ["a", "b"], 1), (3, ["a", "b", "c"], 0), (9, ["a", "b", "c"], 0)]
)
def test_metrics_of_single_instances_are_bounded(most: int, shown: list[str], left_out: int) -> None:
    three = tuple(replace(PLAIN, key=InstanceKey("default", name)) for name in "abc")
    found = samples(Metrics(), Gauges(instances=three), most)
    assert [name for name in found if name.startswith("instance_nodes")] == [
        f"instance_nodes{{instance_name={name},project=default}}" for name in shown
    ]
    assert found["instances_not_shown"] == left_out


def test_the_same_gauges_with_another_bound_are_shown_anew() -> None:
    metrics, gauges = Metrics(), Gauges(instances=(PLAIN,))
    assert samples(metrics, gauges, 0)["instances_not_shown"] == 1
    assert samples(metrics, gauges, 1)["instances_not_shown"] == 0


@pytest.mark.parametrize("connected", [True, False])
def test_a_server_is_connected_while_its_events_are_heard(connected: bool) -> None:
    assert samples(Metrics(), Gauges(connected=connected))["server_connected"] == connected


def test_names_from_the_server_cannot_break_the_text() -> None:
    key = InstanceKey('a"b\\c\nd} 1', "é")
    text = Metrics().render(Gauges(instances=(replace(PLAIN, key=key),)), 1, openmetrics=False)[0].decode()
    labels = [
        one.labels
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name == "incus_numa_instance_nodes"
    ]
    assert labels == [{"project": key.project, "instance_name": key.name}]


def test_both_formats_tell_the_same() -> None:
    metrics, gauges = busy()
    plain, plain_type = metrics.render(gauges, 1000, openmetrics=False)
    opened, opened_type = metrics.render(gauges, 1000, openmetrics=True)
    assert plain_type == "text/plain; version=0.0.4; charset=utf-8"
    assert opened_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    one = [each for family in text_string_to_metric_families(plain.decode()) for each in family.samples]
    families = open_metrics.text_string_to_metric_families(opened.decode())  # type: ignore[no-untyped-call]
    other = [each for family in families for each in family.samples]
    assert sorted(map(repr, one)) == sorted(map(repr, other))


def test_names_and_labels_follow_the_conventions() -> None:
    families = exported.families()
    labels = {label for family in families for one in family.samples for label in one.labels}
    ours = {"node", "project", "instance_name", "state", "reason", "scope", "result", "kind", "call"}
    assert labels == ours | {"le", "version", "python"}
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    assert all(family.documentation.endswith(".") for family in families)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_promtool_has_no_complaint() -> None:
    metrics, gauges = busy()
    text, _ = metrics.render(gauges, 1000, openmetrics=False)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
