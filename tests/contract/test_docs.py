"""The documents are true: their commands print what they show, and what they name and link to exists."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from incus_numa.cli.main import COMMANDS, group
from incus_numa.settings import Settings, salvage_settings
from incus_numa.simulator.simulator import Simulator
from tests import documents
from tests.contract import docs_rig
from tests.contract.docs_rig import Place, Populate, Ran, Settled
from tests.documents import ROOT, Document
from tests.golden import settings_document

DOCUMENTS = documents.documents()
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
TABLES = tuple(one.name for one in fields(Settings))

CODE = re.compile(r"^\| `([a-z-]+)` \| (?:danger|warning|note)", re.MULTILINE)
SETTING = re.compile(rf"({'|'.join(TABLES)})\.(\w+)(?: = .*)?")
KEY = re.compile(r"user\.numa\.\w+")
KERNELS = {("memory", "numa_stat"), ("memory", "pressure")}
"""Files of cgroups, whose names look like settings."""
LOADS = re.compile(r'(?:href|src)="(?!#)|url\(|@import|<script|https?://(?!www\.w3\.org/2000/svg)')
CALL = re.compile(r"(?:^|&& |\| |; )\$? ?incus-numa (.*?)(?=$| && | \| |;)")

RUNNING = {"mail": ("4", "8GiB"), "wiki": ("5", "8GiB"), "dns": ("2", "8GiB"), "ci": ("8", "8GiB")}
"""What runs where all is well before the document begins: limits.cpu and limits.memory."""


async def _placed(simulator: Simulator, settled: Settled) -> None:
    """A host on which everything is well."""
    for name, (cpu, memory) in {**RUNNING, "web": ("4", "4GiB"), "db": ("20", "16GiB")}.items():
        await docs_rig.start(simulator, name, cpu, memory)
        await settled()


async def _troubled(simulator: Simulator, settled: Settled) -> None:
    """A host with a bad key, a limit above all memory, and an instance that would crash the server."""
    await docs_rig.start(simulator, "mail", "4", "8GiB")
    await docs_rig.start(simulator, "web", "4", "4GiB", user_numa_policy="single")
    await docs_rig.start(simulator, "cache", "2", "300GiB")
    simulator.create("batch", {"limits.cpu": "96", **docs_rig.BALANCED})
    await settled()


HOSTS: Mapping[str, Populate] = {"getting-started.md": _placed, "operations.md": _troubled}
"""Documents whose commands are about a host; those of all others ask no server."""


def _place(document: Document, folder: Path) -> AbstractAsyncContextManager[Place]:
    populate = HOSTS.get(document.path.name)
    return docs_rig.offline(folder) if populate is None else docs_rig.host(folder, populate)


def _named(document: Document) -> str:
    return document.name


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one.commands], ids=_named)
async def test_commands_print_what_the_document_shows(document: Document, tmp_path: Path) -> None:
    commands = [one for one in document.commands if "curl" not in one.line or shutil.which("curl")]
    async with _place(document, tmp_path) as place:
        ran = await docs_rig.run_commands(document, commands, place)
    assert [one.command for one in ran] == commands
    assert "\n".join(_wrong(ran)) == ""


def _wrong(ran: list[Ran]) -> Iterator[str]:
    """Commands that print something else than is shown, or that fail where the next one does not ask how they ended."""
    for one, after in zip(ran, [*ran[1:], None], strict=True):
        is_asked = after is not None and after.command.line == "echo $?"
        if one.code and not is_asked:
            yield f"$ {one.command.line}\nends with {one.code}"
        if one.command.shown and not documents.is_shown(one.command.shown, one.lines):
            yield "\n".join((f"$ {one.command.line}", *one.lines))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_links_lead_somewhere(document: Document) -> None:
    anchors = {one.path: one.anchors for one in DOCUMENTS}
    broken = []
    for _, target in document.links:
        file, _, anchor = target.partition("#")
        path = (document.path.parent / file).resolve() if file else document.path
        if "://" not in target and (not path.exists() or (anchor and anchor not in anchors.get(path, {anchor}))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_commands_and_options_that_are_named_exist(document: Document) -> None:
    unknown = [line for line in document.code_lines for words in CALL.findall(line) if not _is_known(words.split())]
    assert unknown == []


def _is_known(words: list[str]) -> bool:
    """Whether the first words are a command, or its name is left open, and it takes all options."""
    context = click.Context(group, **group.context_settings)
    command: click.Command = group
    while isinstance(command, click.Group) and words and re.fullmatch("[a-z][a-z-]*", words[0]):
        name, *words = words
        found = command.get_command(context, name)
        if found is None:
            return False
        command = found
    taken = {one for param in command.get_params(context) for one in param.opts}
    return {one.strip("[]").partition("=")[0] for one in words if one.strip("[").startswith("-")} - {
        "-",
        *taken,
    } == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_settings_that_are_named_exist(document: Document) -> None:
    named = {(found[1], found[2]) for span in document.spans if (found := SETTING.fullmatch(span))}
    tables = {table: {one.name for one in fields(getattr(Settings(), table))} for table in TABLES}
    # Documents for developers name modules as well.
    modules = {(one.parent.name, one.stem) for one in (ROOT / "incus_numa").glob("*/*.py")}
    assert {one for one in named if one[1] not in tables[one[0]]} - modules - KERNELS == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_keys_of_instances_that_are_named_exist(document: Document) -> None:
    assert set(KEY.findall(document.text)) - set(settings_document.known_keys()) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_configurations_that_are_shown_are_right(document: Document) -> None:
    shown = [block.text for block in document.blocks if block.kind == "toml"]
    assert [problem for text in shown for problem in salvage_settings(text)[1]] == []


def test_every_finding_of_check_is_in_the_operators_document() -> None:
    codes = set(CODE.findall((ROOT / "docs" / "commands.md").read_text()))
    told = {span for one in DOCUMENTS if one.path.name == "operations.md" for span in one.spans}
    assert codes
    assert codes - told == set()


def test_every_command_is_in_a_document() -> None:
    told = {words for one in DOCUMENTS for span in one.spans for words in span.split()}
    assert set(COMMANDS) - told == set()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_told_in_words_and_load_nothing(picture: Path) -> None:
    text = picture.read_text()
    root = ElementTree.fromstring(text)
    names = [one.tag.rpartition("}")[2] for one in root]
    alts = [alt for one in DOCUMENTS for alt, target in one.links if target.endswith(f"pictures/{picture.name}")]
    assert names[:2] == ["title", "desc"]
    assert root.get("role") == "img"
    assert "prefers-color-scheme: dark" in text
    assert LOADS.findall(text) == []
    assert len(alts) == 1
    assert len(alts[0]) > 40
