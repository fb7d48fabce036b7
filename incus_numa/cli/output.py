"""Prints data as a table, JSON, YAML or CSV. Data goes to standard output alone, everything else to standard error."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

Row = dict[str, Any]


def emit(output_format: str, data: Any, rows: Sequence[Row], table: Callable[[], None]) -> None:
    """Print `data` (JSON, YAML), `rows` (CSV) or call `table`."""
    if output_format == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
    elif output_format == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
    elif output_format == "csv":
        click.echo(render_csv(rows), nl=False)
    else:
        table()


def render_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header; nothing for no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: "" if value is None else value for name, value in row.items()} for row in rows])
    return text.getvalue()


def print_table(rows: Sequence[Row], *, title: str | None = None, empty: str = "nothing to show") -> None:
    """Rows as a table whose columns are the keys of the first row; None shows as a dash."""
    from rich.table import Table

    if not rows:
        click.echo(empty, err=True)
        return
    table = Table(title=title, title_justify="left", box=_box(), header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name.upper().replace("_", " "), justify="right" if _is_number(value) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console().print(table)


def console() -> Any:
    """Where tables go. Not a terminal: no colours, and wide enough that nothing is cut."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if tty else 200, highlight=False, soft_wrap=not tty)


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
