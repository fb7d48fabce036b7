"""Completes names of instances and projects, and keys of the policy: quickly, and silently where nothing is known."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Coroutine
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from incus_numa.errors import IncusNumaError

LIMIT_S = 0.3
"""Who presses Tab does not wait longer than this for the daemon."""


def complete_instance(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of running instances that begin so, of the project that was named before or the default one."""
    return _ask_quietly(_names(ctx, incomplete))


def complete_project(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Projects in which something runs, and that begin so."""
    return _ask_quietly(_projects(ctx, incomplete))


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Keys of the policy that begin so."""
    return [one for one in _choices() if one.startswith(incomplete)]


def complete_changed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Those that were set."""
    return _ask_quietly(_changed(ctx, incomplete))


def complete_change(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Keys that can be set, with `=`, and what they may be set to where that is a choice."""
    from incus_numa.settings import RESTART_KEYS

    choices = {one: found for one, found in _choices().items() if tuple(one.split(".")) not in RESTART_KEYS}
    key = _begun(ctx.params.get(param.name or "") or ())
    if key in choices:
        # bash takes `=` as the end of a word, so that only what comes after it is completed.
        return [one for one in choices[key] if one.startswith(incomplete)]
    words = (f"{key}={one}" for key, found in choices.items() for one in found or ("",))
    return [one for one in words if one.startswith(incomplete)]


def _begun(words: tuple[str, ...]) -> str:
    """The key whose value is asked for, where the shell has cut a word at its `=`."""
    whole = [one for one in words if one != "="]
    return whole[-1].removesuffix("=") if whole and "=" not in whole[-1][:-1] else ""


def _choices() -> dict[str, tuple[str, ...]]:
    """Keys of the policy, and what they may be set to; nothing where that is no choice."""
    from incus_numa.settings import LIVE_TABLES, Settings

    tables = get_type_hints(Settings)
    return {
        f"{name}.{key}": get_args(hint) if get_origin(hint) is Literal else ("true", "false") if hint is bool else ()
        for name in LIVE_TABLES
        for key, hint in get_type_hints(tables[name]).items()
    }


def _ask_quietly(asking: Coroutine[Any, Any, list[str]]) -> list[str]:
    # Whatever goes wrong must not be written between the words of a command line.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return asyncio.run(asking)
        except (IncusNumaError, OSError, LookupError, TypeError, AttributeError):
            return []


async def _changed(ctx: click.Context, incomplete: str) -> list[str]:
    from incus_numa.cli.asking import ask
    from incus_numa.cli.options import load_settings

    policy = await ask(load_settings(ctx.params.get("config_file")), "GET", "/v1/policy", within_s=LIMIT_S)
    names = [f"{table}.{key}" for table, keys in (policy or {"changes": {}})["changes"].items() for key in keys]
    return [one for one in names if one.startswith(incomplete)]


async def _names(ctx: click.Context, incomplete: str) -> list[str]:
    project = ctx.params.get("project") or "default"
    names = [row["name"] for row in await _rows(ctx) if row["project"] == project]
    return sorted(name for name in names if name.startswith(incomplete))


async def _projects(ctx: click.Context, incomplete: str) -> list[str]:
    return sorted({row["project"] for row in await _rows(ctx) if row["project"].startswith(incomplete)})


async def _rows(ctx: click.Context) -> Any:
    from incus_numa.cli.asking import ask
    from incus_numa.cli.options import load_settings

    return await ask(load_settings(ctx.params.get("config_file")), "GET", "/v1/instances", within_s=LIMIT_S) or ()
