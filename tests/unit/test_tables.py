"""Tables on a terminal: lists are broken after commas and nowhere else, as far as the width asks for."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cli import output

ROW: output.Row = {
    "name": "analytics",
    "nodes": "12-13,21-22",
    "cpus": "96-111,168-183,288-303,360-375",
    "state": "placed",
    "local": "29%",
}


class Terminal(io.StringIO):
    """A standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(monkeypatch: pytest.MonkeyPatch, width: int, *rows: output.Row) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with redirect_stdout(terminal):
        output.print_table(rows)
    return [line.rstrip() for line in click.unstyle(terminal.getvalue()).splitlines()]


def test_what_fits_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, 69, ROW) == [
        "NAME       NODES        CPUS                            STATE   LOCAL",
        "analytics  12-13,21-22  96-111,168-183,288-303,360-375  placed    29%",
    ]


def test_the_widest_list_is_broken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, 56, ROW) == [
        "NAME       NODES        CPUS             STATE   LOCAL",
        "analytics  12-13,21-22  96-111,168-183,  placed    29%",
        "                        288-303,360-375",
    ]


def test_several_lists_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, 44, ROW) == [
        "NAME       NODES   CPUS      STATE   LOCAL",
        "analytics  12-13,  96-111,   placed    29%",
        "           21-22   168-183,",
        "                   288-303,",
        "                   360-375",
    ]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=9), st.integers(1, 40))
def test_a_list_in_lines_is_the_same_list_with_no_line_too_wide(ids: list[int], width: int) -> None:
    text = ",".join(map(str, ids))
    found = output.fold_list(text, width).split("\n")
    assert "".join(found) == text
    assert all(len(line) <= width or line.count(",") <= 1 for line in found)
    assert all(line.endswith(",") for line in found[:-1])
