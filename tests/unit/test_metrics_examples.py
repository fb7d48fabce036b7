"""The files for Prometheus and Grafana in examples/, and docs/metrics.md, speak of what is exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import exported

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ADDED = {"job", "instance"}
"""Labels that Prometheus adds."""

SELECTOR = re.compile(r"(incus_numa_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|=)\s*"([^"]*)"')
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed"
)

Labels = Mapping[str, set[str]]


def series() -> Mapping[str, Labels]:
    """Each name that can be asked for, with its labels and what values they have."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in exported.families():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def problems(expr: str) -> list[str]:
    """What an expression asks for that is not exported."""
    known, found = series(), []
    for name, matchers in SELECTOR.findall(expr):
        for label, values in MATCHER.findall(matchers):
            if label not in known.get(name, {}) and label not in ADDED:
                found.append(f"{name} has no label {label}")
            elif label not in ADDED:
                found += [f"{name} never has {label}={one}" for one in set(values.split("|")) - known[name][label]]
        if name not in known:
            found.append(f"{name} is not exported")
    return found


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ('sum(incus_numa_instances{instance=~"$host",state="placed"})', []),
        ("incus_numa_nodes", ["incus_numa_nodes is not exported"]),
        ('incus_numa_instances{node="0"}', ["incus_numa_instances has no label node"]),
        ('incus_numa_instances{state=~"placed|lost"}', ["incus_numa_instances never has state=lost"]),
    ],
)
def test_problems_of_expressions_are_found(expr: str, expected: list[str]) -> None:
    assert problems(expr) == expected


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_exported_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert problems(rule["expr"]) == []
    assert "incus_numa_" in rule["expr"] or rule["expr"] == 'up{job="incus-numa"} == 0'
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert "instance" in told
    assert told <= ADDED | {label for labels in series().values() for label in labels}
    assert len(re.findall(r"\w[.;] |\w[.;]$", rule["annotations"]["description"])) >= 2


def test_every_alert_is_tested() -> None:
    told = (EXAMPLES / "alerts-test.yml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', told)) == {rule["alert"] for rule in rules()}


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", EXAMPLES / "prometheus.yml")
    promtool("check", "rules", EXAMPLES / "alerts.yml")


@needs_promtool
def test_alerts_are_there_when_they_have_to_be() -> None:
    promtool("test", "rules", EXAMPLES / "alerts-test.yml")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def exprs() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def datasources(value: object) -> Iterator[object]:
    """All `datasource` there are, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "datasource":
                yield inner
            yield from datasources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from datasources(inner)


TARGET_KEYS = {"refId", "datasource", "expr", "legendFormat", "editorMode", "range", "instant", "format"}
PANEL_KEYS = {
    "id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets",
    "transformations",
}  # fmt: skip
DASHBOARD_KEYS = {
    "__inputs", "__elements", "__requires", "annotations", "description", "editable", "fiscalYearStartMonth",
    "graphTooltip", "id", "links", "liveNow", "panels", "refresh", "schemaVersion", "style", "tags", "templating",
    "time", "timepicker", "timezone", "title", "uid", "version", "weekStart",
}  # fmt: skip


def test_the_dashboard_can_be_imported() -> None:
    found = dashboard()
    assert set(found) == DASHBOARD_KEYS
    # Grafana gives a dashboard its number when it is imported.
    assert found["id"] is None
    assert [(one["name"], one["type"], one["pluginId"]) for one in found["__inputs"]] == [
        ("DS_PROMETHEUS", "datasource", "prometheus")
    ]
    kinds = {panel["type"] for panel in panels()} - {"row"}
    assert {one["id"] for one in found["__requires"] if one["type"] == "panel"} == kinds
    ours = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    builtin = {"type": "grafana", "uid": "-- Grafana --"}
    assert [one for one in datasources(found) if one not in (ours, builtin)] == []
    assert [variable["name"] for variable in found["templating"]["list"]] == ["host"]


def test_panels_have_what_grafana_needs() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert set(panel["gridPos"]) == {"h", "w", "x", "y"}
        if panel["type"] == "row":
            assert set(panel) == {"id", "type", "title", "collapsed", "gridPos", "panels"}
            continue
        assert set(panel) | {"transformations"} == PANEL_KEYS
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        for target in panel["targets"]:
            assert set(target) | {"format"} == TARGET_KEYS


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in panels():
        spot = panel["gridPos"]
        assert spot["x"] >= 0
        assert spot["x"] + spot["w"] <= 24
        for x in range(spot["x"], spot["x"] + spot["w"]):
            for y in range(spot["y"], spot["y"] + spot["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"], panel["title"]


def test_the_dashboard_shows_all_that_is_exported_and_nothing_else() -> None:
    assert [problem for expr in exprs() for problem in problems(expr)] == []
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for expr in exprs() for name, _ in SELECTOR.findall(expr)}
    assert shown == {name for name, _ in documented_names()}


def test_expressions_are_about_the_chosen_hosts_and_legends_have_labels_that_are_there() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            asked = SELECTOR.findall(target["expr"])
            assert all('instance=~"$host"' in matchers for _, matchers in asked), target["expr"]
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            aggregated = re.search(r"by \(([^)]*)\)", target["expr"])
            kept = set(aggregated[1].split(", ")) if aggregated else ADDED | set(series()[asked[0][0]])
            assert labels <= kept, target


@needs_promtool
def test_promtool_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{count}", "expr": expr.replace("$__rate_interval", "5m").replace("$host", ".*")}
        for count, expr in enumerate(exprs())
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def documented_names() -> set[tuple[str, str]]:
    return {
        (family.name + ("_total" if family.type == "counter" else ""), family.type) for family in exported.families()
    }


def test_every_metric_is_in_the_docs_with_its_type_and_labels() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"(?m)^\| `(incus_numa_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", text)
    written = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    known = series()
    sampled = {name: name + ("_count" if kind == "histogram" else "") for name, kind in documented_names()}
    assert written == {name: (kind, set(known[sampled[name]])) for name, kind in documented_names()}
    assert len(rows) == len(written)


def test_the_docs_name_all_values_of_short_lists() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    known = series()
    asked = {
        "incus_numa_instances": ("state",),
        "incus_numa_passes_total": ("scope", "result"),
        "incus_numa_moves_total": ("result",),
        "incus_numa_steps_total": ("kind", "result"),
        "incus_numa_server_calls_total": ("result",),
    }
    for name, labels in asked.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        values = {value for label in labels for value in known[name][label]}
        assert {value for value in values if f"`{value}`" not in row} == set(), name
