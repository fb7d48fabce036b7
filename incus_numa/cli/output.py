"""Prints data as a table, JSON, YAML or CSV. Data goes to standard output alone, everything else to standard error."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import click
import msgspec

from incus_numa.errors import ReportError
from incus_numa.quantities import render_bytes

Row = dict[str, Any]

_UNLIMITED = 100_000
_NARROWEST = 20
_GAP = 2


def emit(
    output_format: str, data: Any, rows: Sequence[Row], table: Callable[[], None], *, columns: Sequence[str] = ()
) -> None:
    """Print `data` (JSON, YAML), `rows` (CSV) or call `table`. `columns` are the CSV header when there are no rows."""
    if output_format == "json":
        write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
    elif output_format == "yaml":
        import yaml

        write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n"))
    elif output_format == "csv":
        write(render_csv(rows, columns).rstrip("\n"))
    else:
        table()


def write(text: str) -> None:
    """Text to standard output. Raises ReportError when it cannot be written, and BrokenPipeError as it is."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still buffered would fail again, and be told again, when the interpreter ends.
        sys.stdout = None
        raise ReportError(f"cannot write to standard output: {error.strerror}") from error


def fold(text: str, indent: int) -> str:
    """A line for people: on a terminal in lines of its width, broken between words, the later ones indented.

    Elsewhere it stays one line, so that it can be searched and cut.
    """
    if not sys.stdout.isatty():
        return text
    width = max(indent + _NARROWEST, shutil.get_terminal_size().columns)
    lines = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line for one in lines for line in _fold_words(one, width, indent))


def _fold_words(line: str, width: int, indent: int) -> list[str]:
    """A line in which a list such as `0-3,8` may be longer than a line, broken after commas."""
    if len(line) <= width:
        return [line]
    first, *more = fold_list(line.strip(), width - indent).split("\n")
    return [" " * (len(line) - len(line.lstrip())) + first, *(" " * indent + one for one in more)]


def render_csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Rows as CSV with a header: the keys of the first row, `columns` without rows. A dictionary becomes `a.b`."""
    flat = [flatten(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row)) or list(columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([{name: _csv_cell(value) for name, value in row.items()} for row in flat])
    return text.getvalue()


def flatten(row: Row, prefix: str = "") -> Row:
    """The row with the keys of inner dictionaries joined to the outer ones by a dot."""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def print_table(rows: Sequence[Row], *, title: str | None = None, empty: str = "nothing to show") -> None:
    """Rows as a table whose columns are the keys of the first row; None shows as a dash.

    On a terminal it is folded to the terminal's width, elsewhere it is as wide as it needs and nothing is cut.
    """
    if not rows:
        click.echo(empty, err=True)
        return
    console = _console()
    headers, right, cells = _cells(rows)
    _fold_lists(headers, cells, console.width)
    console.print(_table(headers, right, cells))
    lines = console.file.getvalue().splitlines()
    write("\n".join(line.rstrip() for line in ([title] if title else []) + lines))


def make_table(rows: Sequence[Row], *, no_wrap: bool = False) -> Any:
    """The same as a table of rich, for what is shown live; there must be rows."""
    headers, right, cells = _cells(rows)
    return _table(headers, right, cells, no_wrap=no_wrap)


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[bool], list[list[str]]]:
    """Headers, which columns belong to the right, and texts."""
    names = list(rows[0])
    headers = [name.strip().upper().replace("_", " ") for name in names]
    right = [all(_is_amount(row[name]) or row[name] is None for row in rows) for name in names]
    return headers, right, [[_cell(value) for value in row.values()] for row in rows]


def _table(
    headers: Sequence[str], right: Sequence[bool], cells: Sequence[Sequence[str]], *, no_wrap: bool = False
) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for header, is_right in zip(headers, right, strict=True):
        side: Literal["left", "right"] = "right" if is_right else "left"
        overflow: Literal["fold", "ellipsis"] = "ellipsis" if no_wrap else "fold"
        table.add_column(Text(header), justify=side, overflow=overflow, no_wrap=no_wrap)
    for row in cells:
        table.add_row(*(Text(text) for text in row))
    return table


def _console() -> Any:
    """Renders as for the standard output, into a text."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(file=io.StringIO(), force_terminal=True, width=shutil.get_terminal_size().columns)
    return Console(file=io.StringIO(), width=_UNLIMITED)


def _fold_lists(headers: Sequence[str], cells: list[list[str]], width: int) -> None:
    """Break columns of lists such as `0-3,8` after commas, as far as the width asks for, the widest one first."""
    widths = [max(len(text) for text in column) for column in zip(headers, *cells, strict=True)]
    lists = [place for place in range(len(widths)) if all(" " not in row[place] for row in cells)]
    lists = [place for place in lists if any("," in row[place] for row in cells)]
    least = {place: max(len(headers[place]), *(_widest_element(row[place]) for row in cells)) for place in lists}
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0 and (wide := [place for place in lists if widths[place] > least[place]]):
        widths[max(wide, key=lambda place: widths[place])] -= 1
        excess -= 1
    for row in cells:
        for place in lists:
            row[place] = fold_list(row[place], widths[place])


def _widest_element(text: str) -> int:
    """The width that a list needs at least, with the comma that a line ends with."""
    return max(map(len, text.replace(",", ",\n").split("\n")))


def fold_list(text: str, width: int) -> str:
    """A list such as `0-3,8` in lines of at most `width` characters, broken after commas."""
    lines = [""]
    for element in text.replace(",", ",\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(element) > width:
            lines.append("")
        lines[-1] += element
    return "\n".join(lines)


def show_bytes(size: int | None) -> str | None:
    """An amount for a table; None stays None."""
    return None if size is None else render_bytes(size)


def show_part(part: float | None) -> str | None:
    """A part of 1 as a percentage for a table; None stays None."""
    return None if part is None else f"{part:.0%}"


def _is_amount(value: Any) -> bool:
    """Whether it belongs to the right of its column: a number or a percentage."""
    if isinstance(value, str):
        return value.endswith("%")
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    if isinstance(value, (list, tuple)):
        return "; ".join(_csv_cell(one) for one in value)
    return str(value)
