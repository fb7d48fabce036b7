"""What the command line says to those who do not know it yet: help, what was probably meant, names, what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import run, run_beside, write_config
from tests.contract import simulated

OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False, projects={"ci": {}})
WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from incus_numa.cli.main import main; main()"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ls",), "'ls'. Did you mean `incus-numa list`?"),
        (("status",), "'status'. Did you mean `incus-numa check`?"),
        (("topologi",), "'topologi'. Did you mean `incus-numa topology`?"),
        (("policy", "gte"), "'gte'. Did you mean `incus-numa policy get`?"),
        (("config", "chekc"), "'chekc'. Did you mean `incus-numa config check`?"),
    ],
)
def test_a_command_that_is_none_suggests_the_one_that_was_meant(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(f"Error: No such command {says}\n")


def test_what_is_like_nothing_suggests_nothing() -> None:
    result = run("frobnicate")
    assert (result.code, "Did you mean" in result.err) == (2, False)


@pytest.mark.parametrize("words", [(), ("config",), ("policy",)])
def test_help_of_groups_has_an_example_exit_codes_and_where_more_is(words: tuple[str, ...]) -> None:
    text = run(*words, "--help").out
    assert "Example" in text
    assert "Exit codes: 0 done;" in text
    assert "docs/" in text


@pytest.mark.parametrize(
    ("module", "package", "words"),
    [
        ("tenacity", "tenacity", ("daemon",)),
        ("yaml", "PyYAML", ("config", "show", "-f", "yaml")),
        ("prometheus_client", "prometheus-client", ("demo",)),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, module: str, package: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, module, *words, "--config", str(tmp_path / "config.toml")],
        env=dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: the Python package {package} is missing: install it with `{sys.executable} -m pip install --upgrade "
        f"{package}`, or incus-numa anew without --no-deps\n"
    )


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    async with simulated.host(OPTIONS, builders.machine()) as host:
        for name, project in (("web1", "default"), ("web2", "default"), ("db", "default"), ("web1", "ci")):
            await host.simulator.start(host.simulator.create(name, {"limits.cpu": "1"}, project=project))
        yield write_config(host.simulator)


@pytest.mark.parametrize(
    ("words", "names", "says"),
    [
        (("web*",), ["ci/web1", "default/web1", "default/web2"], ""),
        (("db", "web?", "--project", "default"), ["default/db", "default/web1", "default/web2"], ""),
        (("web",), [], "no instance that runs is called web\n"),
        (("web2", "nobody"), ["default/web2"], "no instance that runs is called nobody\n"),
    ],
)
async def test_list_shows_those_that_are_named(
    config: Path, words: tuple[str, ...], names: list[str], says: str
) -> None:
    result = await run_beside("list", *words, "--window", "0", "-f", "json", "--config", config)
    rows = json.loads(result.out)["instances"]
    assert sorted(f"{row['project']}/{row['name']}" for row in rows) == names
    assert (result.code, result.err) == (0, says)
