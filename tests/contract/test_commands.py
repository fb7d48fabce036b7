"""What users' scripts rely on: exit codes, data alone on standard output, and errors that say what to do."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet
from tests.commands import Result, config_file, is_clean, run

SERVER_COMMANDS = (("list",), ("explain", "db"), ("check",), ("rebalance",), ("rebalance", "--dry-run"))
ONE_NODE: dict[str, Any] = {"nodes": [{"id": 0, "cpus": "0-3", "memory_bytes": 1 << 30}]}


def plan(folder: Path, instances: object, machine: object = ONE_NODE, *words: str) -> Result:
    (folder / "m.json").write_text(machine if isinstance(machine, str) else json.dumps(machine))
    (folder / "i.json").write_text(instances if isinstance(instances, str) else json.dumps(instances))
    return run("plan", "--machine", folder / "m.json", "--instances", folder / "i.json", *words)


# Usage


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bogus",), "No such command 'bogus'"),
        (("list", "-f", "xml"), "'xml' is not one of 'table', 'json', 'yaml', 'csv'"),
        (("list", "--log-level", "loud"), "'loud' is not one of"),
        (("list", "--wrong"), "No such option"),
        (("explain",), "Missing argument 'NAME'"),
        (("plan",), "Missing option '--machine'"),
        (("rebalance", "--max-moves", "-1"), "-1 is not in the range"),
        (("config", "bogus"), "No such command 'bogus'"),
        *(
            ((*command, "--window", window), "Invalid value for '--window'")
            for command in (("list",), ("explain", "db"), ("rebalance",))
            for window in ("nan", "inf", "-1", "0.01", "86401", "long")
        ),
    ],
)
def test_wrong_usage_is_2(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert says in result.err


# Configuration


@pytest.mark.parametrize(
    "words", [*SERVER_COMMANDS, ("config", "show"), ("config", "check"), ("topology",), ("daemon",)]
)
def test_a_bad_configuration_is_2_for_every_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    file = config_file(tmp_path, "[placement]\nsmtt = 1\n")
    result = run(*words, "--config", file)
    assert (result.code, result.out) == (2, "")
    assert f"{file}: placement.smtt" in result.err


def test_every_problem_of_a_configuration_is_told_at_once_with_key_and_value(tmp_path: Path) -> None:
    file = config_file(
        tmp_path,
        '[placement]\nsmtt = 1\nload_weight = "much"\ndistance_weight = -1\nsmt = "sideways"\nreserved_cpus = "x-y"\n'
        '[daemon]\nverify_s = [0.0]\n[hots]\n[server]\nsocket = "relative"\n',
    )
    result = run("config", "check", "--config", file)
    assert result.code == 2
    lines = result.err.splitlines()
    assert all(line.startswith(f"Error: {file}: ") for line in lines)
    for part in (
        "placement.smtt",
        "placement.load_weight = 'much'",
        "placement.distance_weight = -1",
        "placement.smt = 'sideways'",
        "placement.reserved_cpus",
        "daemon.verify_s = [0.0]",
        "hots",
        "server.socket = 'relative'",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[placement\nsmt=", "not TOML"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"placement = 3\n", "placement"),
    ],
)
def test_a_file_that_is_no_configuration_is_2(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    result = run("config", "check", "--config", file)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert str(file) in result.err


def test_a_configuration_that_cannot_be_read_is_2(tmp_path: Path) -> None:
    missing = run("config", "check", "--config", tmp_path / "none.toml")
    assert (missing.code, missing.err) == (
        2,
        f"Error: {tmp_path}/none.toml: cannot be read: no such file or directory\n",
    )
    folder = run("config", "check", "--config", tmp_path)
    assert (folder.code, folder.err) == (2, f"Error: {tmp_path}: cannot be read: is a directory\n")


def test_a_good_configuration_is_0_and_says_so_beside_the_data(tmp_path: Path) -> None:
    result = run("config", "check", "--config", config_file(tmp_path, '[placement]\nsmt = "pack"\n'))
    assert (result.code, result.out) == (0, "")
    assert "no problem" in result.err


# Offline


def test_plan_has_the_format_of_the_contract(tmp_path: Path) -> None:
    result = plan(
        tmp_path,
        [{"name": "db", "vcpus": 2}, {"name": "x", "vcpus": 1, "memory_bytes": 1 << 40}],
        ONE_NODE,
        "-f",
        "json",
    )
    assert result.code == 4
    assert result.err == ""
    data = result.data
    assert data.keys() >= {"placements", "rejections", "node_load", "elapsed_ms"}
    (placement,) = data["placements"]
    assert placement.keys() >= {"project", "name", "nodes", "cpus", "mems", "moved", "reason"}
    assert (placement["project"], placement["name"], placement["nodes"], placement["moved"]) == (
        "default",
        "db",
        "0",
        False,
    )
    assert len(CpuSet.parse(placement["cpus"])) == 2
    (rejection,) = data["rejections"]
    assert rejection.keys() >= {"project", "name", "reason", "detail"}
    assert (rejection["name"], rejection["reason"]) == ("x", "no-memory")
    assert data["node_load"].keys() == {"0"}
    assert isinstance(data["elapsed_ms"], float)


def test_plan_does_not_depend_on_the_order_of_instances(tmp_path: Path) -> None:
    instances = [{"name": f"i{number}", "vcpus": number % 3 + 1} for number in range(8)]
    machine = run("topology", "-f", "json").data
    plans = [plan(tmp_path, order, machine, "-f", "json").data for order in (instances, instances[::-1])]
    assert plans[0]["placements"] == plans[1]["placements"]


def test_a_pin_in_a_document_weighs_as_many_cpus_as_it_lists(tmp_path: Path) -> None:
    pins = [{"name": "a", "pinned_cpus": "0-2"}, {"name": "b", "pinned_cpus": "0-2", "vcpus": 1}]
    loads = [plan(tmp_path, [pin], ONE_NODE, "-f", "json").data["node_load"] for pin in pins]
    assert loads == [{"0": 0.75}, {"0": 0.25}]


@pytest.mark.parametrize("entry", [{"group": "db"}, {"avoid": ["db"]}, {"device_nodes": [0]}])
def test_plan_takes_what_ties_an_instance_to_nodes(tmp_path: Path, entry: dict[str, Any]) -> None:
    result = plan(tmp_path, [{"name": "web", "vcpus": 1, **entry}, {"name": "x"}], ONE_NODE, "-f", "json")
    assert (result.code, result.data.get("warnings", []), result.err) == (0, [], "")


def test_plan_of_nothing_is_0(tmp_path: Path) -> None:
    assert plan(tmp_path, []).code == 0
    assert plan(tmp_path, [], ONE_NODE, "-f", "csv").out == "instance,nodes,cpus,mems,moved,reason\n"


def test_plan_takes_settings(tmp_path: Path) -> None:
    file = config_file(tmp_path, '[placement]\nreserved_cpus = "0-2"\n')
    result = plan(tmp_path, [{"name": "db", "vcpus": 1}], ONE_NODE, "--settings", str(file), "-f", "json")
    assert result.data["placements"][0]["cpus"] == "3"


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ("", "instances"),
        ("nonsense", "instances"),
        ('{"name": "db"}', "instances"),
        ([{}], "name"),
        ([{"name": ""}], "name"),
        ([{"name": "db", "vcpus": "4"}], "vcpus"),
        ([{"name": "db", "vcpus": 0}], "vcpus"),
        ([{"name": "db", "vcpus": 1.5}], "vcpus"),
        ([{"name": "db", "memory_bytes": -1}], "memory_bytes"),
        ([{"name": "db", "policy": "best"}], "best"),
        ([{"name": "db", "nodes": "0-x"}], "0-x"),
        ([{"name": "db", "cpus": "3-1"}], "3-1"),
        ([{"name": "db", "device_nodes": [7]}], "device_nodes"),
        ([{"name": "db", "vpcus": 4}], "vpcus"),
        ([{"name": "db"}, {"name": "db"}], "twice"),
        ('[{"name": 1', "instances: not JSON: it ends too early, at line 1, column 12"),
        ('[\n{"name": "db",}]', "instances: not JSON: trailing comma in object, at line 2, column 15"),
        ('[{"name": 1}]]', "instances: not JSON: trailing characters, at line 1, column 14"),
        ([{"name": "", "vcpus": 0}], "instances[0] ('default'/''): Expected `str` of length >= 1 - at `$.name`"),
        ([{"name": "db", "project": ""}], "instances[0] (''/'db'): Expected `str` of length >= 1 - at `$.project`"),
        ([{"name": "db", "device_nodes": [7]}, {"name": "db"}], "instances[1] (db): is there twice"),
        ([{"name": "db", "nodes": "0,7-8"}], "instances[0] (db): nodes 7-8 are no nodes of the machine"),
        ([{"name": "db", "pinned_cpus": "3-4"}], "instances[0] (db): pinned_cpus 4 are no online CPUs of the machine"),
        ([{"name": "db", "device_nodes": [-1]}], "instances[0] (db): device_nodes [-1] are no nodes"),
        ([{"name": "db", "vcpus": -3}], "vcpus"),
        ([{"name": "db", "vcpus": 1 << 30}], "vcpus"),
        ([{"name": "db", "memory_bytes": 1 << 63}], "memory_bytes"),
        ([{"name": "db", "load_cpus": -0.1}], "load_cpus"),
        ([{"name": "db", "exclusive": "yes"}], "exclusive"),
        ([{"name": "db", "cores": "fast"}], "(db): cores 'fast': expected one of any, performance, efficiency"),
        ([{"name": "db", "hugepages": {"2M": 1}}], "hugepages"),
        ([{"name": "db", "hugepages": {"2097152": -1}}], "hugepages"),
        ([{"name": "db", "hugepages": {"2000000": 0}}], "(db): hugepages: 2000000 is no page size"),
        ([{"name": "db", "hugepages": {"2097152": 1}}], "(db): hugepages: 1 bytes are no whole number of pages"),
        ([{"name": "db", "vcpus": 0}], "instances[0] (db): Expected `int` >= 1 - at `$.vcpus`"),
        ([{"name": "db", "project": "ci", "vcpus": 0}], "instances[0] (ci/db): Expected"),
        ([{"name": "db", "project": 3}], "instances[0] (db): Expected `str`"),
        ([{"name": 3, "vcpus": 0}], "instances[0]: Expected"),
        ([{"name": "db", "nodes": "0-x"}], "instances[0] (db): nodes: bad"),
        ([{"name": "db", "cpus": "3-1"}], "instances[0] (db): cpus: bad"),
        ([{"name": "db", "group": "a b"}], "instances[0] (db): group 'a b': expected up to 64 letters"),
        ([{"name": "db", "group": "g" * 65}], "instances[0] (db): group 'gggg"),
        ([{"name": "db", "avoid": ["ok", "a,b"]}], "instances[0] (db): avoid 'a,b': expected up to 64 letters"),
        ([17], "object"),
    ],
)
def test_bad_instances_are_2_and_say_where(tmp_path: Path, instances: object, says: str) -> None:
    result = plan(tmp_path, instances)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"Error: {tmp_path}/i.json: instances")
    assert says in result.err
    assert is_clean(result)


def test_every_bad_instance_is_told_at_once(tmp_path: Path) -> None:
    result = plan(tmp_path, [{"name": "a", "vcpus": 0}, {"name": "b"}, {"nam": "c"}, {"name": "d", "cpus": "x"}])
    assert result.code == 2
    assert [line.split(": ")[2] for line in result.err.splitlines()] == [
        "instances[0] (a)",
        "instances[2]",
        "instances[3] (d)",
    ]


def test_every_mistake_of_an_instance_is_told_at_once(tmp_path: Path) -> None:
    wrong = {"name": "db", "device_nodes": [9], "nodes": "5", "pinned_cpus": "99", "cores": "x", "hugepages": {"3": 1}}
    lines = plan(tmp_path, [wrong]).err.splitlines()
    assert [line.split(" (db): ")[1].split()[0] for line in lines] == [
        "device_nodes",
        "nodes",
        "pinned_cpus",
        "cores",
        "hugepages:",
    ]


def test_a_name_that_is_there_twice_hides_no_other_mistake(tmp_path: Path) -> None:
    lines = plan(tmp_path, [{"name": "db"}, {"name": "db", "device_nodes": [9], "cpus": "x"}]).err.splitlines()
    assert [line.split(" (db): ")[1].split()[0] for line in lines] == ["is", "device_nodes", "cpus:"]


def test_kind_of_cores_exclusive_cpus_and_huge_pages_may_be_left_out_or_said(tmp_path: Path) -> None:
    said = {"cores": "any", "exclusive": False, "hugepages": {}}
    plans = [plan(tmp_path, [{"name": "db", "vcpus": 2, **more}], ONE_NODE, "-f", "json").data for more in ({}, said)]
    assert plans[0]["placements"] == plans[1]["placements"]


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ("", "machine document"),
        ("<html>", "machine document: not JSON: invalid character, at line 1, column 1"),
        ('{"nodes": 3', "machine document: not JSON: it ends too early, at line 1, column 12"),
        ("[" * 9999, "machine document: not JSON that can be read: it is nested too deeply"),
        ("[]", "machine document"),
        ({}, "nodes"),
        ({"nodes": [{}]}, "id"),
        ({"nodes": [{"id": "0"}]}, "id"),
        ({"nodes": [{"id": 0}, {"id": 0}]}, "node 0 appears 2 times"),
        ({"nodes": [{"id": 0, "cpus": "a"}]}, "'a'"),
        ({"nodes": [{"id": 0, "cpus": "0-1"}, {"id": 3, "cpus": "1"}]}, "cpu 1 is in nodes 0, 3"),
        ({"nodes": [{"id": 0, "cpus": "0", "distances": {"4": 10}}]}, "node 0 has a distance to node 4"),
        ({"nodes": [{"id": 0, "cpus": "0", "distances": {"0": 11}}]}, "node 0 has the distance 11 to itself"),
        ({"nodes": [{"id": 0, "memory_bytes": 1 << 70}]}, "memory_bytes"),
        ({"nodes": [{"id": 0, "cpus": "0"}], "cpus": [{"id": 0, "core": 0, "node": 5}]}, "node 5"),
    ],
)
def test_a_bad_machine_is_2_and_says_where(tmp_path: Path, machine: object, says: str) -> None:
    result = plan(tmp_path, [], machine)
    assert (result.code, result.out) == (2, "")
    assert f"{tmp_path}/m.json: " in result.err
    assert says in result.err
    assert is_clean(result)


@pytest.mark.parametrize("option", ["--machine", "--instances"])
def test_one_file_of_a_plan_may_be_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    files = {"--machine": json.dumps(ONE_NODE), "--instances": json.dumps([{"name": "db", "vcpus": 1}])}
    for place, text in enumerate((files[option], "{")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        words: list[str | Path] = []
        for name, content in files.items():
            (tmp_path / name).write_text(content)
            words += [name, "-" if name == option else tmp_path / name]
        result = run("plan", *words, "-f", "json")
        if place == 0:
            assert (result.code, [one["name"] for one in result.data["placements"]]) == (0, ["db"])
        else:
            assert (result.code, result.err.startswith("Error: standard input: ")) == (2, True)


def test_both_files_of_a_plan_cannot_be_standard_input() -> None:
    result = run("plan", "--machine", "-", "--instances", "-")
    assert result.code == 2
    assert "only one of --machine and --instances can be standard input" in result.err


def test_files_that_are_missing_are_both_told(tmp_path: Path) -> None:
    result = run("plan", "--machine", tmp_path / "m", "--instances", tmp_path / "i")
    assert result.code == 2
    assert result.err.count("no such file") == 2


def test_unknown_fields_of_a_machine_are_left_alone(tmp_path: Path) -> None:
    assert plan(tmp_path, [{"name": "db", "vcpus": 1}], {**ONE_NODE, "firmware": "x"}).code == 0


def test_a_snapshot_that_is_none_is_2(tmp_path: Path) -> None:
    missing = run("topology", "--sysfs", tmp_path / "none")
    assert (missing.code, "no such directory" in missing.err) == (2, True)
    empty = run("topology", "--sysfs", tmp_path)
    assert (empty.code, "sys/ and proc/" in empty.err) == (2, True)
