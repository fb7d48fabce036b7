"""`incus-numa policy get|set|unset`: the policy that the daemon works by, and another one for as long as is wanted."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from incus_numa.cli import output
from incus_numa.cli.asking import ask_daemon
from incus_numa.cli.completing import complete_change, complete_changed, complete_key
from incus_numa.cli.main import SuggestingGroup
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.errors import ChangedError, ConfigError
from incus_numa.settings import Settings

PATH = "/v1/policy"

COLUMNS = ("key", "value", "source")

TRIES, REST_S = 30, 0.1
"""How often, and at most how long apart, a change is tried while others change the policy, too."""

Tables = dict[str, dict[str, Any]]
Changes = dict[tuple[str, str], str]


def _parse_changes(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Changes | tuple[str, ...]:
    """Texts of values by `(table, key)`. Raises BadParameter; whether there is such a key is for the daemon to say."""
    if ctx.resilient_parsing:
        # A shell completes them: they are not whole yet.
        return words
    changes = {}
    for word in words:
        name, equals, text = word.partition("=")
        table, _, key = name.strip().partition(".")
        if not (equals and table and key):
            raise click.BadParameter(f"expected TABLE.KEY=VALUE, such as placement.smt=pack, got {word!r}.", ctx, param)
        changes[table, key] = text.strip()
    return changes


@click.group(cls=SuggestingGroup)
def command() -> None:
    """Show or change the policy of the daemon while it runs.

    Without an API of a daemon to ask it ends with 1. What is set is kept over
    the configuration file until it is unset; docs/settings.md has every key.
    Exit codes: 0 done; 1 failed; 2 with every mistake in what was to be set.

    Example: incus-numa policy set placement.smt=pack
    """


@command.command(short_help="Show the policy in force.")
@click.argument("keys", metavar="[TABLE.KEY]...", nargs=-1, shell_complete=complete_key)
@formatted
@common
def get(*, config_file: Path | None, log_level: str, output_format: str, keys: tuple[str, ...]) -> None:
    """Show the policy that the daemon works by, key by key, and whether it is from the file or was set.

    With keys, their values alone. Those that are fixed can only be changed in
    the file, followed by a restart.

    Example: incus-numa policy get placement.smt
    """
    start_logging(log_level)
    policy = asyncio.run(ask_daemon(load_settings(config_file), "GET", PATH))
    values = _values(policy)
    _check_known(keys, values)
    rows = [{"key": one, "value": values[one], "source": _source(policy, one)} for one in keys or values]
    shown = [row | {"value": _show(row["value"])} for row in rows]
    for one in policy.get("left_out", ()):
        click.echo(f"Warning: not in force: {one['why']}", err=True)
    if keys:
        data = {one: values[one] for one in keys}
        output.emit(output_format, data, shown, lambda: output.write(_lines(shown)), columns=COLUMNS)
        return
    output.emit(output_format, policy, shown, lambda: output.print_table(shown), columns=COLUMNS)


@command.command(name="set", short_help="Change the policy, or go back to the file.")
@click.argument(
    "changes", metavar="TABLE.KEY=VALUE...", nargs=-1, callback=_parse_changes, shell_complete=complete_change
)
@click.option("--reset", is_flag=True, help="Go back to the configuration file.")
@common
def change(*, config_file: Path | None, log_level: str, changes: Changes, reset: bool) -> None:
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
        _warn(policy)
        return

    def add(policy: dict[str, Any], tables: Tables) -> None:
        for (table, key), text in changes.items():
            now = policy["effective"].get(table, {}).get(key)
            tables.setdefault(table, {})[key] = _parse_value(text, now)

    policy = asyncio.run(_change(settings, add))
    _tell(policy, (f"{table}.{key}" for table, key in changes))


@command.command(short_help="Go back to the file for single keys.")
@click.argument("keys", metavar="TABLE.KEY...", nargs=-1, required=True, shell_complete=complete_changed)
@common
def unset(*, config_file: Path | None, log_level: str, keys: tuple[str, ...]) -> None:
    """Have keys as in the configuration file again; the others that were set stay.

    Example: incus-numa policy unset placement.smt
    """
    start_logging(log_level)
    left_out: set[str | None] = set()

    def remove(policy: dict[str, Any], tables: Tables) -> None:
        left_out.update(one["key"] for one in policy.get("left_out", ()))
        known = _values(policy)
        _check_known((one for one in keys if one not in left_out), known)
        for name in keys:
            table, _, key = name.partition(".")
            tables.get(table, {}).pop(key, None)

    policy = asyncio.run(_change(load_settings(config_file), remove))
    _tell(policy, (one for one in keys if one not in left_out))


async def _change(settings: Settings, edit: Callable[[dict[str, Any], Tables], None]) -> Any:
    """Put what was set before as `edit` leaves it; what is put replaces that, so all of it is sent.

    If somebody else changes the policy meanwhile, it is read and edited again. Raises ChangedError after TRIES.
    """
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
    from tenacity.wait import wait_random

    async def once() -> Any:
        policy = await ask_daemon(settings, "GET", PATH)
        tables: Tables = {name: dict(table) for name, table in policy["changes"].items()}
        edit(policy, tables)
        headers = {"If-Match": f'"{policy["etag"]}"'} if "etag" in policy else None
        return await ask_daemon(settings, "PUT", PATH, tables, headers=headers)

    again = retry_if_exception_type(ChangedError)
    retrying = AsyncRetrying(retry=again, stop=stop_after_attempt(TRIES), wait=wait_random(0, REST_S), reraise=True)
    return await retrying(once)


def _values(policy: dict[str, Any]) -> dict[str, Any]:
    """What is in force, by `table.key`."""
    return {f"{table}.{key}": value for table, keys in policy["effective"].items() for key, value in keys.items()}


def _check_known(keys: Iterable[str], values: dict[str, Any]) -> None:
    """Raise ConfigError for keys that are none, each with those that there are."""
    unknown = [one for one in keys if one not in values]
    if not unknown:
        return
    problems = []
    for one in unknown:
        table = one.partition(".")[0]
        near = [name for name in values if name.startswith(f"{table}.")]
        tables = list(dict.fromkeys(name.partition(".")[0] for name in values))
        told = f"expected one of {', '.join(near)}" if near else f"expected a key of {', '.join(tables)}"
        problems.append(f"{one}: unknown key; {told}")
    raise ConfigError(tuple(problems))


def _tell(policy: dict[str, Any], keys: Iterable[str]) -> None:
    """What keys have now, and what is to be said about it."""
    values = _values(policy)
    for one in keys:
        click.echo(f"{one} = {_show(values[one])}", err=True)
    _warn(policy)


def _warn(policy: dict[str, Any]) -> None:
    for one in policy.get("warnings", ()):
        click.echo(f"Warning: {one}", err=True)


def _lines(rows: list[output.Row]) -> str:
    return "\n".join(row["value"] for row in rows)


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


def _source(policy: dict[str, Any], name: str) -> str:
    if name in policy["fixed"]:
        return "file (fixed)"
    table, _, key = name.partition(".")
    return "api" if key in policy["changes"].get(table, {}) else "file"
