"""The man page, made from the same definitions as `--help`. Used by the command `man`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from incus_numa import __version__
from incus_numa.cli.main import group
from incus_numa.cli.options import DEFAULT_CONFIG

NAME = "incus-numa"

EXIT_CODES = (
    ("0", "Done."),
    ("1", "It failed."),
    ("2", "The usage or the configuration is wrong."),
    ("3", "The server cannot be reached."),
    ("4", "Done, but something was rejected or refused."),
    ("130", "Interrupted with Ctrl-C."),
)

FILES = (
    (DEFAULT_CONFIG, "The configuration; incus-numa config show prints it with the meaning of every key."),
    ("/run/incus-numa/api.sock", "The API of the daemon."),
    ("/var/lib/incus-numa/", "The journal of moves, and a policy that was set while the daemon ran."),
)

ENVIRONMENT = (("NO_COLOR", "When it is set and not empty, nothing is coloured. Nor is what goes to no terminal."),)


def render_manual() -> str:
    """The page as roff, with the macros of man(7). The same definitions give the same text."""
    context = click.Context(group, info_name=NAME, **group.context_settings)
    lines = [
        f'.TH INCUS\\-NUMA 1 "" "{NAME} {_roff(__version__)}" "User Commands"',
        ".SH NAME",
        f"{_roff(NAME)} \\- {_roff(_about(group)[0][0].lower() + _about(group)[0][1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_roff(NAME)}",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        _roff("Data goes to standard output, everything else to standard error. Every command has --help."),
        ".SH COMMANDS",
        *(line for words, inner in _commands(group, context) for line in _command(words, inner)),
    ]
    for heading, entries in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        lines.append(f".SH {heading}")
        for term, text in entries:
            lines += [".TP", f".B {_roff(term)}", _roff(text)]
    lines += [".SH SEE ALSO", ".BR incus (1),", ".BR lxc (1),", ".BR numactl (8),", ".BR lstopo (1)"]
    return "\n".join([*lines, ""])


def _commands(parent: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """All commands that can be run with the words that lead to them, sorted."""
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        if isinstance(command, click.Group):
            for words, inner in _commands(command, click.Context(command, info_name=name, parent=context)):
                yield f"{name} {words}", inner
        elif command is not None and not command.hidden:
            yield name, command


def _command(words: str, command: click.Command) -> Iterator[str]:
    # click keeps a command's option for help as it was first asked for: with the names that it really has.
    context = click.Context(command, info_name=f"{NAME} {words}", **group.context_settings)
    yield f'.SS "{_roff(" ".join((words, *command.collect_usage_pieces(context))))}"'
    for place, paragraph in enumerate(_about(command)):
        if place:
            yield ".PP"
        example = re.fullmatch(r"Example: (.*)", paragraph)
        yield from ("Example:", f".B {_roff(example[1])}") if example else (_roff(paragraph),)
    for option in command.params:
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None:
            yield from (".TP", f".B {_roff(record[0])}", _roff(record[1]))


def _about(command: click.Command) -> list[str]:
    """The paragraphs of a command's help, each on one line."""
    text = (command.help or "").partition("\f")[0]
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def _roff(text: str) -> str:
    """Text that roff shows as it is: no escapes, no requests, hyphens that can be copied."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    text = (
        text.replace('"', "\\(dq")
        .replace("`", "\\(ga")
        .replace("'", "\\(aq")
        .replace("^", "\\(ha")
        .replace("~", "\\(ti")
    )
    text = "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)
    return f"\\&{text}" if text.startswith(".") else text
