"""What the commands print that need no server."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from incus_numa.cli.main import COMMANDS, group
from incus_numa.settings import Settings, render_settings
from incus_numa.simulator import trees
from tests import builders
from tests.commands import run
from tests.golden.conftest import Golden

EXAMPLE = Path(__file__).parents[2] / "examples" / "config.toml"
CLICK = "8.5"
"""The texts of `--help` are those of this click; another one may write options differently."""

INSTANCES = [
    {"name": "db", "vcpus": 6, "memory_bytes": 8 << 30},
    {"name": "web", "vcpus": 2, "memory_bytes": 1 << 30, "nodes": "3", "cpus": "12-13"},
    {"name": "huge", "vcpus": 2, "memory_bytes": 500 << 30},
    {"name": "loose", "managed": False, "vcpus": 2, "nodes": "0"},
    {"project": "ci", "name": "job", "vcpus": 1, "memory": "none"},
]


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    context = click.Context(group)
    for name in COMMANDS:
        found.append((name,))
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(context)]
    return found


@pytest.mark.skipif(not version("click").startswith(f"{CLICK}."), reason=f"expected texts are those of click {CLICK}")
@pytest.mark.parametrize("words", commands(), ids="-".join)
def test_help(words: tuple[str, ...], golden: Golden) -> None:
    result = run(*words, "--help")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    golden(f"help/{'-'.join(('incus-numa', *words))}.txt", result.out)


@pytest.mark.parametrize("words", commands()[1:], ids="-".join)
def test_every_command_has_an_example_and_the_shared_options(words: tuple[str, ...]) -> None:
    out = run(*words, "--help").out
    inner = {"config": ("show", "check"), "policy": ("get", "set")}
    if len(words) == 1 and words[0] in inner:
        assert all(f"\n  {name} " in out for name in inner[words[0]])
    else:
        assert "Example: incus-numa" in out
        assert "--config FILE" in out
        assert "--log-level" in out


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    machine = builders.machine(nodes=4, cpus_per_node=4, isolated="15")
    folder = tmp_path / "machine"
    trees.write_sysfs(folder / "sys", machine)
    trees.write_procfs(folder / "proc", machine)
    return folder


@pytest.mark.parametrize("output_format", ["table", "json", "yaml", "csv", "tree", "svg"])
def test_topology(snapshot: Path, output_format: str, golden: Golden) -> None:
    result = run("topology", "--sysfs", snapshot, "-f", output_format)
    assert (result.code, result.err) == (0, "")
    golden(f"topology.{'txt' if output_format == 'table' else output_format}", result.out)


def test_topology_of_many_nodes_stays_within_80_columns(tmp_path: Path, golden: Golden) -> None:
    trees.write_sysfs(tmp_path / "sys", builders.machine(nodes=24, cpus_per_node=16, nodes_per_socket=12))
    result = run("topology", "--sysfs", tmp_path)
    assert max(map(len, result.out.splitlines())) <= 80
    golden("topology-24-nodes.txt", result.out)


@pytest.mark.parametrize("output_format", ["table", "json", "yaml", "csv"])
def test_plan(snapshot: Path, tmp_path: Path, output_format: str, golden: Golden) -> None:
    machine, instances = tmp_path / "machine.json", tmp_path / "instances.json"
    machine.write_text(run("topology", "--sysfs", snapshot, "-f", "json").out)
    instances.write_text(json.dumps(INSTANCES))
    result = run("plan", "--machine", machine, "--instances", instances, "-f", output_format)
    assert (result.code, result.err) == (4, "")
    text = re.sub(r"(elapsed_ms\W+)[0-9.]+", r"\1MASKED", result.out)
    golden(f"plan.{'txt' if output_format == 'table' else output_format}", text)


@pytest.mark.parametrize("output_format", ["table", "json", "yaml", "csv"])
def test_config_show(tmp_path: Path, output_format: str, golden: Golden) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    result = run("config", "show", "--config", file, "-f", output_format)
    assert (result.code, result.err) == (0, "")
    golden(f"config-show.{'toml' if output_format == 'table' else output_format}", result.out)


def test_config_show_prints_a_file_that_means_the_same(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[placement]\nsmt = "pack"\n[daemon]\nverify_s = [1]\n')
    shown = run("config", "show", "--config", file, "-f", "json").data
    file.write_text(run("config", "show", "--config", file).out)
    assert run("config", "show", "--config", file, "-f", "json").data == shown


def test_the_example_is_the_default_settings(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        EXAMPLE.write_text(render_settings(Settings()))
    assert EXAMPLE.read_text() == render_settings(Settings())
