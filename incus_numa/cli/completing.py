"""Completes names of instances in a shell, from what the daemon knows: quickly, and silently where it does not tell."""

from __future__ import annotations

import asyncio
import contextlib
import io

import click

from incus_numa.errors import IncusNumaError

LIMIT_S = 0.3
"""Who presses Tab does not wait longer than this for the daemon."""


def complete_instance(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of running instances that begin so, of the project that was named before or the default one."""
    # Whatever goes wrong must not be written between the words of a command line.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return asyncio.run(_names(ctx, incomplete))
        except (IncusNumaError, OSError, LookupError, TypeError, AttributeError):
            return []


async def _names(ctx: click.Context, incomplete: str) -> list[str]:
    from incus_numa.cli.asking import ask
    from incus_numa.cli.options import load_settings

    settings = load_settings(ctx.params.get("config_file"))
    rows = await ask(settings, "GET", "/v1/instances", within_s=LIMIT_S) or ()
    project = ctx.params.get("project") or "default"
    names = [row["name"] for row in rows if row["project"] == project]
    return sorted(name for name in names if name.startswith(incomplete))
