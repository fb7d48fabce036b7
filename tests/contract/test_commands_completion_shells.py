"""Real shells complete our command line by the script that they were given: what somebody sees who presses Tab."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE_S = 60.0
TAB, CLEAR = "\t", "\x15"
PROMPT = "READY>"

START = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        'bind "set enable-bracketed-paste off"; eval "$(incus-numa completion bash)"',
    ),
    "zsh": (["-f", "-i"], 'eval "$(incus-numa completion zsh)"'),
    "zsh with compinit": (["-f", "-i"], 'autoload -U compinit && compinit -u; eval "$(incus-numa completion zsh)"'),
}
"""How a shell is started without anybody's own files, and what they would have in theirs."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which `incus-numa` is this one, and nothing is set up for anybody."""
    program = tmp_path / "bin" / "incus-numa"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m incus_numa "$@"\n')
    program.chmod(0o755)
    known = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "PS1": PROMPT}
    return known | {"PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C.UTF-8", "COLUMNS": "200"}


@dataclass(kw_only=True)
class Shell:
    """A shell on a terminal, and what it has written since that was last asked for."""

    master: int
    text: str = ""

    def type(self, text: str) -> None:
        self.text = ""
        os.write(self.master, text.encode())

    def wait_for(self, *words: str) -> None:
        """Read until all words were written. Raises AssertionError if that does not come to pass."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline, (words, self.text)
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")


@pytest.fixture(params=START)
def shell(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[Shell]:
    name = request.param.partition(" ")[0]
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    words, script = START[request.param]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [path, *words], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    try:
        found = Shell(master=master)
        found.wait_for(PROMPT)
        found.type(f"{script}; echo load''ed\n")
        found.wait_for("loaded", PROMPT)
        yield found
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_tab_completes_a_command_an_option_and_a_value(shell: Shell) -> None:
    for typed, completed in (
        ("incus-numa topol", "incus-numa topology "),
        ("incus-numa policy g", "incus-numa policy get "),
        ("incus-numa list --win", "incus-numa list --window "),
        ("incus-numa topology -f tr", "incus-numa topology -f tree "),
    ):
        shell.type(CLEAR + typed + TAB)
        shell.wait_for(completed[:-1])


def test_tab_completes_a_key_of_the_policy_and_then_its_value(shell: Shell) -> None:
    shell.type(CLEAR + "incus-numa policy set placement.sm" + TAB)
    shell.wait_for("t=")
    shell.type("pa" + TAB)
    shell.wait_for("pack ")
    shell.type(CLEAR + "incus-numa policy set rebalance.marg" + TAB + "7")
    shell.wait_for("in=7")


def test_tab_lists_what_there_is_to_choose_from(shell: Shell) -> None:
    shell.type(CLEAR + "incus-numa policy " + TAB + TAB)
    shell.wait_for("get", "set")


def test_tab_completes_files_where_a_file_is_wanted(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "machine-of-mine.json").touch()
    shell.type(CLEAR + f"incus-numa plan --machine {tmp_path}/mach" + TAB)
    shell.wait_for("machine-of-mine.json")


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (
            "to",
            [
                "top\tWatch load, and what the daemon does, as it happens.",
                "topology\tThe machine as incus-numa sees it.",
            ],
        ),
        (
            "policy ",
            [
                "get\tShow the policy in force.",
                "set\tChange the policy, or go back to the file.",
                "unset\tGo back to the file for single keys.",
            ],
        ),
        ("policy set placement.smt=s", ["placement.smt=spread"]),
        ("topology -f t", ["table", "tree"]),
        ("plan --machine pyproj", ["pyproject.toml"]),
    ],
)
def test_fish_completes_with_whole_descriptions(environment: dict[str, str], typed: str, completed: list[str]) -> None:
    script = f'incus-numa completion fish | source; complete --do-complete "incus-numa {typed}"'
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (result.stdout.splitlines(), result.stderr) == (completed, "")
