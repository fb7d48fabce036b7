"""What goes to a file or a pipe has no colours, and NO_COLOR keeps them from terminals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incus_numa.simulator import trees
from tests import builders
from tests.contract.terminal import COLOUR, terminal


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    trees.write_sysfs(tmp_path / "sys", builders.machine(nodes=2))
    return tmp_path


@pytest.mark.parametrize(
    "environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"CLICOLOR_FORCE": "1"}], ids=str
)
@pytest.mark.parametrize("output_format", ["table", "tree", "json"])
def test_a_pipe_gets_plain_text(snapshot: Path, environment: dict[str, str], output_format: str) -> None:
    command = [sys.executable, "-m", "incus_numa", "topology", "--sysfs", str(snapshot), "-f", output_format]
    result = subprocess.run(
        command, env=dict(os.environ) | environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "0-3" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr


async def test_headers_are_bold_on_a_terminal_and_never_coloured_with_no_color(snapshot: Path) -> None:
    shown = []
    for environment in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with terminal("topology", "--sysfs", snapshot, **environment) as one:
            await one.wait_for("NODE", "DISTANCE", "32 GiB")
        shown.append(one.text)
    assert ["\x1b[1m" in text for text in shown] == [True, True, False]
    assert not any(COLOUR.search(text) for text in shown)
    assert "\x1b" not in shown[2]
