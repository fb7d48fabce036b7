"""`incus-numa completion SHELL`: what a shell needs to complete our commands, options and names of instances."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from incus_numa.cli import output
from incus_numa.cli.main import group
from incus_numa.cli.options import common, start_logging

VARIABLE = "_INCUS_NUMA_COMPLETE"
"""The shell sets this when it asks; click derives the name from that of the program."""

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}

MENDED = {
    # What ends with an equals sign goes on with a value.
    "bash": (("    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0\n"),),
    # Without the completion system, which who has no configuration of zsh never loads, nothing can be registered.
    "zsh": (
        (
            "#compdef incus-numa\n",
            "#compdef incus-numa\n(( $+functions[compdef] )) || { autoload -U compinit && compinit -i }\n",
        ),
        # What ends with an equals sign goes on with a value.
        ("compadd -U -V", 'compadd -S "${${completions[-1]:#*=}:+ }" -U -V'),
    ),
    # A description would end at its first comma.
    "fish": (('(string split ","', '(string split --max 1 ","'),),
}
"""What is replaced in the texts of click."""


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@common
def command(config_file: Path | None, log_level: str, shell: str) -> None:
    """Print the script that makes a shell complete incus-numa's command line.

    Load it in ~/.bashrc or ~/.zshrc with eval "$(incus-numa completion bash)"
    or zsh; for fish: incus-numa completion fish | source

    Example: incus-numa completion bash
    """
    start_logging(log_level)
    # The base class's text: bash's own would run a bash first, to see how old it is.
    script = ShellComplete.source(SHELLS[shell](group, {}, "incus-numa", VARIABLE))
    for before, after in MENDED.get(shell, ()):
        script = script.replace(before, after)
    output.write(script.rstrip("\n"))
