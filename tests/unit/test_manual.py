"""The man page is made from the definitions of the commands, and man has nothing to complain of it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from incus_numa.cli.main import COMMANDS, group
from incus_numa.cli.manual import render_manual
from tests.commands import run
from tests.contract.terminal import PATIENCE_S, terminal


def plain(text: str) -> str:
    """The page without roff's escapes, as somebody reads it."""
    names = {"dq": '"', "ga": "`", "aq": "'", "ha": "^", "ti": "~"}
    text = re.sub(r"\\\((..)", lambda found: names[found[1]], text)
    return re.sub(r"\\f.", "", text.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\"))


def options(command: click.Command) -> set[str]:
    return {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_it_with_its_options_and_an_example(name: str) -> None:
    page = plain(render_manual())
    command = group.get_command(click.Context(group), name)
    inner = command.commands.items() if isinstance(command, click.Group) else [("", command)]
    for word, one in inner:
        assert one is not None
        words = f"{name} {word}".strip()
        (section,) = re.findall(rf'^\.SS "{words} \[OPTIONS\].*?(?=^\.S[SH] )', page, re.MULTILINE | re.DOTALL)
        assert re.search(rf"^Example:\n\.B incus-numa {words}", section, re.MULTILINE), section
        for option in options(one):
            assert option in section


def test_sections_are_those_of_a_man_page() -> None:
    page = render_manual()
    assert page.startswith(".TH INCUS\\-NUMA 1 ")
    assert re.findall(r"^\.SH (.*)$", page, re.MULTILINE) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS"),
        *("EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"),
    ]
    assert "incus\\-numa \\- place Incus and LXD instances on NUMA nodes" in page
    assert page.isascii()


def test_no_line_is_a_request_by_accident() -> None:
    for line in render_manual().splitlines():
        assert not line.startswith("'")
        if line.startswith("."):
            assert re.match(r"\.(TH|SH|SS|PP|TP|B|BR|I)\b", line), line


def test_the_command_writes_the_page() -> None:
    result = run("man")
    assert (result.code, result.out, result.err) == (0, render_manual(), "")


@pytest.mark.skipif(shutil.which("man") is None or shutil.which("groff") is None, reason="needs man and groff")
async def test_on_a_terminal_the_page_is_shown_by_man() -> None:
    with terminal("man", MANPAGER="cat", MANWIDTH="80", LC_ALL="C.UTF-8") as shown:
        await shown.wait_for("goes to no terminal.")
        assert await asyncio.to_thread(shown.process.wait, PATIENCE_S) == 0
    assert ".SH" not in shown.text


@pytest.mark.skipif(shutil.which("man") is None or shutil.which("groff") is None, reason="needs man and groff")
def test_man_shows_it_without_a_warning(tmp_path: Path) -> None:
    page = tmp_path / "incus-numa.1"
    page.write_text(render_manual())
    environment = dict(os.environ) | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANROFFOPT": "-ww"}
    result = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    text = re.sub(r".\x08", "", result.stdout)
    for word in ("--interval SECONDS", "incus-numa top --interval 5", "NO_COLOR"):
        assert word in text
