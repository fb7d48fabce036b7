"""Writes settings: as plain tables, and as the commented file that `config show` and the example are."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import toml

from incus_numa import quantities
from incus_numa.settings.tables import Settings


def settings_as_dict(settings: Settings) -> dict[str, dict[str, Any]]:
    """Plain tables, for `config show` and for writing a file."""
    return {
        table.name: {
            one.name: _plain(one.name, getattr(getattr(settings, table.name), one.name))
            for one in fields(getattr(settings, table.name))
        }
        for table in fields(settings)
    }


def render_settings(settings: Settings) -> str:
    """The settings as a commented TOML file that parses to the same settings."""
    lines = []
    for table in fields(settings):
        value = getattr(settings, table.name)
        lines.append(f"# {(type(value).__doc__ or '').splitlines()[0]}\n[{table.name}]")
        for one in fields(value):
            lines.append(f"# {one.metadata['meaning']}")
            lines.append(_assignment(one.name, _plain(one.name, getattr(value, one.name))))
        lines.append("")
    return "\n".join(lines)


def _plain(name: str, value: Any) -> Any:
    """A value as TOML and JSON have it; amounts of memory as people write them."""
    if name in ("reserved_total", "max_bytes", "bytes_per_second"):
        return quantities.render_exactly(value)
    if name == "reserved":
        return {str(one.node): quantities.render_exactly(one.size_bytes) for one in value}
    return list(value) if isinstance(value, tuple) else value


def _assignment(name: str, value: Any) -> str:
    """`name = value` on one line."""
    if isinstance(value, dict):
        # The toml library would begin a new table with it.
        inner = ", ".join(f'"{one}" = "{amount}"' for one, amount in value.items())
        return f"{name} = {{{inner}}}"
    return str(toml.dumps({name: value})).strip().replace("[ ", "[").replace(",]", "]")
