"""`incus-numa policy get|set`: the policy that the daemon works by, and another one for as long as is wanted."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec

from incus_numa.cli import output
from incus_numa.cli.asking import ask_daemon
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.settings import Settings

PATH = "/v1/policy"

COLUMNS = ("key", "value", "source")

Tables = dict[str, dict[str, Any]]


def _parse_changes(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """Texts of values by `(table, key)`. Raises BadParameter; whether there is such a key is for the daemon to say."""
    changes = {}
    for word in words:
        name, equals, text = word.partition("=")
        table, _, key = name.strip().partition(".")
        if not (equals and table and key):
            raise click.BadParameter(f"expected TABLE.KEY=VALUE, such as placement.smt=pack, got {word!r}.", ctx, param)
        changes[table, key] = text.strip()
    return changes


@click.group()
def command() -> None:
    """Show or change the policy of the daemon while it runs."""


@command.command(short_help="Show the policy in force.")
@formatted
@common
def get(config_file: Path | None, log_level: str, output_format: str) -> None:
    """Show the policy that the daemon works by, key by key, and whether it is from the file or was set.

    Example: incus-numa policy get
    """
    start_logging(log_level)
    policy = asyncio.run(ask_daemon(load_settings(config_file), "GET", PATH))
    rows = [
        {"key": f"{table}.{key}", "value": value, "source": _source(policy, table, key)}
        for table, keys in policy["effective"].items()
        for key, value in keys.items()
    ]
    shown = [row | {"value": _show(row["value"])} for row in rows]
    output.emit(output_format, policy, shown, lambda: output.print_table(shown), columns=COLUMNS)


@command.command(name="set", short_help="Change the policy, or go back to the file.")
@click.argument("changes", metavar="TABLE.KEY=VALUE...", nargs=-1, callback=_parse_changes)
@click.option("--reset", is_flag=True, help="Go back to the configuration file.")
@common
def change(*, config_file: Path | None, log_level: str, changes: dict[tuple[str, str], str], reset: bool) -> None:
    """Change keys of placement, memory and rebalance in the running daemon, beside those that were set before.

    They are checked like the file, hold at once and after a restart, until
    --reset. Values are written as in the file; texts need no quotes.

    Example: incus-numa policy set placement.smt=pack rebalance.enabled=false
    """
    start_logging(log_level)
    if reset == bool(changes):
        raise click.UsageError("Expected TABLE.KEY=VALUE, or --reset alone.")
    settings = load_settings(config_file)
    if reset:
        policy = asyncio.run(ask_daemon(settings, "DELETE", PATH))
        click.echo(f"the policy is that of {policy['file']} again", err=True)
        return
    policy = asyncio.run(_change(settings, changes))
    for table, key in changes:
        click.echo(f"{table}.{key} = {_show(policy['effective'][table][key])}", err=True)


async def _change(settings: Settings, changes: dict[tuple[str, str], str]) -> Any:
    """Put the changes over what was set before; what is put replaces that, so all of it is sent."""
    policy = await ask_daemon(settings, "GET", PATH)
    tables: Tables = {name: dict(table) for name, table in policy["changes"].items()}
    for (table, key), text in changes.items():
        now = policy["effective"].get(table, {}).get(key)
        tables.setdefault(table, {})[key] = _parse_value(text, now)
    return await ask_daemon(settings, "PUT", PATH, tables)


def _parse_value(text: str, now: Any) -> Any:
    """A value as TOML has it, or the text where that is no TOML or the key, which is `now` so, takes texts."""
    try:
        found = tomllib.loads(f"value = {text}\n")
    except tomllib.TOMLDecodeError:
        return text
    value = found.pop("value")
    if found or (isinstance(now, str) and not isinstance(value, str)):
        return text
    return value


def _show(value: Any) -> str:
    """A value for people: as it can be set again."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_write(one)}' for name, one in value.items()) + "}"
    return _write(value)


def _write(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _source(policy: dict[str, Any], table: str, key: str) -> str:
    return "api" if key in policy["changes"].get(table, {}) else "file"
