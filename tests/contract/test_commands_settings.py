"""Settings that cannot work on a host: told by `config check`, `check` and `topology`, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_numa.simulator import trees
from tests import builders
from tests.commands import Result, config_file, run


@pytest.fixture
def trees_at(tmp_path: Path) -> dict[str, Path]:
    """The trees of a simulated kernel with CPUs 0-15, by their keys of [host]."""
    machine = builders.machine(isolated="15")
    paths = {name: tmp_path / "machine" / name for name in ("sys", "proc", "cgroup")}
    trees.write_sysfs(paths["sys"], machine)
    trees.write_procfs(paths["proc"], machine)
    paths["cgroup"].mkdir()
    (paths["cgroup"] / "cgroup.controllers").write_text("cpuset\n")
    return {"sysfs": paths["sys"], "procfs": paths["proc"], "cgroup": paths["cgroup"]}


def on_host(folder: Path, trees_at: dict[str, Path], reserved: str = "") -> Path:
    lines = [f'{name} = "{path}"' for name, path in trees_at.items()]
    text = "\n".join(("[placement]", f'reserved_cpus = "{reserved}"', "[host]", *lines))
    return config_file(folder, text + f'\n[server]\nsocket = "{folder}/none"\n')


UNWORKABLE = [
    ("14-17", "placement.reserved_cpus = '14-17': this machine has no CPUs 16-17, only 0-15"),
    (
        "0-14",
        "placement.reserved_cpus = '0-14': that is every CPU that instances could have (0-14); leave some of them out",
    ),
]


@pytest.mark.parametrize(("reserved", "says"), UNWORKABLE)
def test_reserved_cpus_that_cannot_be_are_told_by_both_checks(
    tmp_path: Path, trees_at: dict[str, Path], reserved: str, says: str
) -> None:
    file = on_host(tmp_path, trees_at, reserved)
    result = run("config", "check", "--config", file)
    assert (result.code, result.err) == (2, f"Error: {file}: {says}\n")
    assert bad_settings(run("check", "-f", "json", "--config", file)) == [says]
    elsewhere = run("config", "check", "--config", on_host(tmp_path, {}, reserved), "--sysfs", tmp_path / "machine")
    assert (elsewhere.code, elsewhere.err) == (2, f"Error: {file}: {says}\n")


def test_reserved_cpus_that_are_offline_are_fine(tmp_path: Path, trees_at: dict[str, Path]) -> None:
    (trees_at["sysfs"] / "devices/system/cpu/present").write_text("0-17\n")
    file = on_host(tmp_path, trees_at, "16-17")
    assert (
        run("config", "check", "--config", file).code,
        bad_settings(run("check", "-f", "json", "--config", file)),
    ) == (
        0,
        [],
    )


@pytest.mark.parametrize(
    ("name", "what"), [("sysfs", "sysfs"), ("procfs", "procfs"), ("cgroup", "the cgroup hierarchy")]
)
def test_trees_that_are_not_there_are_one_finding_each(
    tmp_path: Path, trees_at: dict[str, Path], name: str, what: str
) -> None:
    says = f"host.{name} = '/no/where': no such directory; expected the mount point of {what}"
    file = on_host(tmp_path, trees_at | {name: Path("/no/where")})
    result = run("config", "check", "--config", file)
    assert (result.code, result.err) == (2, f"Error: {file}: {says}\n")
    told = run("check", "-f", "json", "--config", file)
    assert bad_settings(told) == [says]
    assert [one["code"] for one in told.data if one["code"] in ("cgroups", "no-numa", "hardware")] == []


def bad_settings(result: Result) -> list[str]:
    return [one["finding"] for one in result.data if (one["code"], one["about"]) == ("bad-setting", "settings")]


def test_the_topology_of_a_host_without_a_sysfs_is_2(tmp_path: Path, trees_at: dict[str, Path]) -> None:
    file = on_host(tmp_path, trees_at | {"sysfs": Path("/no/where")})
    result = run("topology", "--config", file)
    says = "host.sysfs = '/no/where': no such directory; expected the mount point of sysfs"
    assert (result.code, result.out, result.err) == (2, "", f"Error: {file}: {says}\n")
    assert run("topology", "--config", file, "--sysfs", tmp_path / "machine").code == 0
