"""The command group. Commands are imported when they are used, so that `incus-numa --version` starts at once."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from incus_numa import __version__
from incus_numa.errors import ConfigError, IncusNumaError, ReportError, UnreachableError

COMMANDS: Mapping[str, str] = {
    "check": "What will not work here, and what would crash the server.",
    "completion": "Make a shell complete the command line.",
    "config": "Show or validate the configuration.",
    "daemon": "Run the service.",
    "demo": "The daemon against the built-in simulator: no Incus, no root.",
    "explain": "Why an instance is where it is.",
    "list": "Placements and load now.",
    "man": "Show the man page.",
    "plan": "Decide offline from files; touches nothing.",
    "policy": "Show or change the policy of the daemon while it runs.",
    "rebalance": "One pass now: place what is not placed, move what pays.",
    "release": "Hand instances back: all CPUs, memory not bound.",
    "simulate": "Replay arrivals and departures; compare policies.",
    "top": "Watch load, and what the daemon does, as it happens.",
    "topology": "The machine as incus-numa sees it.",
}
"""Names and short help; each is `command` in `incus_numa.cli.NAME_command`."""

PACKAGES: Mapping[str, str] = {"yaml": "PyYAML", "prometheus_client": "prometheus-client"}
"""Packages that are called otherwise than the module that they bring."""

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130


ALIASES = {
    "ls": "list",
    "ps": "list",
    "show": "explain",
    "info": "explain",
    "describe": "explain",
    "status": "check",
    "doctor": "check",
    "dashboard": "top",
    "move": "rebalance",
    "serve": "daemon",
}
"""What others call it, to suggest the command by."""

AFTERWORD = """\b
Examples:
  incus-numa check               what will not work here, and what to do
  incus-numa list 'web*'         where instances are
  incus-numa explain web         why it is there

\b
Every command has --help with an example; `incus-numa man` has all of them.
Exit codes: 0 done; 1 failed; 2 usage or configuration; 3 no server;
4 done, but something was refused or found; 130 interrupted.
Documents: docs/ of the source, docs/getting-started.md first.
"""


class SuggestingGroup(click.Group):
    """A group that says what was probably meant where there is no such command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names. Raises UsageError, with a command that is like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = self.list_commands(ctx)
            alias = ALIASES.get(args[0])
            near = [alias] if alias in known else difflib.get_close_matches(args[0], known, n=1)
            if not near:
                raise
            # A newer click than ours need be would add its own guess to its own error.
            text = f"No such command {args[0]!r}. Did you mean `{ctx.command_path} {near[0]}`?"
            raise click.UsageError(text, ctx) from error


class LazyGroup(SuggestingGroup):
    """A group that imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"incus_numa.cli.{cmd_name}_command").command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options that begin so, without importing the commands."""
        names = [name for name in sorted(COMMANDS) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=COMMANDS[name]) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=AFTERWORD, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="incus-numa")
def group() -> None:
    """Place Incus and LXD instances on NUMA nodes: by vCPUs, memory, distance and load."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no server, 4 something was refused,
    130 interrupted.
    """
    try:
        code = group.main(prog_name="incus-numa", standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.Abort:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILED
    except IncusNumaError as error:
        code = _report((error,))
    except Exception as error:
        known = _known(error) or _lacking(error)
        if not known:
            logging.getLogger(__name__).exception("this is a bug of incus-numa; please report it with the lines above")
        code = _report(known) if known else EXIT_FAILED
    sys.exit(code)


def _known(error: BaseException) -> tuple[IncusNumaError, ...]:
    """Our own errors in a group that several tasks raised; empty if there is any other in it."""
    if not isinstance(error, BaseExceptionGroup):
        return ()
    found: list[IncusNumaError] = []
    for one in error.exceptions:
        inner = (one,) if isinstance(one, IncusNumaError) else _known(one)
        if not inner:
            return ()
        found += inner
    return tuple(found)


def _lacking(error: BaseException) -> tuple[IncusNumaError, ...]:
    """What to do where a package of others is missing or too old, which is no bug of ours; empty for anything else."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_lacking, error.exceptions)), ())
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if module in ("", "incus_numa") or module in sys.stdlib_module_names:
        return ()
    what = "is missing" if isinstance(error, ModuleNotFoundError) else f"is not as expected ({error})"
    package = PACKAGES.get(module, module)
    do = f"`{sys.executable} -m pip install --upgrade {package}`"
    text = f"the Python package {package} {what}: install it with {do}, or incus-numa anew without --no-deps"
    return (ReportError(text),)


def _report(errors: tuple[IncusNumaError, ...]) -> int:
    """Tell every problem once, and give the exit code of the worst."""
    lines = [line for one in errors for line in (one.problems if isinstance(one, ConfigError) else (str(one),))]
    for line in dict.fromkeys(lines):
        click.echo(f"Error: {line}", err=True)
    return max(_exit_code(one) for one in errors)


def _exit_code(error: IncusNumaError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    return EXIT_UNREACHABLE if isinstance(error, UnreachableError) else EXIT_FAILED
