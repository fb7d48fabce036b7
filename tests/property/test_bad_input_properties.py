"""Whatever a file contains, it is read or refused with a reason, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.model.instance import MemoryMode
from incus_numa.policy import document, planner
from incus_numa.settings import PlacementSettings, Settings, parse_settings
from incus_numa.topology import document as machine_document
from tests import builders

MACHINE = builders.machine()

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["0-3", "3-1", "0-99999999", "balanced", "bind", ",", "0,,1", "vm", "container", "x" * 5000]),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ENTRY_KEYS = (
    *("project", "name", "type", "managed", "vcpus", "memory_bytes", "policy", "memory", "group", "avoid"),
    *("device_nodes", "load_cpus", "nodes", "cpus", "pinned_cpus", "movable", "cores", "exclusive", "hugepages"),
)
entries = st.dictionaries(st.sampled_from((*ENTRY_KEYS, "other")), values, max_size=5)
likely: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"])},
    optional={
        "vcpus": st.one_of(st.none(), st.integers(1, 1 << 20)),
        "memory_bytes": st.one_of(st.none(), st.integers(0, (1 << 63) - 1)),
        "nodes": st.sampled_from([None, "", "0", "0-3", "2,3"]),
        "cpus": st.sampled_from([None, "", "0-3", "99", "0-15"]),
        "pinned_cpus": st.sampled_from([None, "", "0", "0-15"]),
        "policy": st.sampled_from(["balanced", "none", "best-effort", "restricted", "single-numa-node"]),
        "memory": st.sampled_from([None, "local", "bind", "none"]),
        "load_cpus": st.floats(0, 1 << 20),
        "managed": st.booleans(),
        "cores": st.sampled_from([None, "any", "performance", "efficiency"]),
        "exclusive": st.booleans(),
        "hugepages": st.dictionaries(
            st.sampled_from(["2097152", "1073741824"]), st.integers(0, 1 << 20).map(lambda pages: pages << 30)
        ),
    },
)
MACHINE_KEYS = (
    *("name", "nodes", "cpus", "online", "isolated", "warnings", "id", "core", "l3", "socket", "distances"),
    *("hugepages", "memory_bytes", "kind", "2097152"),
)


def read_instances(text: bytes) -> None:
    snapshot = document.parse_snapshot(text, MACHINE, MemoryMode.LOCAL)
    plan = planner.plan(snapshot, PlacementSettings())
    json.dumps(document.render_plan(plan, 0.0), allow_nan=False)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"[" * 20_000)
@example(b'[{"name": "\xff"}]')
@example(b'[{"name": "\\ud800"}]')
def test_any_text_of_instances_is_planned_or_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        read_instances(text)


@given(st.lists(entries | likely, max_size=4) | values)
@example([{"name": "a", "vcpus": 1 << 20}, {"name": "b", "load_cpus": 1e308}])
@example([{"name": "a", "vcpus": 10**400}])
def test_any_json_of_instances_is_planned_or_refused(instances: Any) -> None:
    with contextlib.suppress(ConfigError):
        read_instances(json.dumps(instances).encode())


@given(st.lists(likely, max_size=3, unique_by=lambda entry: entry["name"]))
def test_valid_entries_are_planned(instances: list[dict[str, Any]]) -> None:
    read_instances(json.dumps(instances).encode())


@given(
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MACHINE_KEYS), inner)
    )
)
@example([])
def test_any_json_of_a_machine_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(ConfigError):
        machine_document.parse_machine(json.dumps(value))
    with contextlib.suppress(ConfigError):
        machine_document.parse_machine(json.dumps({"nodes": [{"id": 0, "cpus": "0"}, value]}))


@given(st.binary(max_size=60))
@example(b"[" * 20_000)
@example(b'{"nodes": ' + b"[" * 20_000)
def test_any_text_of_a_machine_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        machine_document.parse_machine(text)


TOML_PARTS = (
    *("[", "]", "[[", "]]", "=", ".", ",", "\n", '"', "'", '"""', "'''", "#", "\\", "{", "}", "-", "+", ":", " ", "\t"),
    *("server", "host", "placement", "daemon", "smt", "socket", "verify_s", "load_weight", "1", "0.5", "inf", "nan"),
    *("memory", "policy", "static", "reserved", "reserved_total", "8GiB"),
    *("true", "1979-05-27T07:32:00Z", "1e5", "0x", "_", "\\u", "\\uD800", "\x00", "é", "\r", "=="),
)


@given(st.lists(st.sampled_from(TOML_PARTS), max_size=14).map("".join) | st.text(max_size=40))
@example("[placement]\nload_weight = nan\n")
@example("[placement]\nload_weight = inf\n")
@example("a = " + "[" * 5000)
@example("a = {" * 2000)
@example("[daemon]\nresync_s = 1" + "0" * 400)
@example("[memory]\nreserved_total = 1" + "0" * 400)
@example("[memory]\nreserved = {0 = 0x" + "f" * 9000 + "}")
@example("[memory]\nreserved = [[0, 1]]")
@example("[memory]\nreserved = {0 = {0 = 1}}")
@example("[memory]\nreserved_total = 1979-05-27")
@example("[daemon]\nresync_s = 1" + "0" * 5000)
@example("x = [")
@example('a."b')
@example("[[placement]]\nsmt = 1")
@example("[placement]\nsmt = 1\nsmt = 2")
@example("[placement]\n[placement]")
def test_any_text_of_settings_is_read_or_refused(text: str) -> None:
    try:
        settings = parse_settings(text)
    except ConfigError as error:
        problems = error.problems
    else:
        assert isinstance(settings, Settings)
        return
    assert problems
    assert all(problems)


@pytest.mark.parametrize(
    "text", ["[daemon]\nverify_s = [1, 2", "[placement]\nsmt = [", "[daemon\nresync_s = 1", "resync_s", "= 1"]
)
def test_half_a_file_is_not_taken_for_a_whole_one(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        parse_settings(text)


@given(st.dictionaries(st.sampled_from(["server", "host", "placement", "memory", "daemon", "x"]), values, max_size=3))
def test_any_values_of_settings_are_read_or_refused(tables: dict[str, Any]) -> None:
    lines = []
    for name, value in tables.items():
        lines.append(f"[{name}]")
        keys = (
            value
            if isinstance(value, dict)
            else {
                "smt": value,
                "verify_s": value,
                "timeout_s": value,
                "policy": "static",
                "reserved_total": value,
                "reserved": value,
            }
        )
        lines += [f"{json.dumps(key)} = {json.dumps(inner)}" for key, inner in keys.items()]
    with contextlib.suppress(ConfigError):
        parse_settings("\n".join(lines))
