"""What `simulate` takes, writes and refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest

from incus_numa.replay import policies
from incus_numa.topology.document import render_machine
from tests import builders
from tests.commands import Result, config_file, is_clean, run

TRACE = "id,arrival_s,departure_s,vcpus,memory_bytes,kind\na,0,10,4,1024,vm\nb,5,20,6,1024,vm\nc,6,,1,1024,vm\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return write(tmp_path / "machine.json", json.dumps(render_machine(builders.machine(nodes=4, cpus_per_node=4))))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.csv", TRACE)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def simulate(machine: Path | str, trace: Path | str, *words: str | Path) -> Result:
    return run("simulate", "--machine", machine, "--trace", trace, *words)


def test_json_has_the_documented_figures_of_every_policy(machine: Path, trace: Path) -> None:
    result = simulate(machine, trace, "-f", "json", "--policy", "incus", "--policy", "incus")
    assert (result.code, result.err) == (0, "")
    data = result.data
    assert data["policies"]["incus"].pop("elapsed_s") >= 0
    # a is on node 0, b on 1 and 2, c on 3: loads 1; then 1, 3/4, 3/4; then 1/4 as well; at last without a.
    mean = (4 * 5 + 1 / (10 / 16) + 4 / (11 / 16) + (3 / 4) / (7 / 16) * 10) / 20
    assert data == {
        "machine": "4n16t",
        "instances": 3,
        "policies": {
            "incus": {
                "max_over_mean_load": {"time_averaged": round(mean, 6), "worst": 4.0},
                "mean_load": round((4 * 5 + 10 + 11 * 4 + 7 * 10) / 16 / 20, 6),
                "max_load": 1.0,
                "mean_distance": round((10 + 32 + 10) / 3, 6),
                "multi_node_distance": 32.0,
                "nodes_per_instance": round(4 / 3, 6),
                "moves": 0,
                "placed": 3,
                "rejected": 0,
            }
        },
    }


def test_our_policy_is_compared_with_all_peers_unless_others_are_named(machine: Path, trace: Path) -> None:
    assert list(simulate(machine, trace, "-f", "json").data["policies"]) == ["balanced", *policies.PEERS]
    words = [word for name in policies.NAMES for word in ("--policy", name)]
    assert list(simulate(machine, trace, "-f", "json", *words).data["policies"]) == list(policies.NAMES)


def test_a_policy_that_is_named_twice_is_replayed_once(machine: Path, trace: Path) -> None:
    found = simulate(machine, trace, "-f", "csv", "--policy", "incus", "--policy", "numad", "--policy", "incus").out
    assert [line.split(",")[0] for line in found.splitlines()] == ["policy", "incus", "numad"]


def test_limit_takes_those_that_arrive_first(machine: Path, trace: Path) -> None:
    assert simulate(machine, trace, "-f", "json", "--limit", "2").data["instances"] == 2


def test_settings_decide(machine: Path, trace: Path, tmp_path: Path) -> None:
    settings = config_file(tmp_path, '[placement]\nreserved_cpus = "0-3"\n')
    found = simulate(machine, trace, "-f", "json", "--policy", "incus", "--settings", settings).data
    assert found["policies"]["incus"]["mean_load"] == round((4 * 5 + 10 + 11 * 4 + 7 * 10) / 12 / 20, 6)


def kept(folder: Path, per_node: str, policy: str = "static") -> Path:
    """Settings that keep so much of nodes 0 and 1 each for the host."""
    total = f"{2 * int(per_node)}GiB"
    return config_file(
        folder,
        f'[memory]\npolicy = "{policy}"\nreserved_total = "{total}"\n'
        f'reserved = {{0 = "{per_node}GiB", 1 = "{per_node}GiB"}}\n',
    )


def test_memory_kept_for_the_host_is_not_given_away(machine: Path, tmp_path: Path) -> None:
    arrivals = "".join(f"i{n},{n},,1,{31 << 30}\n" for n in range(4))
    trace = write(tmp_path / "trace.csv", f"id,arrival_s,departure_s,vcpus,memory_bytes\n{arrivals}")
    words = ("-f", "json", "--policy", "single-numa-node")
    found = [
        simulate(machine, trace, *words, "--settings", kept(tmp_path, gib)).data["policies"]["single-numa-node"]
        for gib in ("1", "2")
    ]
    assert [(one["placed"], one["rejected"]) for one in found] == [(4, 0), (2, 2)]


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("option", ["--settings", "--config"])
def test_what_the_machine_cannot_keep_is_refused_as_by_plan(
    machine: Path, trace: Path, tmp_path: Path, option: str, piped: bool
) -> None:
    settings = kept(tmp_path, "33")
    instances = write(tmp_path / "instances.json", "[]")
    planned = run("plan", "--machine", machine, "--instances", instances, option, settings)
    with mock.patch.object(sys, "stdin", mock.Mock(buffer=io.BytesIO(machine.read_bytes()))):
        result = simulate("-" if piped else machine, trace, option, settings)
    assert (result.code, result.out, result.err) == (2, "", planned.err)
    assert [line.split(" = ")[0] for line in result.err.splitlines()] == [
        f"Error: {settings}: memory.reserved.{node}" for node in (0, 1)
    ]


def test_a_machine_from_standard_input_is_read_once_for_settings_and_replay(
    machine: Path, trace: Path, tmp_path: Path
) -> None:
    with mock.patch.object(sys, "stdin", mock.Mock(buffer=io.BytesIO(machine.read_bytes()))):
        result = simulate("-", trace, "--settings", kept(tmp_path, "2"))
    assert (result.code, result.err) == (0, "")


def test_a_bad_machine_is_told_beside_a_bad_trace_whatever_is_kept(tmp_path: Path) -> None:
    machine, trace = write(tmp_path / "machine.json", "{}"), write(tmp_path / "trace.csv", "")
    lines = simulate(machine, trace, "--settings", kept(tmp_path, "2")).err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(machine), str(trace)]


def test_reservations_that_are_ignored_are_said_to_be(machine: Path, trace: Path, tmp_path: Path) -> None:
    result = simulate(machine, trace, "--settings", kept(tmp_path, "33", policy="none"))
    assert (result.code, result.err.count("Warning: memory.reserved_total and memory.reserved: ignored")) == (0, 1)


@pytest.mark.parametrize("piped", ["machine", "trace"])
def test_one_file_may_be_standard_input(machine: Path, trace: Path, piped: str) -> None:
    files = {"machine": machine, "trace": trace}
    stdin = mock.Mock(buffer=io.BytesIO(files[piped].read_bytes()))
    with mock.patch.object(sys, "stdin", stdin):
        result = simulate(**{**files, piped: "-"})  # type: ignore[arg-type]
    assert (result.code, result.err) == (0, "")


def test_both_files_cannot_be_standard_input() -> None:
    result = simulate("-", "-")
    assert result.code == 2
    assert "only one of" in result.err


def test_the_chart_has_a_panel_per_policy(machine: Path, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "chart.svg"
    result = simulate(machine, trace, "--chart", file, "-f", "json")
    assert (result.code, result.err) == (0, "")
    root = ElementTree.fromstring(file.read_bytes())
    found = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text") if one.get("class") == "p"]
    assert found == list(policies.COMPARED)
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "trace.csv on 4n16t"


@pytest.mark.parametrize("name", ["-", "no/such/chart.svg", "."])
def test_a_chart_that_cannot_be_written_is_told_before_anything_runs(
    machine: Path, trace: Path, tmp_path: Path, name: str
) -> None:
    result = simulate(machine, trace, "--chart", name if name == "-" else tmp_path / name)
    assert (result.code, result.out) == (2, "")
    assert "--chart" in result.err


def test_problems_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    machine = write(tmp_path / "machine.json", '{"nodes": [{"id": -1}]}')
    trace = write(tmp_path / "trace.csv", TRACE.replace("b,5", "b,x").replace("c,6,,1", "c,6,,0"))
    result = simulate(machine, trace)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        f"Error: {machine}: machine document: nodes[0]: Expected `int` >= 0 - at `$.id`",
        f"Error: {trace}: line 3, column arrival_s: 'x': expected a number of seconds from 0 to 1000000000000",
        f"Error: {trace}: line 4, column vcpus: '0': expected a whole number from 1 to 1048576",
    ]


def test_what_is_no_text_is_told_with_its_line(machine: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_bytes(TRACE.encode() + b"\xff\xfe\n")
    result = simulate(machine, trace)
    assert result.code == 2
    assert "line 5: expected CSV in UTF-8" in result.err


def test_missing_files_and_unknown_policies_are_usage_errors(machine: Path, trace: Path, tmp_path: Path) -> None:
    for result in (
        simulate(tmp_path / "nothing", trace),
        simulate(machine, tmp_path / "nothing"),
        simulate(machine, trace, "--policy", "best"),
        simulate(machine, trace, "--limit", "0"),
    ):
        assert (result.code, result.out) == (2, "")
        assert is_clean(result)


def test_a_machine_without_usable_cpus_is_told(machine: Path, trace: Path, tmp_path: Path) -> None:
    settings = config_file(tmp_path, '[placement]\nreserved_cpus = "0-15"\n')
    result = simulate(machine, trace, "--config", settings)
    assert result.code == 2
    assert "no usable CPU" in result.err
